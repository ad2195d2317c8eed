"""Checkpoints and containers for the tests: made, taken apart, put together again, damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ckptguard.container import sections
from ckptguard.container.armour import armour, plain_message
from ckptguard.container.sections import Section
from ckptguard.container.superblock import Superblock

KNOWN = {"INFO": 0, "PLAN": 0, "HEAD": 0, "DGST": 0, "SCAL": 0, "LOSS": 0, "GRDS": 0, "POST": 0}
WORD_BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "I64": 64,
    "U8": 8,
    "BOOL": 8,
    "C64": 32,
    "F4": 8,
}
ELEMENT_BITS = WORD_BITS | {"C64": 64, "F4": 4}

Bytes = npt.NDArray[np.uint8]
Tensors = Mapping[str, tuple[str, tuple[int, ...], bytes]]


def tensors(seed: int, **layout: tuple[str, tuple[int, ...]]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """name -> (dtype, shape, bytes): normal numbers for the floats that numpy has, random bytes otherwise."""
    generator = np.random.default_rng(seed)
    made = {}
    for name, (dtype, shape) in layout.items():
        count = int(np.prod(shape, dtype=np.int64))
        if dtype in ("F64", "F32", "F16"):
            data = (generator.standard_normal(count) * 0.1).astype(f"<f{WORD_BITS[dtype] // 8}").tobytes()
        elif dtype == "BF16":
            data = ((generator.standard_normal(count) * 0.1).astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        else:
            data = generator.integers(0, 2 if dtype == "BOOL" else 256, count * ELEMENT_BITS[dtype] // 8)
            data = data.astype(np.uint8).tobytes()
        made[name] = (dtype, shape, data)
    return made


def safetensors_bytes(content: Tensors, **metadata: str) -> bytes:
    """A safetensors file, its tensors in the order given."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    begin = 0
    for name, (dtype, shape, data) in content.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + len(data)]}
        begin += len(data)
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in content.values())


def read_safetensors(data: bytes) -> dict[str, bytes]:
    """name -> bytes of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    places = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: data[8 + length + begin : 8 + length + end] for name, (begin, end) in places.items()}


MIXED = {
    "weight": ("F32", (70, 101)),
    "half": ("F16", (333,)),
    "brain": ("BF16", (5, 77)),
    "eighth": ("F8_E4M3", (61,)),
    "double": ("F64", (19,)),
    "complex": ("C64", (11,)),
    "steps": ("I64", ()),
    "flags": ("BOOL", (13,)),
    "nothing": ("F32", (0, 4)),
    "packed": ("F4", (6,)),
    "名": ("U8", (9,)),
}
"""Every width of word, odd sizes, an empty and a 0-dimensional tensor."""


def mixed(seed: int = 0) -> bytes:
    """A safetensors file with tensors of many kinds."""
    return safetensors_bytes(tensors(seed, **MIXED), format="pt", note="é")


@dataclass(frozen=True)
class Anatomy:
    """A shard file in its pieces, whose plain forms may be changed and put together again."""

    superblock: Superblock
    sections: dict[str, Section]
    payload: bytes
    parity: bytes

    @classmethod
    def of(cls, data: bytes) -> Anatomy:
        """Take an undamaged shard file apart."""
        block = Superblock.unpack(plain_message(data[:128], 64))
        assert block is not None
        metadata = plain_message(data[128 : 128 + block.metadata_stored], block.metadata_bytes)
        payload = b"" if block.beside else data[block.payload_offset :][: block.payload_bytes]
        return cls(block, sections.unpack(metadata, KNOWN), payload, data[block.parity_offset :][: block.parity_bytes])

    def record(self, tag: str) -> Any:
        """The JSON of a section."""
        return json.loads(self.sections[tag].data)

    def changed(self, tag: str, value: Any) -> Anatomy:
        """With another content of a section: bytes, something for JSON, or None to leave it out."""
        rest = dict(self.sections)
        if value is None:
            del rest[tag]
        else:
            data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
            rest[tag] = replace(rest.get(tag, Section(tag, b"")), data=data)
        return replace(self, sections=rest)

    def edited(self, tag: str, edit: Callable[[Any], object]) -> Anatomy:
        """With the JSON of a section changed in place by `edit`."""
        record = self.record(tag)
        edit(record)
        return self.changed(tag, record)

    def metadata(self) -> bytes:
        """The metadata, packed."""
        return sections.pack(list(self.sections.values()))

    def build(self, metadata: bytes | None = None, **fields: Any) -> bytes:
        """The shard file again, all digests right; `fields` of the superblock override what follows from the rest."""
        metadata = self.metadata() if metadata is None else metadata
        digest = xxhash.xxh3_64_intdigest(metadata)
        right = replace(
            self.superblock,
            metadata_bytes=len(metadata),
            payload_bytes=self.superblock.payload_bytes if self.superblock.beside else len(self.payload),
            parity_bytes=len(self.parity),
            metadata_digest=digest,
            set_id=digest if self.superblock.shards == 1 else self.superblock.set_id,
        )
        block, coded = armour(replace(right, **fields).pack()), armour(metadata)
        data = bytearray(right.file_bytes)
        places = [(0, block), (128, coded), (right.parity_offset, self.parity)]
        places += [(right.tail_offset, coded), (right.file_bytes - 128, block)]
        places += [] if right.beside else [(right.payload_offset, self.payload)]
        for offset, piece in places:
            data[offset : offset + len(piece)] = piece
        return bytes(data)


def flip(data: bytes, rate: float, seed: int) -> bytes:
    """A copy with every bit flipped with probability `rate`."""
    generator = np.random.default_rng(seed)
    bits = generator.random(8 * len(data)) < rate
    return (np.frombuffer(data, np.uint8) ^ np.packbits(bits)).tobytes()


def flip_bits(data: bytes, bits: npt.ArrayLike) -> bytes:
    """A copy with the given bits flipped; bit 8 * b + i is bit i (0 = least significant) of byte b."""
    flips = np.zeros(8 * len(data), np.uint8)
    flips[np.asarray(bits, np.int64)] ^= 1
    return (np.frombuffer(data, np.uint8) ^ np.packbits(flips, bitorder="little")).tobytes()


def distance(one: bytes | Bytes, other: bytes | Bytes) -> int:
    """Bits that differ."""
    a, b = (np.frombuffer(each, np.uint8) for each in (one, other))
    return int(np.bitwise_count(a ^ b).sum())


def state_of(path: Path) -> dict[str, tuple[str, int]]:
    """name -> (digest, time of change) of a file or of all below a folder: equal iff nothing was touched."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(f): (hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns) for f in files}


def protected_mask(mask: str, dtype: str, count: int) -> Bytes:
    """(count,) bytes with a bit set for every protected bit of native elements, worked out element by element."""
    word = int(mask, 2).to_bytes(WORD_BITS[dtype] // 8, "little")
    return np.frombuffer((word * (count // len(word) + 1))[:count], np.uint8)
