"""Headers of safetensors files, read at least as strictly as the reference parser reads them, and written as it does.

A header this module accepts is one the reference accepts, with the same meaning. It refuses some that the reference
lets pass: keys given twice, keys the format does not know, blanks before the first brace, and spellings of a tensor
other than an object. Each would let two readers see different tensors in the same bytes.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, NoReturn, cast

from ckptguard.dtypes import DTYPES, DType
from ckptguard.errors import CheckpointError
from ckptguard.files import read_exactly

MAX_HEADER_BYTES = 100_000_000
"""Longest JSON part that any reader of the format takes."""

_MAX_INTEGER = 2**64 - 1
_LENGTH_BYTES = 8
_KEYS = ("dtype", "shape", "data_offsets")
_NUMBER = "(?:0|[1-9][0-9]{0,17})"
_STRING = r'"[^"\\\x00-\x1f]*"'
_PLAIN_METADATA = re.compile(rf'\{{"__metadata__":(\{{(?:{_STRING}:{_STRING}(?:,(?=")|(?=\}})))*\}})')
_PLAIN_TENSOR = re.compile(
    r',"([^"\\\x00-\x1f]*)":\{"dtype":"([A-Z0-9_]*)",'
    rf'"shape":\[((?:{_NUMBER}(?:,{_NUMBER})*)?)\],"data_offsets":\[({_NUMBER}),({_NUMBER})\]\}}'
)
_PLAIN_TENSOR_BYTES = len(',"":{"dtype":"","shape":[],"data_offsets":[,]}')
_RANK = {name: rank for rank, name in enumerate(DTYPES)}
_OTHER_KINDS = (
    (b"version https://git-lfs", "it is a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (b"PK\x03\x04", "it is a zip archive, as torch.save writes; give it its suffix .pt back to have it converted"),
    (
        b"\x80\x02",
        "it is a pickle, as old versions of torch.save wrote; give it its suffix .pt back to have it converted",
    ),
    (b"<", "it looks like a web page; the download went wrong, get it again"),
)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file; its bytes are `begin` to `end`, counted from the start of the data section."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file holds.

    Attributes:
        tensors: in the order of their data; empty ones at one place stay in the order of the JSON.
        metadata: the free text entries, empty where there are none.
        raw: the 8 bytes of length and the JSON with its padding, exactly as in the file.
        data_bytes: size of the data section.
    """

    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    raw: bytes
    data_bytes: int

    @property
    def data_offset(self) -> int:
        """Where in the file the data section begins."""
        return len(self.raw)

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return len(self.raw) + self.data_bytes


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of the safetensors file at `path`, checked against the size of the file; no tensor is read.

    Raises:
        CheckpointError: the file cannot be read or is no well-formed safetensors file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path}: is not a regular file")
            size = status.st_size
            if size < _LENGTH_BYTES:
                raise CheckpointError(
                    f"{path}: has {size} bytes, and a safetensors file begins with {_LENGTH_BYTES} bytes of header "
                    "length; the file is empty or truncated, get it again"
                )
            start = read_exactly(file, 0, _LENGTH_BYTES)
            length = _check_length(path, start, size)
            header_json = read_exactly(file, _LENGTH_BYTES, length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse_header(header_json, size - _LENGTH_BYTES - length, where=str(path))


def parse_header(header_json: bytes, data_bytes: int, *, where: str = "safetensors header") -> Header:
    """The header that `header_json` spells, for a data section of `data_bytes` bytes.

    Args:
        header_json: what follows the 8 bytes of length, padding included.
        where: what error messages begin with.
    Raises:
        CheckpointError: it is malformed, or does not describe exactly `data_bytes` bytes.
    """
    return _Parser(where).parse(header_json, data_bytes)


Spelled = tuple[DType, tuple[int, ...], int, int]
"""Dtype, shape, begin and end of a tensor, as in `TensorInfo`."""


def tensors_of(header_json: bytes, data_bytes: int, *, where: str = "safetensors header") -> dict[str, Spelled]:
    """The tensors that `parse_header` finds, by name, in the order of their data; raises as it does.

    Headers spelled as the reference writes them, thousands of tensors long, are read much faster.
    """
    tensors = _plain_tensors(header_json, data_bytes)
    if tensors is None:
        parsed = parse_header(header_json, data_bytes, where=where).tensors
        return {tensor.name: (tensor.dtype, tensor.shape, tensor.begin, tensor.end) for tensor in parsed}
    return tensors


def spells(
    header_json: bytes,
    names: Sequence[str],
    dtypes: Sequence[str],
    extents: Sequence[str],
    begins: Sequence[int],
    ends: Sequence[int],
) -> bool:
    """Whether a header spells just these tensors as the reference does, in this order.

    Args:
        names: without characters that JSON escapes.
        extents: the shapes, as JSON without brackets.
    """
    rows = zip(names, dtypes, extents, begins, ends, strict=True)
    text = "".join(
        [
            f',"{name}":{{"dtype":"{dtype}","shape":[{extent}],"data_offsets":[{begin},{end}]}}'
            for name, dtype, extent, begin, end in rows
        ]
    )
    return text == _plain_body(header_json) and len(set(names)) == len(names) and "__metadata__" not in names


def _plain_body(header_json: bytes) -> str | None:
    """The tensors of a header, a comma before each, behind metadata without escapes; None where the rest is not so."""
    try:
        text = header_json.decode().rstrip(" ")
    except UnicodeDecodeError:
        return None
    if len(header_json) > MAX_HEADER_BYTES or not (text.startswith("{") and text.endswith("}")):
        return None
    if metadata := _PLAIN_METADATA.match(text):
        entries = json.loads(metadata[1], object_pairs_hook=list)
        return text[metadata.end() : -1] if len(dict(entries)) == len(entries) else None
    return "," + text[1:-1]


def _plain_tensors(header_json: bytes, data_bytes: int) -> dict[str, Spelled] | None:
    """The tensors of a header without escapes and blanks, or None where the parser has to judge it."""
    if (body := _plain_body(header_json)) is None:
        return None
    found = _PLAIN_TENSOR.findall(body)
    if sum(map(len, map("".join, found))) + _PLAIN_TENSOR_BYTES * len(found) != len(body):
        return None  # something lies between the tensors
    names, dtypes, extents, begins, ends = zip(*found, strict=True) if found else ((),) * 5
    if len(set(names)) < len(names) or "__metadata__" in names or not DTYPES.keys() >= set(dtypes):
        return None
    kinds = [DTYPES[dtype] for dtype in dtypes]
    shapes = [tuple(map(int, extent.split(","))) if extent else () for extent in extents]
    bits = [math.prod(shape) * kind.bits for shape, kind in zip(shapes, kinds, strict=True)]
    if min(bits, default=1) == 0 or max(bits, default=0) > _MAX_INTEGER:
        return None
    spelled = zip(kinds, shapes, map(int, begins), map(int, ends), strict=True)
    ordered = sorted(zip(names, bits, spelled, strict=True), key=lambda tensor: tensor[2][2:])
    end = 0
    for _, size, tensor in ordered:
        if tensor[2] != end or 8 * (tensor[3] - end) != size:
            return None
        end = tensor[3]
    return {name: tensor for name, _, tensor in ordered} if end == data_bytes else None


def write_header(tensors: Iterable[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The length and the JSON, byte for byte as the reference writes them (with at most one entry of metadata).

    Tensors lie by descending dtype (the order of `DTYPES`), then by name; `parse_header` tells where. The reference
    orders several entries of metadata at random; here they are sorted.

    Raises:
        CheckpointError: a name is taken or `__metadata__`, a tensor ends inside a byte, or the header is too long.
    """
    members: dict[str, Any] = {}
    if metadata:
        members["__metadata__"] = dict(sorted(metadata.items()))
    begin = 0
    for name, dtype, shape in sorted(tensors, key=lambda tensor: (-_RANK[tensor[1].name], tensor[0])):
        if name == "__metadata__" or name in members:
            raise CheckpointError(f"tensor {short(name)}: the name is taken; a safetensors file holds every name once")
        end = begin + _tensor_bytes("new safetensors file", name, dtype, shape)
        members[name] = {"dtype": dtype.name, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    try:
        text = json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"a name or metadata entry is not text that UTF-8 can write: {error}") from error
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"the header would be {len(text)} bytes long, and readers refuse more than {MAX_HEADER_BYTES}; "
            "split the checkpoint into several files"
        )
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _check_length(path: Path, start: bytes, size: int) -> int:
    length = int.from_bytes(start, "little")
    if length <= MAX_HEADER_BYTES and length <= size - _LENGTH_BYTES:
        return length
    limit = (
        f"more than the {MAX_HEADER_BYTES} the format allows"
        if length > MAX_HEADER_BYTES
        else f"{size - _LENGTH_BYTES} follow"
    )
    with path.open("rb") as file:
        beginning = file.read(32)
    hints = [hint for signature, hint in _OTHER_KINDS if beginning.startswith(signature)]
    hint = hints[0] if hints else "it is truncated, damaged or no safetensors file"
    raise CheckpointError(f"{path}: announces a header of {length} bytes, and {limit}; {hint}")


def _tensor_bytes(where: str, name: str, dtype: DType, shape: Iterable[int]) -> int:
    """Bytes of a tensor; the running product must stay below 2^64 as in the reference, even where a zero follows."""
    elements = 1
    for extent in shape:
        elements *= extent
        if elements > _MAX_INTEGER:
            break
    bits = elements * dtype.bits
    if bits > _MAX_INTEGER:
        raise CheckpointError(
            f"{where}: tensor {short(name)}: shape {short(list(shape))} of {dtype.name} has more bits than 64-bit "
            "numbers count; the header is damaged or hostile"
        )
    if bits % 8:
        raise CheckpointError(
            f"{where}: tensor {short(name)}: {elements} elements of {dtype.bits} bits ({dtype.name}) end inside a "
            "byte; the format stores whole bytes only"
        )
    return bits // 8


class _Short(reprlib.Repr):
    """Bounded in length and depth whatever the value, as what a file holds may be huge or nested without end."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120
        self.maxlevel, self.maxlist, self.maxdict = 2, 6, 3


short = _Short().repr
"""repr for error messages."""


class _Refused(Exception):  # noqa: N818 - never leaves this module
    """Raised inside the hooks of the JSON reader, where the name of the file is not known."""


class _Parser:
    """Turns JSON into a header; `where` begins every message."""

    def __init__(self, where: str) -> None:
        self.where = where

    def parse(self, header_json: bytes, data_bytes: int) -> Header:
        if len(header_json) > MAX_HEADER_BYTES:
            self.refuse(f"the header has {len(header_json)} bytes, more than the {MAX_HEADER_BYTES} the format allows")
        members = self.json(header_json)
        metadata = self.metadata(members.pop("__metadata__", {}))
        tensors = [self.tensor(name, value) for name, value in members.items()]
        tensors.sort(key=attrgetter("begin", "end"))
        self.check_cover(tensors, data_bytes)
        raw = len(header_json).to_bytes(_LENGTH_BYTES, "little") + header_json
        return Header(tuple(tensors), metadata, raw, data_bytes)

    def refuse(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self.where}: {what}; the file is damaged or not written by a safetensors library")

    def json(self, header_json: bytes) -> dict[str, Any]:
        if not header_json.startswith(b"{"):
            found = f"byte 0x{header_json[0]:02x}" if header_json else "nothing"
            self.refuse(f"the header begins with {found}, expected '{{'")
        try:
            members = json.loads(
                header_json.decode("utf-8"),
                object_pairs_hook=_object,
                parse_int=_integer,
                parse_float=_no_number,
                parse_constant=_no_number,
            )
        except UnicodeDecodeError as error:
            self.refuse(f"the header is not UTF-8 at byte {error.start}")
        except json.JSONDecodeError as error:
            self.refuse(f"the header is not JSON at character {error.pos}: {error.msg}")
        except RecursionError:
            self.refuse("the header nests lists or objects deeper than any tensor needs")
        except _Refused as error:
            self.refuse(str(error))
        return cast(dict[str, Any], members)  # an object, as it begins with a brace

    def metadata(self, value: object) -> dict[str, str]:
        if not isinstance(value, dict):
            self.refuse(f"__metadata__ is {short(value)}, expected an object of strings")
        for key, text in value.items():
            if not isinstance(text, str):
                self.refuse(f"__metadata__ entry {short(key)} is {short(text)}, expected a string")
            if not _is_text(text):
                self.refuse(f"__metadata__ entry {short(key)} holds half of a surrogate pair, which is no text")
        return value

    def tensor(self, name: str, value: object) -> TensorInfo:
        if not isinstance(value, dict):
            self.refuse(f"tensor {short(name)} is {short(value)}, expected an object with {', '.join(_KEYS)}")
        unknown = [key for key in value if key not in _KEYS]
        missing = [key for key in _KEYS if key not in value]
        if unknown or missing:
            found = f"the unknown key {short(unknown[0])}" if unknown else f"no key {missing[0]!r}"
            self.refuse(f"tensor {short(name)} has {found}, expected exactly {', '.join(_KEYS)}")
        shape = self.integers(name, "shape", value["shape"])
        offsets = self.integers(name, "data_offsets", value["data_offsets"])
        if len(offsets) != 2 or offsets[0] > offsets[1]:
            self.refuse(f"tensor {short(name)}: data_offsets is {short(list(offsets))}, expected [begin, end]")
        dtype = self.dtype(name, value["dtype"])
        expected = _tensor_bytes(self.where, name, dtype, shape)
        if offsets[1] - offsets[0] != expected:
            self.refuse(
                f"tensor {short(name)}: data_offsets span {offsets[1] - offsets[0]} bytes, but shape "
                f"{short(list(shape))} of {dtype.name} needs {expected}"
            )
        return TensorInfo(name, dtype, shape, *offsets)

    def dtype(self, name: str, value: object) -> DType:
        if not isinstance(value, str) or value not in DTYPES:
            raise CheckpointError(
                f"{self.where}: tensor {short(name)}: unknown dtype {short(value)}; known: {', '.join(DTYPES)}"
            )
        return DTYPES[value]

    def integers(self, name: str, key: str, value: object) -> tuple[int, ...]:
        if not isinstance(value, list):
            self.refuse(f"tensor {short(name)}: {key} is {short(value)}, expected a list of whole numbers")
        for number in value:
            if not isinstance(number, int) or isinstance(number, bool):
                self.refuse(f"tensor {short(name)}: {key} holds {short(number)}, expected whole numbers")
        return tuple(value)

    def check_cover(self, tensors: list[TensorInfo], data_bytes: int) -> None:
        """The tensors lie one after the other from 0 to the end of the data, nothing between, under or behind them."""
        end = 0
        for tensor in tensors:
            if tensor.begin != end:
                kind = "a hole" if tensor.begin > end else "an overlap"
                self.refuse(
                    f"tensor {short(tensor.name)} begins at byte {tensor.begin} of the data, expected {end}, "
                    f"where the one before it ends: {kind}"
                )
            end = tensor.end
        if end != data_bytes:
            found = "truncated" if data_bytes < end else "followed by bytes that belong to no tensor"
            self.refuse(f"the tensors end at byte {end} of the data and the file holds {data_bytes}: it is {found}")


def _is_text(text: str) -> bool:
    """False for lone surrogates, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused(f"the key {short(twice)} is given twice")
    for key in members:
        if not _is_text(key):
            raise _Refused(f"the key {short(key)} holds half of a surrogate pair, which is no text")
    return members


def _integer(text: str) -> int:
    # 20 digits hold 2^64 - 1; longer ones are refused unread, since reading them takes quadratic time.
    if not text.startswith("-") and len(text) <= 20 and int(text) <= _MAX_INTEGER:
        return int(text)
    raise _Refused(f"the number {short(text)} is negative or beyond 64 bits")


def _no_number(text: str) -> NoReturn:
    raise _Refused(f"the number {short(text)} is not a whole number")
