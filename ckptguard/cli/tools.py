"""completion, warmup: what makes the command pleasant to use."""

from __future__ import annotations

import time

import click

from ckptguard.cli import options
from ckptguard.cli.output import Output, write

_CODES = ("none", "crc", "secded:72,64", "bch:8191,6722", "bch:8191,6722,outer=4")
_CHANNELS = (
    "bsc:1e-3",
    "asymmetric:1e-3,1e-4",
    "burst:1e-5,1e-2,0.5",
    "erasure:4096,1e-3",
    "erasure:4096,1e-3,zeros,8",
    "levelmap:0/1/2/3,0.2/0.2/0.2/0.2",
    "stuck:1e-3",
    "cluster:1e-3,2,8",
)
_FEW = 20
_WORDS = 3 * 512 + 100  # some whole tiles and a part of one


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options and files in SHELL.

    \b
    bash: eval "$(ckptguard completion bash)" in ~/.bashrc
    zsh:  eval "$(ckptguard completion zsh)" in ~/.zshrc
    fish: ckptguard completion fish > ~/.config/fish/completions/ckptguard.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    write(kind(context.find_root().command, {}, "ckptguard", "_CKPTGUARD_COMPLETE").source())


@click.command(short_help="Compile all kernels now.")
@options.prints
def warmup(output: Output) -> int:
    """Compile all kernels now, so that later commands start at once. What is compiled is kept on disk.

    Each line encodes, damages and decodes one small unit. BCH codes have kernels for every length.
    """
    import numpy as np

    from ckptguard import channels
    from ckptguard.channels.base import NoiseKey
    from ckptguard.kernels import algebra
    from ckptguard.report.table import table

    lengths = [(1 << m) - 1 for m in range(algebra.MIN_M, algebra.MAX_M + 1)]
    rows: list[tuple[str, float]] = []
    for spec in (*_CODES, *(_bch_of_length(n) for n in lengths)):
        start = time.perf_counter()
        _exercise(spec)
        rows.append((spec, time.perf_counter() - start))
    for spec in _CHANNELS:
        start = time.perf_counter()
        channels.make(spec).corrupt(np.zeros(1 << 16, np.uint8), 0, NoiseKey(0))
        rows.append((spec, time.perf_counter() - start))
    start = time.perf_counter()
    _exercise_campaign()
    rows.append(("campaigns and range guards", time.perf_counter() - start))
    start = time.perf_counter()
    _exercise_restorers()
    rows.append(("posterior restorers", time.perf_counter() - start))
    record = {"command": "warmup", "exit_status": 0, "seconds": dict(rows)}
    output.result(record, lambda: table(("kernels of", "seconds"), [(spec, f"{took:.2f}") for spec, took in rows]))
    return 0


def _exercise_campaign() -> None:
    """Guard, store, damage and decode a small tensor of every width of word."""
    import numpy as np

    from ckptguard.campaign import faults
    from ckptguard.campaign.subject import Subject, SubjectTensor
    from ckptguard.campaign.variants import Prepared, Variant
    from ckptguard.dtypes import DTYPES
    from ckptguard.guards import TensorGuard

    generator = np.random.default_rng(0)
    tensors = {}
    for name in ("U8", "F16", "F32", "F64"):
        dtype = DTYPES[name]
        data = generator.integers(1, 0x3C, _WORDS * dtype.word_bits // 8, dtype=np.uint8)
        tensors[name] = SubjectTensor(dtype, (_WORDS,), data)
        guard = TensorGuard.of(dtype, data)
        words = data.view(guard.form.type).copy()
        guard.apply_in_place(words)
        guard.force_in_place(words)
        data.setflags(write=False)
        TensorGuard.of(dtype, data)
    subject = Subject.of("warmup", tensors)
    for representation, code in (("native", "bch:255,131"), ("fixed:8", "secded:72,64"), ("native", "crc")):
        prepared = Prepared(subject, Variant("warmup", representation, None, code, "null", "tensor"))
        for spec in ("bsc:0.01", "asymmetric:0.01,0.02", "gaussian:0.01", "stuck1:0.01", "flips:100"):
            prepared.trial(faults.make(spec), 0, 0)


def _exercise_restorers() -> None:
    """Restore a few words, and correct their sums."""
    import numpy as np

    from ckptguard.dtypes import DTYPES
    from ckptguard.posterior import Restorer, Spread
    from ckptguard.row_sums import segment_sums, segments, with_sums_in_place

    for name, kind in (("F32", "<f4"), ("F16", "<f2")):
        words = np.linspace(-1, 1, _WORDS).astype(kind).view(f"<u{np.dtype(kind).itemsize}")
        restorer = Restorer.of(Spread.of(DTYPES[name], words), "0" * DTYPES[name].word_bits, 1e-2, 1e-2)
        restorer.apply_in_place(words)
        runs = segments(0, _WORDS, 100)
        with_sums_in_place(DTYPES[name], words, *runs, segment_sums(DTYPES[name], words, *runs))


def _bch_of_length(n: int) -> str:
    """The code of length n that corrects about twenty flips, or most of what there is."""
    from ckptguard.codes.bch import dimensions

    known = dimensions(n)
    return f"bch:{n},{known[min(_FEW, len(known) - 1)]}"


def _exercise(spec: str) -> None:
    """Encode a unit and decode it with no, few, many and too many flips: each of these has kernels of its own."""
    import numpy as np

    from ckptguard import channels, codes
    from ckptguard.channels.base import NoiseKey
    from ckptguard.kernels import differences

    code, mask = codes.make(spec), (1 << 64) - 1
    words = np.arange(_WORDS, dtype=np.uint64)
    stored = code.encode(words, mask)
    for share in (0.0, 0.1, 0.5, 3.0):
        damaged, parity = words.copy(), stored.copy()
        rate = min(0.4, share * code.t / max(code.n, 1))
        channels.make(f"bsc:{rate}").corrupt(damaged.view(np.uint8), 0, NoiseKey(0))
        code.check(damaged, mask, parity)
        code.decode(damaged, mask, parity)
        differences.count_differences(words, damaged)
        differences.count_changes(words, damaged, np.array([0, words.nbytes]), np.zeros((1, 2), np.int64))
