"""The list of parts in the section PLAN as columns: what plans of many thousand tensors are read by."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from operator import itemgetter
from reprlib import repr as short
from typing import Any

from ckptguard.container import sections
from ckptguard.container.sections import Section
from ckptguard.errors import ContainerError

_STRING = r'"([^"\\\x00-\x1f]*)"'
_NUMBER = "(0|[1-9][0-9]{0,17})"
_EXTENTS = r"\[((?:0|[1-9][0-9]{0,17})(?:,(?:0|[1-9][0-9]{0,17}))*|)\]"
_PLAIN_PART = re.compile(
    rf',\{{"bytes":{_NUMBER},"code":{_STRING},"dtype":{_STRING},"kind":{_STRING},"mask":{_STRING},"name":{_STRING},'
    rf'"offset":{_NUMBER},"representation":{_STRING},"shape":{_EXTENTS},"source":{_NUMBER},"stored":{_NUMBER},'
    r'"stream":(-1|0|[1-9][0-9]{0,17})\}'
)
_PLAIN_BYTES = len(
    ',{"bytes":,"code":"","dtype":"","kind":"","mask":"","name":"","offset":,"representation":"","shape":[],'
    '"source":,"stored":,"stream":}'
)
_BEGIN, _END = '"parts":[', '],"sources":['
_STAND_IN = "the parts"


@dataclass(frozen=True)
class PartColumns:
    """One entry per part in each column; texts are texts that UTF-8 can write, numbers are sizes.

    Attributes:
        extents: the shapes as they were spelled, without brackets; None where they were not spelled plainly.
    """

    kind: Sequence[str]
    name: Sequence[str]
    dtype: Sequence[str]
    representation: Sequence[str]
    mask: Sequence[str]
    code: Sequence[str]
    source: Sequence[int]
    offset: Sequence[int]
    bytes: Sequence[int]
    stored: Sequence[int]
    shape: Sequence[tuple[int, ...]]
    extents: Sequence[str] | None = None

    @classmethod
    def of(cls, items: Iterable[Any]) -> PartColumns:
        """From the records of the JSON; raises KeyError, TypeError or ValueError for what they cannot mean."""
        keys = [column.name for column in fields(cls)][:-1]
        rows = list(map(itemgetter(*keys), items))
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) if rows else [()] * len(keys)
        for key, column in zip(keys, columns, strict=True):
            if key in _NUMBERS:
                check_counts(column)
            elif key != "shape":
                for value in set(column):
                    check_text(value)
        columns[-1] = list(map(tuple, columns[-1]))
        check_counts(list(chain.from_iterable(columns[-1])))
        return cls(*columns)


_NUMBERS = ("source", "offset", "bytes", "stored")


def read_plan(section: Section) -> Any:
    """The JSON of the section; `parts` are `PartColumns` where they are spelled as the writer spells them."""
    try:
        text = section.data.decode()
    except UnicodeDecodeError:
        return sections.from_json(section)
    begin, end = text.find(_BEGIN) + len(_BEGIN), text.rfind(_END)
    found = _PLAIN_PART.findall("," + text[begin:end])
    if (
        begin < len(_BEGIN)
        or not found
        or _STAND_IN in text
        or sum(map(len, map("".join, found))) + _PLAIN_BYTES * len(found) != 1 + end - begin
    ):
        return sections.from_json(section)
    rest = f"{text[:begin]}{json.dumps(_STAND_IN)}{text[end:]}"
    try:
        record = sections.from_json(Section(section.tag, rest.encode()))
    except ContainerError:
        record = None
    if not isinstance(record, dict) or record.get("parts") != [_STAND_IN]:
        return sections.from_json(section)
    size, code, dtype, kind, mask, name, offset, representation, extents, source, stored, _ = zip(*found, strict=True)
    shapes = [tuple(map(int, one.split(","))) if one else () for one in extents]
    record["parts"] = PartColumns(
        kind,
        name,
        dtype,
        representation,
        mask,
        code,
        source=list(map(int, source)),
        offset=list(map(int, offset)),
        bytes=list(map(int, size)),
        stored=list(map(int, stored)),
        shape=shapes,
        extents=extents,
    )
    return record


def check_counts(values: Sequence[Any]) -> None:
    """Raise ValueError unless all values are sizes: whole numbers below 2^62."""
    if set(map(type, values)) - {int} or min(values, default=0) < 0 or max(values, default=0) >= 1 << 62:
        wrong = next(value for value in values if type(value) is not int or not 0 <= value < 1 << 62)
        raise ValueError(f"{short(wrong)} is no size")


def check_text(value: Any) -> None:
    """Raise ValueError unless the value is a string that UTF-8 can write."""
    if not isinstance(value, str):
        raise ValueError(f"{short(value)} is no text")
    value.encode()
