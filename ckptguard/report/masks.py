"""Mask sets over the tensors of a checkpoint, as text and as records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptguard import codes
from ckptguard.dtypes import DType
from ckptguard.masks import Similarity, redundancy
from ckptguard.report import numbers
from ckptguard.report.table import MOST_ROWS, pairs, table


@dataclass(frozen=True)
class MaskedTensor:
    """A tensor with its mask.

    Attributes:
        elements: mask words in it.
        mask: as many '0' and '1' as its words have bits.
        code: spec; `none` where nothing is protected.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    elements: int
    mask: str
    code: str

    @property
    def protected_bits(self) -> int:
        """Of all its elements."""
        return self.elements * self.mask.count("1")


def redundancy_of(rows: Sequence[MaskedTensor]) -> float:
    """The redundancy r of the papers: parity bits over bits that represent the weights."""
    return redundancy((row.elements, row.mask, codes.make(row.code).redundancy) for row in rows)


def masks_record(rows: Sequence[MaskedTensor]) -> dict[str, Any]:
    """What `masks show --json` prints."""
    bits = sum(row.elements * len(row.mask) for row in rows)
    protected = sum(row.protected_bits for row in rows)
    return {
        "redundancy": redundancy_of(rows),
        "protected_fraction": protected / bits if bits else 0.0,
        "protected_bits": protected,
        "weight_bits": bits,
        "tensors": [
            {
                "name": row.name,
                "dtype": row.dtype.name,
                "shape": list(row.shape),
                "elements": row.elements,
                "mask": row.mask,
                "protected_bits": row.protected_bits,
                "code": row.code,
            }
            for row in rows
        ],
    }


def masks_text(file: Path, rows: Sequence[MaskedTensor]) -> str:
    """What `masks show` prints."""
    record = masks_record(rows)
    lines = pairs(
        [
            ("protected", f"{numbers.percent(record['protected_fraction'])} of the bits that represent the weights"),
            ("redundancy r", f"{record['redundancy']:.4f}"),
        ]
    )
    shown = [
        (
            row.name,
            row.dtype.name,
            numbers.count(row.elements),
            str(row.mask.count("1")),
            short_mask(row.mask),
            row.code,
        )
        for row in rows[:MOST_ROWS]
    ]
    heading = ("tensor", "dtype", "elements", "bits", "mask", "code")
    body = table(heading, shown, hidden=len(rows) - len(shown))
    return f"{file}: masks of {numbers.count(len(rows), 'tensor')}\n\n{lines}\n\n{body}"


def similarity_rows(
    first: Sequence[MaskedTensor], second: Sequence[MaskedTensor], found: Similarity
) -> list[dict[str, Any]]:
    """The rows of `masks diff --json`."""
    return [
        {"name": a.name, "similarity": found.per_tensor[a.name], "first": a.mask, "second": b.mask}
        for a, b in zip(first, second, strict=True)
    ]


def similarity_text(
    first: Path, second: Path, rows: Sequence[MaskedTensor], others: Sequence[MaskedTensor], found: Similarity
) -> str:
    """What `masks diff` prints: the tensors that differ most come first."""
    ordered = sorted(zip(rows, others, strict=True), key=lambda pair: found.per_tensor[pair[0].name])
    shown = [
        (a.name, f"{found.per_tensor[a.name]:.4f}", short_mask(a.mask), short_mask(b.mask))
        for a, b in ordered[:MOST_ROWS]
    ]
    differ = sum(share < 1 for share in found.per_tensor.values())
    body = table(("tensor", "similarity", "first", "second"), shown, hidden=len(ordered) - len(shown))
    return (
        f"{first} and {second}: average similarity {found.mean:.4f}; "
        f"{differ} of {numbers.count(len(rows), 'tensor')} differ\n\n{body}"
    )


def short_mask(mask: str) -> str:
    """A mask as people say it: `all`, `none`, `top:9`; else as it is."""
    ones = mask.count("1")
    if ones in (0, len(mask)):
        return "all" if ones else "none"
    return f"top:{ones}" if mask.startswith("1" * ones) else mask
