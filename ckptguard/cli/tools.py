"""completion, warmup: what makes the command pleasant to use."""

from __future__ import annotations

import time

import click

from ckptguard.cli import options
from ckptguard.cli.output import Output, write

_CODES = ("none", "crc", "secded:72,64", "bch:1023,513", "bch:8191,6722")
_CHANNELS = ("bsc:1e-3", "asymmetric:1e-3,1e-4", "burst:1e-5,1e-2,0.5", "erasure:4096,1e-3")


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

    Each line encodes, damages and decodes one small unit.
    """
    import numpy as np

    from ckptguard import channels, codes
    from ckptguard.channels.base import NoiseKey
    from ckptguard.report.table import table

    rows: list[tuple[str, float]] = []
    for spec in _CODES:
        start = time.perf_counter()
        code = codes.make(spec)
        words = np.arange(codes.TILE_WORDS, dtype=np.uint64)
        mask = (1 << 64) - 1
        parity = code.encode(words, mask)
        code.check(words, mask, parity)
        words[0] ^= np.uint64(1)
        code.decode(words, mask, parity)
        rows.append((spec, time.perf_counter() - start))
    for spec in _CHANNELS:
        start = time.perf_counter()
        channels.make(spec).corrupt(np.zeros(1 << 16, np.uint8), 0, NoiseKey(0))
        rows.append((spec, time.perf_counter() - start))
    record = {"command": "warmup", "exit_status": 0, "seconds": dict(rows)}
    output.result(record, lambda: table(("kernels of", "seconds"), [(spec, f"{took:.2f}") for spec, took in rows]))
    return 0
