"""masks show, masks diff: what a mask set protects of a checkpoint, and how two sets differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptguard.cli import options
from ckptguard.cli.output import Output

if TYPE_CHECKING:
    from ckptguard.report.masks import MaskedTensor

_model = click.option("--model", type=options.FILE, required=True, help="The checkpoint that the masks are for.")
_representation = click.option("--representation", metavar="SPEC", default="native", show_default=True)


@click.group()
def masks() -> None:
    """Show mask files and compare them."""


@masks.command(short_help="Show which bits are protected, per tensor.")
@click.argument("file", type=options.FILE)
@_model
@_representation
@click.option("--code", metavar="SPEC", help="For rules that name none. Default: bch:8191,6722.")
@options.select
@options.prints
def show(output: Output, *, file: Path, model: Path, representation: str, code: str | None, select: str | None) -> int:
    """Show, per tensor of --model, which bits the mask file FILE protects, and what that costs."""
    from ckptguard.pipeline.protect import DEFAULT_CODE
    from ckptguard.report import masks as report

    rows, warnings = _resolve(file, model, representation, code or DEFAULT_CODE, select)
    for warning in warnings:
        output.note(f"note: {warning}")
    record = {"command": "masks show", "exit_status": 0, "warnings": warnings}
    output.result(record | report.masks_record(rows), lambda: report.masks_text(file, rows))
    return 0


@masks.command(short_help="Compare two mask sets.")
@click.argument("first", type=options.FILE)
@click.argument("second", type=options.FILE)
@_model
@_representation
@options.select
@options.prints
def diff(output: Output, *, first: Path, second: Path, model: Path, representation: str, select: str | None) -> int:
    """Compare two mask sets: the share of positions that agree, per tensor of --model and on average.

    It is one minus the normalised Hamming distance; the average is the plain mean over tensors.
    """
    from ckptguard.masks import similarity
    from ckptguard.report import masks as report

    ours, theirs = (_resolve(file, model, representation, "none", select)[0] for file in (first, second))
    found = similarity({row.name: row.mask for row in ours}, {row.name: row.mask for row in theirs})
    record = {"command": "masks diff", "exit_status": 0, "mean": found.mean}
    output.result(
        record | {"tensors": report.similarity_rows(ours, theirs, found)},
        lambda: report.similarity_text(first, second, ours, theirs, found),
    )
    return 0


def _resolve(
    file: Path, model: Path, representation: str, code: str, select: str | None
) -> tuple[list[MaskedTensor], list[str]]:
    """A mask and a code for every tensor of a checkpoint, and what to know about the rules."""
    from ckptguard import representations
    from ckptguard.masks import MaskSet
    from ckptguard.pipeline.inputs import open_checkpoint
    from ckptguard.report.masks import MaskedTensor

    mask_set = MaskSet.load(file)
    wanted = representations.make(representation)
    with open_checkpoint(model, select) as checkpoint:
        tensors = [tensor for one in checkpoint.files if one.header is not None for tensor in one.header.tensors]
    words = [
        wanted.word_bits(tensor.dtype) if wanted.applies(tensor.dtype) else tensor.dtype.word_bits for tensor in tensors
    ]
    resolution = mask_set.resolve([(tensor.name, bits) for tensor, bits in zip(tensors, words, strict=True)])
    rows = [
        MaskedTensor(
            tensor.name,
            tensor.dtype,
            tensor.shape,
            tensor.dtype.words(tensor.end - tensor.begin),
            mask.mask,
            (mask.code or code) if "1" in mask.mask else "none",
        )
        for tensor, mask in zip(tensors, resolution.tensors, strict=True)
    ]
    return rows, [str(unused) for unused in resolution.unused]
