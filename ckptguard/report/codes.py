"""Codes and their kinds, as text and as records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ckptguard.codes import KINDS
from ckptguard.codes.base import Code
from ckptguard.report import numbers
from ckptguard.report.table import table

_EXAMPLES = {"bch": "bch:8191,6722", "secded": "secded:72,64"}


@dataclass(frozen=True)
class Kind:
    """A kind of code.

    Attributes:
        name: as in specs.
        example: a spec of it.
        summary: what it is, one line.
    """

    name: str
    example: str
    summary: str


def kinds() -> list[Kind]:
    """All kinds, by name; what they are is the first line of their class."""
    rows = []
    for name in sorted(KINDS):
        module, _, attribute = KINDS[name].partition(":")
        summary = (getattr(import_module(module), attribute).__doc__ or "").strip().splitlines()[0]
        rows.append(Kind(name, _EXAMPLES.get(name, name), summary))
    return rows


def kinds_text(rows: Sequence[Kind]) -> str:
    """What `codes` prints."""
    body = [(row.name, row.example, row.summary) for row in rows]
    more = (
        "`bch:n,k,outer=r` adds r outer words per group of 512 codewords, which make lost codewords good.\n"
        "`auto` and `auto:n` choose the cheapest BCH code for a device's error rate and --target."
    )
    return f"{table(('kind', 'example', 'what it is'), body)}\n\n{more}"


def code_record(code: Code, bit_error_rate: float | None) -> dict[str, Any]:
    """A row of `codes KIND --json`; the failure probability only where an error rate is given."""
    record: dict[str, Any] = {
        "code": code.spec,
        "n": code.n,
        "k": code.k,
        "t": code.t,
        "redundancy": code.redundancy,
    }
    if bit_error_rate is not None:
        record["failure_probability"] = code.failure_probability(bit_error_rate, code.n)
    return record


def codes_text(kind: str, rows: Sequence[dict[str, Any]]) -> str:
    """What `codes KIND` prints; all rows, they were asked for."""
    heading = ["code", "n", "k", "t", "redundancy"]
    failing = bool(rows) and "failure_probability" in rows[0]
    body = []
    for row in rows:
        cells = [row["code"], str(row["n"]), str(row["k"]), str(row["t"]), numbers.percent(row["redundancy"])]
        body.append(cells + ([numbers.rate(row["failure_probability"])] if failing else []))
    text = f"{kind}: {numbers.count(len(rows), 'code')}"
    return f"{text}\n\n{table([*heading, 'failure per codeword'] if failing else heading, body)}"
