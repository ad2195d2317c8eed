"""codes: which codes there are, what they cost and what they survive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckptguard.cli import options
from ckptguard.cli.output import Output
from ckptguard.errors import UsageError

if TYPE_CHECKING:
    from ckptguard.codes.base import Code


@click.command(short_help="List codes, what they cost and survive.")
@click.argument("kind", required=False)
@click.option("--n", type=click.IntRange(min=1), help="List the codes of this codeword length.")
@click.option("--ber", type=click.FloatRange(0, 1), metavar="P", help="Add the failure probability at this error rate.")
@options.prints
def codes(output: Output, *, kind: str | None, n: int | None, ber: float | None) -> int:
    """List kinds of codes, or the codes of one KIND with bits, reach (t), redundancy and failure probability.

    The probability is that of one codeword not being decoded rightly when its bits flip independently.
    """
    from ckptguard.codes import KINDS
    from ckptguard.report import codes as report
    from ckptguard.spec import look_up

    record: dict[str, object] = {"command": "codes", "exit_status": 0}
    if kind is None:
        if n is not None or ber is not None:
            raise UsageError("--n and --ber belong to a kind, as in `ckptguard codes bch --n 8191`")
        kinds = report.kinds()
        output.result(record | {"kinds": [vars(row) for row in kinds]}, lambda: report.kinds_text(kinds))
        return 0
    look_up(KINDS, kind, "code")
    found = _codes(kind, n)
    rows = [report.code_record(code, ber) for code in found]
    record |= {"kind": kind, "bit_error_rate": ber, "codes": rows}
    output.result(record, lambda: report.codes_text(kind, rows))
    return 0


def _codes(kind: str, n: int | None) -> list[Code]:
    """The codes of a kind, all of them or those of one length."""
    from ckptguard.codes import make

    if kind == "bch":
        if n is None:
            raise UsageError("--n: which codeword length, 2^m - 1? As in `ckptguard codes bch --n 8191`")
        from ckptguard.codes.bch import dimensions

        return [make(f"bch:{n},{k}") for k in dimensions(n)]
    if kind == "secded":
        from ckptguard.codes.secded import SIZES

        found = [make(f"secded:{size},{k}") for size, k in SIZES]
    else:
        found = [make(kind)]
    if n is not None:
        known = ", ".join(str(code.n) for code in found)
        found = [code for code in found if code.n == n]
        if not found:
            raise UsageError(f"--n: there is no {kind} code of length {n}; known: {known}")
    return found
