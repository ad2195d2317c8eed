"""Metadata survives what its armour promises; a file that is no container, or lies, is refused quickly and cheaply."""

from __future__ import annotations

import io
import json
import os
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
import zstandard
from containers import Anatomy, flip, flip_bits, mixed, read_safetensors, safetensors_bytes, tensors

from ckptguard.container import sections
from ckptguard.container.armour import CORRECTS, armour, armoured_bytes, plain_message, unarmour
from ckptguard.container.sections import Section
from ckptguard.container.shard_file import ShardFile
from ckptguard.container.superblock import Superblock, looks_like_superblock
from ckptguard.errors import CkptGuardError, ContainerError, MetadataLostError, MismatchError
from ckptguard.pipeline.check import check
from ckptguard.pipeline.corrupt import corrupt
from ckptguard.pipeline.inspect import inspect
from ckptguard.pipeline.protect import protect
from ckptguard.pipeline.repair import repair
from ckptguard.pipeline.restore import restore
from ckptguard.pipeline.shard import Shard, open_set

CODEWORD_BITS = 1022
LONGEST = 1.0  # seconds a refusal may take
MOST_MEMORY = 32 << 20


# Armour --------------------------------------------------------------------------------------------------------------


def remainder(message: int) -> int:
    """message * x^510 mod g, for the generator of the format, by the school method on integers."""
    powers = [1]
    for _ in range(1022):
        powers.append(powers[-1] << 1 ^ (0x409 if powers[-1] & 0x200 else 0))
    logarithm = {value: exponent for exponent, value in enumerate(powers[:1023])}

    def times(a: int, b: int) -> int:
        return powers[(logarithm[a] + logarithm[b]) % 1023] if a and b else 0

    generator, covered = 1, set()
    for exponent in range(1, 115):
        if exponent in covered:
            continue
        coset, member = [], exponent
        while member not in coset:
            coset.append(member)
            member = member * 2 % 1023
        covered |= set(coset)
        minimal = [1]
        for member in coset:
            shifted, scaled = [*minimal, 0], [0, *(times(c, powers[member]) for c in minimal)]
            minimal = [a ^ b for a, b in zip(shifted, scaled, strict=True)]
        polynomial = int("".join(map(str, minimal)), 2)
        product = 0
        for bit in range(polynomial.bit_length()):
            product ^= generator << bit if polynomial >> bit & 1 else 0
        generator = product
    assert generator.bit_length() == 511
    rest = message << 510
    while rest.bit_length() > 510:
        rest ^= generator << (rest.bit_length() - 511)
    return rest


def test_armour_is_the_code_that_the_format_describes() -> None:
    message = np.random.default_rng(1).bytes(64)
    parity = remainder(int.from_bytes(message, "big")) << 2
    assert armour(message) == message + parity.to_bytes(64, "big")


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 700, 64 * 513])
def test_armour_gives_back_what_went_in(size: int) -> None:
    message = np.random.default_rng(size).bytes(size)
    stored = armour(message)
    assert len(stored) == armoured_bytes(size)
    assert plain_message(stored, size) == message
    decoded = unarmour(stored)
    assert decoded.message.tobytes()[:size] == message
    assert not decoded.flips.any()


def test_armour_interleaves_codewords_byte_by_byte() -> None:
    message = np.random.default_rng(2).bytes(3 * 64)
    alone = [armour(message[start : start + 64]) for start in range(0, 192, 64)]
    assert armour(message) == bytes(byte for column in zip(*alone, strict=True) for byte in column)


@pytest.mark.parametrize("flips", [1, 2, CORRECTS - 1, CORRECTS])
def test_armour_corrects_as_many_flips_as_it_promises_wherever_they_are(flips: int) -> None:
    generator = np.random.default_rng(flips)
    message = generator.bytes(512 * 64)
    rows = np.frombuffer(armour(message), np.uint8).reshape(128, 512).T
    places = [np.arange(flips), np.arange(flips) + 512 - flips // 2, CODEWORD_BITS - 1 - np.arange(flips)]
    damaged = np.empty_like(rows)
    for index, row in enumerate(rows):
        where = places[index] if index < 3 else generator.choice(CODEWORD_BITS, flips, replace=False)
        bits = np.zeros(1024, np.uint8)
        bits[where] = 1
        damaged[index] = row ^ np.packbits(bits)
    decoded = unarmour(np.ascontiguousarray(damaged.T).tobytes())
    assert (decoded.flips == flips).all()
    assert decoded.message.tobytes() == message


def test_beyond_its_reach_armour_says_so_and_leaves_what_was_read() -> None:
    generator = np.random.default_rng(3)
    message = generator.bytes(512 * 64)
    rows = np.frombuffer(armour(message), np.uint8).reshape(128, 512).T.copy()
    for row in rows:
        bits = np.zeros(1024, np.uint8)
        bits[generator.choice(CODEWORD_BITS, CORRECTS + 1, replace=False)] = 1
        row ^= np.packbits(bits)
    decoded = unarmour(np.ascontiguousarray(rows.T).tobytes())
    assert (decoded.flips == -1).all()
    assert (decoded.message == rows[:, :64]).all()


def test_a_burst_over_a_twentieth_of_an_armoured_area_is_corrected() -> None:
    message = np.random.default_rng(4).bytes(100 * 64)
    stored = bytearray(armour(message))
    for start in (0, 3000, len(stored) - 700):
        damaged = stored.copy()
        damaged[start : start + 700] = bytes(byte ^ 0xFF for byte in damaged[start : start + 700])
        decoded = unarmour(bytes(damaged))
        assert decoded.message.tobytes() == message, start


# Superblock and sections ---------------------------------------------------------------------------------------------

BLOCK = Superblock(3, 7, 12345, 1 << 40, 1 << 33, 0xFEDCBA9876543210, 0x0123456789ABCDEF, True)


def test_the_superblock_has_its_fields_where_the_format_says() -> None:
    data = BLOCK.pack()
    assert data[:8] == bytes.fromhex("93434B5054475244")
    assert struct.unpack_from("<HHHHQQQQQ", data, 8) == (
        *(1, 1, 3, 7, 12345, 1 << 40, 1 << 33),
        *(0xFEDCBA9876543210, 0x0123456789ABCDEF),
    )
    assert len(data) == 64
    assert Superblock.unpack(data) == BLOCK


def test_every_flipped_bit_of_a_superblock_is_noticed() -> None:
    data = BLOCK.pack()
    assert all(Superblock.unpack(flip_bits(data, [bit])) is None for bit in range(512))
    assert Superblock.unpack(data[:-1]) is None


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(("metadata", "payload", "parity"), [(0, 0, 0), (1, 1, 8), (64, 4096, 64), (4001, 77, 24)])
def test_regions_lie_where_the_format_says(beside: bool, metadata: int, payload: int, parity: int) -> None:
    block = Superblock(0, 1, metadata, payload, parity, 0, 0, beside)
    copy = 128 * -(-metadata // 64)
    start = -(-(128 + copy) // 4096) * 4096
    parity_offset = -(-(128 + copy) // 64) * 64 if beside else -(-(start + payload) // 64) * 64
    tail = -(-(parity_offset + parity) // 64) * 64
    assert (block.metadata_stored, block.payload_offset) == (copy, 0 if beside else start)
    assert (block.parity_offset, block.tail_offset, block.file_bytes) == (parity_offset, tail, tail + copy + 128)


def test_a_damaged_superblock_is_still_recognised_and_other_files_are_not() -> None:
    stored = armour(BLOCK.pack())
    assert all(looks_like_superblock(flip(stored, 0.05, seed)) for seed in range(50))
    assert not any(looks_like_superblock(np.random.default_rng(seed).bytes(128)) for seed in range(50))


def test_sections_give_back_what_went_in() -> None:
    given = [
        Section("INFO", b"abc" * 100, compressed=True),
        Section("DGST", b"x" * 13),
        Section("LOSS", b"", 0, False, True),
    ]
    packed = sections.pack(given)
    assert len(packed) % 8 == 0
    assert list(sections.unpack(packed, {"INFO": 0, "DGST": 0, "LOSS": 0}).values()) == given
    with_newer = sections.pack(
        [Section("NEWS", b"later", optional=True), given[0], Section("DGST", b"", 9, False, True)]
    )
    assert list(sections.unpack(with_newer, {"INFO": 0, "DGST": 0})) == ["INFO"]


def test_what_would_swell_beyond_the_limit_is_stored_uncompressed() -> None:
    data = bytes(9 << 20)
    packed = sections.pack([Section("INFO", data, compressed=True)])
    assert len(packed) > len(data)
    assert sections.unpack(packed, {"INFO": 0})["INFO"].data == data


# What outlives damage ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small container with many kinds of tensors."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "m.safetensors").write_bytes(mixed())
    protect(folder / "m.safetensors", folder / "m.ckg", bits=5, code="secded:72,64")
    return (folder / "m.ckg").read_bytes()


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The same in fixed point."""
    folder = tmp_path_factory.mktemp("coarse")
    (folder / "m.safetensors").write_bytes(mixed())
    protect(folder / "m.safetensors", folder / "m.ckg", bits=3, code="crc", representation="fixed:6")
    return (folder / "m.ckg").read_bytes()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A container whose payload is larger than 128 KiB."""
    folder = tmp_path_factory.mktemp("large")
    content = tensors(5, a=("F32", (200, 100)), b=("F32", (300, 200)), c=("F16", (20_000,)))
    (folder / "m.safetensors").write_bytes(safetensors_bytes(content))
    protect(folder / "m.safetensors", folder / "m.ckg", bits=9, code="secded:72,64")
    return (folder / "m.ckg").read_bytes()


def metadata_of(path: Path, data: bytes) -> bytes:
    path.write_bytes(data)
    with ShardFile.open(path) as file:
        return file.metadata


def test_metadata_is_read_at_an_error_rate_of_1e_2_on_every_stored_byte(small: bytes, tmp_path: Path) -> None:
    expected = Anatomy.of(small).metadata()
    for seed in range(200):
        assert metadata_of(tmp_path / "m.ckg", flip(small, 1e-2, seed)) == expected, seed


def ends(data: bytes) -> dict[str, bytes]:
    """The container without its first or last 64 KiB: gone, zeroed, ones, noise."""
    size = 64 << 10
    noise = np.random.default_rng(0).bytes(size)
    return {
        "first cut": data[size:],
        "last cut": data[:-size],
        "first zeroed": bytes(size) + data[size:],
        "last zeroed": data[:-size] + bytes(size),
        "first ones": b"\xff" * size + data[size:],
        "last ones": data[:-size] + b"\xff" * size,
        "first noise": noise + data[size:],
        "last noise": data[:-size] + noise,
    }


@pytest.mark.parametrize("loss", ends(bytes(1 << 17)))
def test_metadata_is_read_without_either_end_even_at_1e_2(loss: str, large: bytes, tmp_path: Path) -> None:
    expected = Anatomy.of(large).metadata()
    damaged = ends(large)[loss]
    assert metadata_of(tmp_path / "m.ckg", damaged) == expected
    for seed in range(5):
        assert metadata_of(tmp_path / "m.ckg", flip(damaged, 1e-2, seed)) == expected, seed


def test_copies_of_the_metadata_make_up_for_each_others_losses(small: bytes, tmp_path: Path) -> None:
    anatomy = Anatomy.of(small)
    block, count = anatomy.superblock, anatomy.superblock.metadata_stored // 128
    assert count > 3
    damaged = np.frombuffer(small, np.uint8).copy()
    for start, lost in ((128, range(0, count, 2)), (block.tail_offset, range(1, count, 2))):
        for codeword in lost:
            damaged[start + codeword + count * np.arange(60)] ^= 0x11
    assert metadata_of(tmp_path / "m.ckg", damaged.tobytes()) == anatomy.metadata()
    damaged[block.tail_offset + count * np.arange(60)] ^= 0x11
    with pytest.raises(MetadataLostError, match=r"metadata codewords .* lost"):
        metadata_of(tmp_path / "m.ckg", damaged.tobytes())


def test_metadata_that_cannot_be_read_has_a_status_of_its_own(small: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.ckg").write_bytes(flip(small, 0.12, 1))
    with pytest.raises(MetadataLostError, match=r"m\.ckg") as caught:
        check(tmp_path / "m.ckg")
    assert caught.value.exit_status == 12


# Foreign bytes and lost bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("foreign", [1, 100, 5000])
@pytest.mark.parametrize("side", ["before", "behind"])
def test_foreign_bytes_at_an_end_are_told_and_change_nothing(
    foreign: int, side: str, small: bytes, tmp_path: Path
) -> None:
    noise = np.random.default_rng(1).bytes(foreign)
    (tmp_path / "m.ckg").write_bytes(noise + small if side == "before" else small + noise)
    report = check(tmp_path / "m.ckg")
    assert report.shards[0].foreign_bytes == foreign
    assert (report.verdict, report.status) == ("correctable", 10)
    restore(tmp_path / "m.ckg", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == mixed()


def test_a_file_cut_anywhere_is_read_or_refused_and_never_wrong(small: bytes, tmp_path: Path) -> None:
    """Expected: of a file that keeps one whole superblock and a metadata copy, everything; else a clear refusal."""
    path = tmp_path / "m.ckg"
    generator = np.random.default_rng(2)
    block = Anatomy.of(small).superblock
    lengths = [
        0,
        1,
        127,
        128,
        129,
        255,
        256,
        257,
        block.payload_offset,
        block.tail_offset,
        len(small) - 128,
        len(small) - 1,
    ]
    for kept in lengths + generator.integers(0, len(small), 60).tolist():
        for data, front in ((small[:kept], False), (small[len(small) - kept :], True)):
            path.write_bytes(data)
            started = time.perf_counter()
            try:
                report = check(path)
            except ContainerError as error:
                refusal = str(error)
                assert "m.ckg" in refusal
                assert kept < 128 + block.metadata_stored or kept * 16 < len(small)
            else:
                assert report.shards[0].missing_bytes == len(small) - kept
                assert report.status in ((10, 11) if kept < len(small) else (0,)), (kept, front)
            assert time.perf_counter() - started < LONGEST


def test_a_superblock_of_another_container_at_the_end_changes_nothing(
    small: bytes, large: bytes, tmp_path: Path
) -> None:
    (tmp_path / "m.ckg").write_bytes(small[:-128] + large[-128:])
    report = check(tmp_path / "m.ckg")
    assert report.verdict == "correctable"
    assert report.shards[0].metadata is not None
    assert not report.shards[0].metadata.tail_superblock
    newer = armour(replace(Anatomy.of(small).superblock, version=99).pack())
    (tmp_path / "n.ckg").write_bytes(small[:-128] + newer)
    assert check(tmp_path / "n.ckg").verdict == "correctable"


# Files that are no containers, or lie --------------------------------------------------------------------------------


def zip_bytes() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", np.random.default_rng(0).bytes(5000))
    return stream.getvalue()


FOREIGN: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"\x93",
    "255 bytes": bytes(range(255)),
    "256 zeros": bytes(256),
    "a MiB of zeros": bytes(1 << 20),
    "random": np.random.default_rng(9).bytes(100_000),
    "a zip archive": zip_bytes(),
    "a safetensors file": mixed(),
    "a PNG": b"\x89PNG\r\n\x1a\n" + np.random.default_rng(8).bytes(3000),
    "text": b"version https://git-lfs.github.com/spec/v1\n" * 10,
}


def edit(tag: str, change: Callable[[Any], object]) -> Callable[[Anatomy], bytes]:
    return lambda anatomy: anatomy.edited(tag, change).build()


def part(position: int, **fields: Any) -> Callable[[Anatomy], bytes]:
    return edit("PLAN", lambda plan: plan["parts"][position].update(fields))


def field(name: str, value: int) -> Callable[[Anatomy], bytes]:
    return lambda anatomy: anatomy.build(**{name: value})


def raw_section(head: bytes, content: bytes = b"") -> Callable[[Anatomy], bytes]:
    return lambda anatomy: anatomy.build(anatomy.metadata() + head + content + bytes(-len(content) % 8))


def bomb(tag: str, size: int, declared: int | None = None) -> Callable[[Anatomy], bytes]:
    """A section that is `size` zeros under zstandard, padded so that it may declare them."""

    def build(anatomy: Anatomy) -> bytes:
        compressor = zstandard.ZstdCompressor(level=1)
        content = compressor.compress(bytes(size))
        head = struct.pack("<4sHHQQ", tag.encode(), 0, 1, len(content), declared or size)
        rest = [section for name, section in anatomy.sections.items() if name != tag]
        return anatomy.build(sections.pack(rest) + head + content + bytes(-len(content) % 8))

    return build


def drop(record: dict[str, Any], key: str) -> None:
    del record[key]


def swap_streams(plan: Any) -> None:
    plan["streams"].reverse()


def overlap(plan: Any) -> None:
    plan["parts"][2]["offset"] = plan["parts"][1]["offset"]


def double(plan: Any) -> None:
    plan["parts"].append(plan["parts"][-1])


def rename_file(name: Any) -> Callable[[Anatomy], bytes]:
    return edit("PLAN", lambda plan: plan["sources"][0].update(name=name))


HUGE = 1 << 61

LIES: dict[str, Callable[[Anatomy], bytes]] = {
    "version 99": field("version", 99),
    "version 0": field("version", 0),
    "version 2": field("version", 2),
    **{f"{name} {value:#x}": field(name, value)
       for name in ("metadata_bytes", "payload_bytes", "parity_bytes")
       for value in (1 << 20, 1 << 31, 1 << 40, (1 << 64) - 1)},
    "metadata of no bytes": field("metadata_bytes", 0),
    "metadata digest": field("metadata_digest", 5),
    "set id": field("set_id", 5),
    "shard 1 of 1": field("shard", 1),
    "shard 65535 of 65535": lambda a: a.build(shard=65535, shards=65535),
    "no shards": field("shards", 0),
    "seven shards": field("shards", 7),
    "no metadata": lambda a: a.build(b""),
    "metadata of zeros": lambda a: a.build(bytes(4096)),
    "metadata of noise": lambda a: a.build(np.random.default_rng(1).bytes(999)),
    "section head cut": lambda a: a.build(a.metadata() + b"INFO"),
    "section unknown": raw_section(struct.pack("<4sHHQQ", b"NEWS", 0, 0, 0, 0)),
    "section newer": raw_section(struct.pack("<4sHHQQ", b"LOSS", 1, 0, 0, 0)),
    "section flags": raw_section(struct.pack("<4sHHQQ", b"LOSS", 0, 4, 0, 0)),
    "section twice": lambda a: a.build(a.metadata() + a.metadata()),
    "section stored bytes": raw_section(struct.pack("<4sHHQQ", b"LOSS", 0, 2, (1 << 64) - 1, 8)),
    "section plain bytes": raw_section(struct.pack("<4sHHQQ", b"LOSS", 0, 2, 8, (1 << 64) - 1), bytes(8)),
    "section sizes differ": raw_section(struct.pack("<4sHHQQ", b"LOSS", 0, 2, 8, 32), bytes(8)),
    "no zstandard": raw_section(struct.pack("<4sHHQQ", b"LOSS", 0, 3, 8, 32), b"nonsense"),
    "bomb 8 GiB declared": bomb("PLAN", 1 << 20, 8 << 30),
    "bomb 1 GiB": bomb("PLAN", 1 << 30),
    "bomb 16 MiB": bomb("HEAD", 16 << 20),
    "bomb declares less": bomb("PLAN", 8 << 20, 1 << 20),
    **{f"no {tag}": lambda a, tag=tag: a.changed(tag, None).build() for tag in ("INFO", "PLAN", "HEAD", "DGST")},
    **{f"{tag} is {value!r}": lambda a, tag=tag, value=value: a.changed(tag, value).build()
       for tag in ("INFO", "PLAN")
       for value in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"1" * 5000, b"[]", b"{}", b'"x"',
                     b'{"parts":NaN}')},
    "INFO without folder": edit("INFO", lambda info: drop(info, "folder")),
    "INFO shards a number": edit("INFO", lambda info: info.update(shards=3)),
    "INFO no shards": edit("INFO", lambda info: info.update(shards=[])),
    "INFO more shards": edit("INFO", lambda info: info.update(shards=["m.ckg", "n.ckg"])),
    "INFO settings a list": edit("INFO", lambda info: info.update(settings=[1])),
    **{f"shard name {name!r}": edit("INFO", lambda info, name=name: info.update(shards=[name]))
       for name in ("", ".", "..", "../m.ckg", "/etc/passwd", "a\\b", "a\0b", None, 3, "\ud800", "x" * 300)},
    **{f"source name {name!r}": rename_file(name)
       for name in ("", ".", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "a/", "a\\b", "a\0b", None, 7, "\udcff",
                    "x" * 300, "a/" * 1600 + "b")},
    "source header a string": edit("PLAN", lambda plan: plan["sources"][0].update(header="x")),
    "source header too long": edit("PLAN", lambda plan: plan["sources"][0].update(header=1 << 50)),
    "source header none": edit("PLAN", lambda plan: plan["sources"][0].update(header=0)),
    "source bytes": edit("PLAN", lambda plan: plan["sources"][0].update(bytes=HUGE)),
    "source bytes fewer": edit("PLAN", lambda plan: plan["sources"][0].update(bytes=100)),
    "sources a number": edit("PLAN", lambda plan: plan.update(sources=3)),
    "sources a record": edit("PLAN", lambda plan: plan.update(sources={"a": 1})),
    "no sources": edit("PLAN", lambda plan: plan.update(sources=[])),
    "sources twice": edit("PLAN", lambda plan: plan["sources"].append(dict(plan["sources"][0], header=0))),
    "parts a number": edit("PLAN", lambda plan: plan.update(parts=3)),
    "no parts": edit("PLAN", lambda plan: plan.update(parts=[])),
    "parts overlap": edit("PLAN", overlap),
    "part twice": edit("PLAN", double),
    "streams swapped": edit("PLAN", swap_streams),
    "no streams": edit("PLAN", lambda plan: plan.update(streams=[])),
    "stream words": edit("PLAN", lambda plan: plan["streams"][0].update(words=HUGE)),
    "stream tiles": edit("PLAN", lambda plan: plan["streams"][0].update(unit_tiles=1)),
    "stream parity": edit("PLAN", lambda plan: plan["streams"][1].update(parity=8)),
    **{f"part {key} {value!r}": part(1, **{key: value})
       for key, values in {
           "source": (1, -1, HUGE, "0", None, 0.0),
           "kind": ("header", "file", "?", None, []),
           "name": ("other", "", None, {}),
           "dtype": ("F16", "U8", "F99", None, []),
           "shape": ([1], [-1], [HUGE, HUGE], "x", [None]),
           "offset": (0, 1, -1, HUGE, 1 << 80, None, 1.5),
           "bytes": (0, 1, -1, HUGE, 1 << 80, True),
           "stored": (0, 1, HUGE, -8),
           "representation": ("fixed:8", "native:", " native", "fixed:8,c=1e999", "fixed:99", "x", None),
           "mask": ("", "1", "2" * 64, "1" * 63, None, ["1"] * 64),
           "code": ("", "auto", "bch:1,1", "bch:16383,1", "BCH:63,45", "crc:1", "secded: 72,64", "os.system", None),
       }.items()
       for value in values},
    "device a list": edit("PLAN", lambda plan: plan.update(device=["x"])),
    "device a text": edit("PLAN", lambda plan: plan.update(device="x")),
    "device channel": edit("PLAN", lambda plan: plan.update(device={"name": "x", "channel": 3})),
    "header part elsewhere": part(0, offset=8),
    "header part protected": part(0, mask="11111111", code="crc"),
    "another header": lambda a: a.changed("HEAD", a.sections["HEAD"].data[:-1] + b"x").build(),
    "shorter header": lambda a: a.changed("HEAD", a.sections["HEAD"].data[:-1]).build(),
    "digests fewer": lambda a: a.changed("DGST", a.sections["DGST"].data[:-8]).build(),
    "digests cut": lambda a: a.changed("DGST", a.sections["DGST"].data[:-1]).build(),
    "scales cut": lambda a: a.changed("SCAL", bytes(7)).build(),
    "scales infinite": lambda a: a.changed("SCAL", np.full(12, np.inf).tobytes()).build(),
    "scales negative": lambda a: a.changed("SCAL", np.full(12, -1.0).tobytes()).build(),
    "losses cut": lambda a: a.changed("LOSS", bytes(31)).build(),
}  # fmt: skip


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Callable[[bytes], CkptGuardError]]:
    """Write bytes as a container, give them to every verb, and return the error that each of them raises.

    Nothing may be written, nothing large allocated, nothing slow.
    """
    path = tmp_path / "hostile.ckg"

    def attack(data: bytes) -> CkptGuardError:
        path.write_bytes(data)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        verbs: list[Callable[[], object]] = [
            lambda: check(path),
            lambda: inspect(path),
            lambda: restore(path, tmp_path / "out"),
            lambda: repair(path, tmp_path / "out.ckg"),
            lambda: repair(path, in_place=True),
            lambda: corrupt(path, tmp_path / "worn.ckg", seed=1, channel="bsc:1e-3"),
        ]
        errors = []
        for verb in verbs:
            started = time.perf_counter()
            with pytest.raises(CkptGuardError) as caught:
                verb()
            assert time.perf_counter() - started < LONGEST
            errors.append(caught.value)
            assert "hostile.ckg" in str(caught.value)
            assert len(str(caught.value)) < 1000
        assert len({(type(error), str(error)) for error in errors}) == 1
        assert tracemalloc.get_traced_memory()[1] - before < MOST_MEMORY
        assert list(tmp_path.iterdir()) == [path]
        assert path.read_bytes() == data
        return errors[0]

    tracemalloc.start()
    try:
        yield attack
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_that_are_no_containers_are_refused(kind: str, hostile: Callable[[bytes], CkptGuardError]) -> None:
    error = hostile(FOREIGN[kind])
    assert type(error) is ContainerError
    assert error.exit_status == 1
    assert "ckptguard protect" in str(error) or "empty, truncated or another file" in str(error)


@pytest.mark.parametrize("lie", LIES)
def test_containers_that_lie_are_refused(lie: str, small: bytes, hostile: Callable[[bytes], CkptGuardError]) -> None:
    error = hostile(LIES[lie](Anatomy.of(small)))
    assert type(error) in (ContainerError, MetadataLostError, MismatchError)
    assert error.exit_status in (1, 12, 13)
    assert ";" in str(error)  # what is wrong; what to do


def test_a_version_that_is_not_known_says_what_to_use(small: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.ckg").write_bytes(LIES["version 99"](Anatomy.of(small)))
    with pytest.raises(ContainerError, match=r"m\.ckg: .*version 99, this ckptguard reads version 1; use"):
        check(tmp_path / "m.ckg")


def test_a_draft_that_was_never_released_says_so(small: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.ckg").write_bytes(LIES["version 0"](Anatomy.of(small)))
    with pytest.raises(ContainerError, match=r"version 0, this ckptguard reads version 1; .* never released: restore"):
        check(tmp_path / "m.ckg")


def test_the_format_is_version_1_where_it_always_stands(small: bytes) -> None:
    assert (small[:8], small[8:10]) == (b"\x93CKPTGRD", b"\x01\x00")


@pytest.mark.parametrize("flags", [2, 3, 0x8000])
def test_flags_that_are_not_known_are_refused(flags: int, small: bytes, tmp_path: Path) -> None:
    block = bytearray(Anatomy.of(small).superblock.pack())
    block[10:12] = flags.to_bytes(2, "little")
    block[56:] = xxhash.xxh3_64_intdigest(bytes(block[:56])).to_bytes(8, "little")
    coded = armour(bytes(block))
    (tmp_path / "m.ckg").write_bytes(coded + small[128:-128] + coded)
    with pytest.raises(ContainerError, match=r"features .* does not know"):
        check(tmp_path / "m.ckg")


def test_an_optional_section_that_is_not_known_is_skipped(small: bytes, tmp_path: Path) -> None:
    news = struct.pack("<4sHHQQ", b"CERT", 3, 2, 5, 5) + b"later\0\0\0"
    anatomy = Anatomy.of(small)
    (tmp_path / "m.ckg").write_bytes(anatomy.build(news + anatomy.metadata()))
    assert check(tmp_path / "m.ckg").verdict == "intact"


@pytest.mark.parametrize("region", [0, 1, 2])
def test_wrong_digests_are_reported_and_not_believed(region: int, small: bytes, tmp_path: Path) -> None:
    anatomy = Anatomy.of(small)
    digests = np.frombuffer(anatomy.sections["DGST"].data, "<u8").copy()
    parity = sum(bool(stream["parity"]) for stream in anatomy.record("PLAN")["streams"])
    pieces = (len(digests) - parity) // 2
    digests[[slice(1, pieces), slice(0, 2 * pieces), slice(2 * pieces, None)][region]] ^= 1
    (tmp_path / "m.ckg").write_bytes(anatomy.changed("DGST", digests.tobytes()).build())
    report = check(tmp_path / "m.ckg")
    assert report.verdict == ["protected-intact", "uncorrectable", "correctable"][region]


def test_a_set_whose_metadata_is_not_its_own_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(mixed(1))
    (folder / "b.safetensors").write_bytes(safetensors_bytes(tensors(2, w=("F32", (30,)))))
    protect(folder, tmp_path / "set", code="secded:72,64")
    anatomy = Anatomy.of((tmp_path / "set" / "b.ckg").read_bytes())
    digests = bytes(len(anatomy.sections["DGST"].data))
    (tmp_path / "set" / "b.ckg").write_bytes(anatomy.changed("DGST", digests).build())
    with pytest.raises(ContainerError, match="metadata of the shards is not that of their set"):
        check(tmp_path / "set")


def test_no_folder_pipe_or_missing_file_is_read_as_a_shard(small: bytes, tmp_path: Path) -> None:
    (tmp_path / "folder.ckg").mkdir()
    os.mkfifo(tmp_path / "pipe.ckg")
    for name, told in (("folder.ckg", "no shard files"), ("pipe.ckg", "no regular file"), ("none.ckg", "no such file")):
        with pytest.raises(ContainerError, match=told):
            check(tmp_path / name)
    with pytest.raises(ContainerError, match=r"is a folder|no regular file"):
        check(tmp_path)
    (tmp_path / "z.ckg").write_bytes(small)
    assert check(tmp_path).verdict == "intact"


def test_a_payload_beside_that_is_gone_or_far_too_short_is_told(tmp_path: Path) -> None:
    original = tmp_path / "m.safetensors"
    original.write_bytes(mixed())
    protect(original, sidecar=True, code="secded:72,64")
    original.write_bytes(mixed()[:100])
    with pytest.raises(ContainerError, match=r"m\.safetensors\.ckg: declares a payload"):
        check(tmp_path / "m.safetensors.ckg")
    original.unlink()
    with pytest.raises(ContainerError, match=r"m\.safetensors: there is no such file.* must stand beside it"):
        check(tmp_path / "m.safetensors.ckg")


def test_a_sidecar_that_declares_a_huge_payload_allocates_nothing(tmp_path: Path) -> None:
    original = tmp_path / "m.safetensors"
    original.write_bytes(mixed())
    protect(original, sidecar=True, code="secded:72,64")
    sidecar = tmp_path / "m.safetensors.ckg"
    anatomy = Anatomy.of(sidecar.read_bytes())

    def swell(plan: Any) -> None:
        for entry in plan["parts"]:
            entry["bytes"] = entry["stored"] = 1 << 50

    sidecar.write_bytes(anatomy.edited("PLAN", swell).build(payload_bytes=len(anatomy.record("PLAN")["parts"]) << 50))
    tracemalloc.start()
    with pytest.raises(ContainerError):
        check(sidecar)
    assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    tracemalloc.stop()


# Fuzz ----------------------------------------------------------------------------------------------------------------

STRANGE = [
    None,
    True,
    -1,
    0,
    1,
    2,
    1 << 31,
    1 << 61,
    1 << 64,
    1.5,
    "",
    "x",
    "1" * 32,
    "bch:63,45",
    "fixed:8",
    [],
    {},
    [[]],
]


def leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from leaves(value[key])


def mutate(record: Any, generator: np.random.Generator) -> None:
    """One to three changes: a value replaced by a strange one, taken from elsewhere, changed a little, or removed."""
    for _ in range(generator.integers(1, 4)):
        places = list(leaves(record))
        if not places:
            return
        holder, key = places[generator.integers(len(places))]
        action = generator.integers(4)
        if action == 0:
            holder[key] = STRANGE[generator.integers(len(STRANGE))]
        elif action == 1:
            other, name = places[generator.integers(len(places))]
            holder[key] = json.loads(json.dumps(other[name])) if name in other or isinstance(other, list) else None
        elif action == 2 and isinstance(holder[key], int):
            holder[key] += int(generator.choice([-8, -1, 1, 8, 4096]))
        elif isinstance(holder, dict):
            del holder[key]
        else:
            holder.insert(key, holder[key])


def judge(path: Path, out: Path, original: dict[str, bytes]) -> None:
    """Only an error of the package, or a report that is true, may come out."""
    started = time.perf_counter()
    try:
        report = restore(path, out, overwrite=True)
        with open_set(path) as shards:
            parts = {part.name: part for shard in shards for part in shard.plan.parts}
        checked, _ = check(path), inspect(path)
    except CkptGuardError as error:
        refusal = str(error)
        assert path.name in refusal
        return
    finally:
        assert time.perf_counter() - started < 2 * LONGEST
    assert {tensor.name: tensor.state for tensor in checked.tensors} == {t.name: t.state for t in report.tensors}
    if out.is_file() and report.exact and set(original) <= set(parts):
        assert read_safetensors(out.read_bytes()) == original


@pytest.mark.parametrize("kind", ["native", "fixed point"])
def test_metadata_changed_at_random_gives_errors_or_true_reports(
    kind: str, small: bytes, coarse: bytes, tmp_path: Path
) -> None:
    data = small if kind == "native" else coarse
    (tmp_path / "whole.ckg").write_bytes(data)
    restore(tmp_path / "whole.ckg", tmp_path / "whole")
    anatomy, original = Anatomy.of(data), read_safetensors((tmp_path / "whole").read_bytes())
    for seed in range(300):
        generator = np.random.default_rng(seed)
        record = anatomy.record(tag := ("PLAN", "PLAN", "INFO")[seed % 3])
        mutate(record, generator)
        changed = anatomy.changed(tag, record)
        path = tmp_path / f"fuzz-{seed}.ckg"
        path.write_bytes(changed.build())
        judge(path, tmp_path / "out", original)
        path.unlink()


def test_bytes_changed_at_random_give_errors_or_true_reports(small: bytes, tmp_path: Path) -> None:
    anatomy, original = Anatomy.of(small), read_safetensors(mixed())
    metadata = anatomy.metadata()
    for seed in range(300):
        generator = np.random.default_rng(1000 + seed)
        data = bytearray(metadata if seed % 2 else small)
        for _ in range(generator.integers(1, 6)):
            start = int(generator.integers(len(data)))
            match generator.integers(4):
                case 0:
                    data[start] ^= 1 << int(generator.integers(8))
                case 1:
                    data[start : start + int(generator.integers(1, 200))] = generator.bytes(
                        int(generator.integers(0, 200))
                    )
                case 2:
                    del data[start : start + int(generator.integers(1, 3000))]
                case _:
                    data[start:start] = data[: int(generator.integers(1, 300))]
        path = tmp_path / f"fuzz-{seed}.ckg"
        path.write_bytes(anatomy.build(bytes(data)) if seed % 2 else bytes(data))
        judge(path, tmp_path / "out", original)
        path.unlink()


def test_a_shard_is_closed_when_its_metadata_is_refused(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.ckg"
    path.write_bytes(LIES["no streams"](Anatomy.of(small)))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - descriptors, not files
    for _ in range(5):
        with pytest.raises(ContainerError):
            Shard.open(path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
