"""The superblock: 64 bytes that say where everything lies, stored armoured at both ends of a shard file."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import xxhash

from ckptguard.container.armour import CODEWORD_BYTES, MESSAGE_BYTES, armoured_bytes
from ckptguard.errors import ContainerError

MAGIC = b"\x93CKPTGRD"
VERSION = 1
BESIDE = 1
"""Flag: the payload is a file of its own beside this one."""

_NEVER_RELEASED = (
    "version 0 was a draft that was never released: restore the checkpoint with the ckptguard that wrote the file, "
    "or protect the original again"
)

_FIELDS = struct.Struct("<8sHHHHQQQQQQ")
_PAYLOAD_ALIGNMENT = 4096
_ALIGNMENT = 64


def _align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


@dataclass(frozen=True)
class Superblock:
    """Sizes and identity of a shard file.

    Attributes:
        shard, shards: index of this file in its set, and how many there are.
        metadata_bytes: of the metadata before armour.
        payload_bytes: of the payload, wherever it lies.
        parity_bytes: of the parity region.
        set_id: the same in all shards of a set.
        metadata_digest: XXH3-64 of the metadata.
        beside: whether the payload is a file of its own.
        version: of the format.
    """

    shard: int
    shards: int
    metadata_bytes: int
    payload_bytes: int
    parity_bytes: int
    set_id: int
    metadata_digest: int
    beside: bool = False
    version: int = VERSION

    def pack(self) -> bytes:
        """The 64 bytes, with their own digest last."""
        flags = BESIDE if self.beside else 0
        head = _FIELDS.pack(
            MAGIC,
            self.version,
            flags,
            self.shard,
            self.shards,
            self.metadata_bytes,
            self.payload_bytes,
            self.parity_bytes,
            self.set_id,
            self.metadata_digest,
            0,
        )[:-8]
        return head + xxhash.xxh3_64_intdigest(head).to_bytes(8, "little")

    @classmethod
    def unpack(cls, data: bytes) -> Superblock | None:
        """The superblock in `data`, or None where magic or digest deny that it is one.

        Raises ContainerError for a version or a flag this reader does not know: unknown things refuse.
        """
        if len(data) != MESSAGE_BYTES:
            return None
        magic, version, flags, shard, shards, metadata, payload, parity, set_id, digest, own = _FIELDS.unpack(data)
        if magic != MAGIC or own != xxhash.xxh3_64_intdigest(data[:-8]):
            return None
        if version != VERSION:
            raise ContainerError(
                f"the container is of format version {version}, this ckptguard reads version {VERSION}; "
                + ("use the ckptguard that wrote it, or a newer one" if version else _NEVER_RELEASED)
            )
        if flags & ~BESIDE:
            raise ContainerError(
                f"the container uses features (flags {flags:#06x}) that this ckptguard does not know; use a newer one"
            )
        return cls(shard, shards, metadata, payload, parity, set_id, digest, bool(flags & BESIDE), version)

    @property
    def metadata_stored(self) -> int:
        """Bytes of one armoured copy of the metadata."""
        return armoured_bytes(self.metadata_bytes)

    @property
    def payload_offset(self) -> int:
        """Where the payload starts in the shard file (0, in its own file, where it lies beside)."""
        return 0 if self.beside else _align(CODEWORD_BYTES + self.metadata_stored, _PAYLOAD_ALIGNMENT)

    @property
    def parity_offset(self) -> int:
        """Where the parity region starts."""
        if self.beside:
            return _align(CODEWORD_BYTES + self.metadata_stored, _ALIGNMENT)
        return _align(self.payload_offset + self.payload_bytes, _ALIGNMENT)

    @property
    def tail_offset(self) -> int:
        """Where the second copy of the metadata starts; the second superblock follows it and ends the file."""
        return _align(self.parity_offset + self.parity_bytes, _ALIGNMENT)

    @property
    def file_bytes(self) -> int:
        """Size of the whole shard file."""
        return self.tail_offset + self.metadata_stored + CODEWORD_BYTES


def looks_like_superblock(stored: bytes) -> bool:
    """Whether damaged bytes still resemble a superblock: at most a quarter of the magic's bits differ."""
    head = int.from_bytes(stored[: len(MAGIC)].ljust(len(MAGIC), b"\0"), "little")
    return (head ^ int.from_bytes(MAGIC, "little")).bit_count() <= 16
