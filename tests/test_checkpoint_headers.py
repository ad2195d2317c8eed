"""Our reader of safetensors headers against the reference library, over well-formed, odd and hostile headers."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from ckptguard.checkpoint import safetensors as headers
from ckptguard.checkpoint.safetensors import (
    MAX_HEADER_BYTES,
    Spelled,
    parse_header,
    read_header,
    tensors_of,
    write_header,
)
from ckptguard.dtypes import DTYPES
from ckptguard.errors import CheckpointError


def one(dtype: str = '"U8"', shape: str = "[1]", offsets: str = "[0,1]", extra: str = "") -> str:
    return f'{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{extra}}}'


def named(*tensors: str) -> str:
    return "{" + ",".join(f'"{name}":{text}' for name, text in zip("abcdef", tensors, strict=False)) + "}"


# What both readers accept: header, bytes of data.
ACCEPTED: dict[str, tuple[str | bytes, int]] = {
    "nothing": ("{}", 0),
    "padding": ("{}     \n\t\r ", 0),
    "metadata only": ('{"__metadata__":{"format":"pt","":"\\u0000\\n"}}', 0),
    "escaped metadata key": ('{"__metadata\\u005f_":{"a":"1"}}', 0),
    "a pair of surrogates": ('{"__metadata__":{"a":"\\ud83d\\ude00"}}', 0),
    "one tensor": (named(one()), 1),
    "blanks between tokens": ('{ "a" :\n{"dtype":"U8", "shape":[ 1 ],\t"data_offsets":[0 ,1]} }', 1),
    "0 dimensions": (named(one(shape="[]")), 1),
    "empty tensor": (named(one(shape="[0]", offsets="[0,0]")), 0),
    "empty tensors at both ends": (
        named(one(shape="[0]", offsets="[0,0]"), one(), one(shape="[3,0]", offsets="[1,1]")), 1,
    ),
    "data in another order than names": (named(one(offsets="[1,2]"), one()), 2),
    "empty name": (f'{{"":{one()}}}', 1),
    "names in many scripts": ('{"слой.权重.وزن.🧠":' + one() + "}", 1),
    "escaped name": ('{"a\\/\\u0041\\"":' + one() + "}", 1),
    "odd but legal characters": (('{"\x7f\u2028":' + one() + "}"), 1),
    "escaped key of a tensor": ('{"a":{"dtype":"U8","sh\\u0061pe":[1],"data_offsets":[0,1]}}', 1),
    "keys in another order": ('{"a":{"data_offsets":[0,1],"shape":[1],"dtype":"U8"}}', 1),
    "packed 4-bit floats": (named(one('"F4"', "[2]")), 1),
    "packed 6-bit floats": (named(one('"F6_E2M3"', "[4]", "[0,3]")), 3),
    "huge extent of an empty tensor": (named(one(shape="[0,18446744073709551615,2]", offsets="[0,0]")), 0),
    "largest extent that fits": (named(one(shape="[2305843009213693951,0]", offsets="[0,0]")), 0),
}  # fmt: skip

# What both refuse, and a word our message must hold.
REFUSED: dict[str, tuple[str | bytes, int, str]] = {
    "no bytes": ("", 0, "begins with nothing"),
    "byte order mark": (b"\xef\xbb\xbf{}", 0, "0xef"),
    "a list": ("[]", 0, "begins with byte 0x5b"),
    "unclosed": ("{", 0, "not JSON"),
    "trailing text": ("{}x", 0, "not JSON"),
    "trailing zero byte": ("{}\0", 0, "not JSON"),
    "trailing comma": (named(one(shape="[1,]")), 1, "not JSON"),
    "no UTF-8": (b'{"\xff":1}', 0, "not UTF-8 at byte 2"),
    "UTF-8 of a surrogate": (b'{"\xed\xa0\x80":1}', 0, "not UTF-8"),
    "overlong UTF-8": (b'{"\xc0\xaf":1}', 0, "not UTF-8"),
    "lone surrogate in a name": ('{"\\ud800":' + one() + "}", 1, "surrogate"),
    "lone low surrogate": ('{"__metadata__":{"a":"\\udc00"}}', 0, "surrogate"),
    "surrogates in the wrong order": ('{"__metadata__":{"\\ude00\\ud83d":"a"}}', 0, "surrogate"),
    "control character in a name": ('{"a\t":' + one() + "}", 1, "not JSON"),
    "NaN": ('{"a":NaN}', 0, "not a whole number"),
    "Infinity in a shape": (named(one(shape="[Infinity]")), 1, "not a whole number"),
    "deep nesting": ('{"a":' + "[" * 100_000, 0, "deeper"),
    "nesting inside a shape": (named(one(shape="[" * 200 + "]" * 200)), 1, "holds"),
    "metadata twice": ('{"__metadata__":{},"__metadata__":{}}', 0, "given twice"),
    "metadata with a number": ('{"__metadata__":{"a":1}}', 0, "expected a string"),
    "metadata with an object": ('{"__metadata__":{"a":{}}}', 0, "expected a string"),
    "metadata as a list": ('{"__metadata__":[["a","b"]]}', 0, "expected an object"),
    "tensor null": ('{"a":null}', 0, "expected an object"),
    "tensor a string": ('{"a":"U8"}', 0, "expected an object"),
    "key of a tensor twice": (named(one(extra=',"dtype":"U8"')), 1, "given twice"),
    "no offsets": ('{"a":{"dtype":"U8","shape":[1]}}', 1, "no key 'data_offsets'"),
    "no dtype": ('{"a":{"shape":[1],"data_offsets":[0,1]}}', 1, "no key 'dtype'"),
    "unknown dtype": (named(one('"F12"')), 1, "known: BOOL, F4"),
    "dtype in lower case": (named(one('"u8"')), 1, "known: BOOL, F4"),
    "dtype null": (named(one("null")), 1, "unknown dtype"),
    "dtype a list": (named(one('["U8"]')), 1, "unknown dtype"),
    "dtype a number": (named(one("4")), 1, "unknown dtype"),
    "shape null": (named(one(shape="null")), 1, "expected a list"),
    "shape a number": (named(one(shape="1")), 1, "expected a list"),
    "extent with a fraction": (named(one(shape="[1.0]")), 1, "not a whole number"),
    "extent with an exponent": (named(one(shape="[1e0]")), 1, "not a whole number"),
    "extent true": (named(one(shape="[true]")), 1, "expected whole numbers"),
    "extent a string": (named(one(shape='["1"]')), 1, "expected whole numbers"),
    "extent null": (named(one(shape="[null]")), 1, "expected whole numbers"),
    "extent negative": (named(one(shape="[-1]")), 1, "negative"),
    "extent minus zero": (named(one(shape="[-0]", offsets="[0,0]")), 0, "negative"),
    "extent with leading zero": (named(one(shape="[01]")), 1, "not JSON"),
    "extent with plus": (named(one(shape="[+1]")), 1, "not JSON"),
    "extent 2^64": (named(one(shape="[18446744073709551616,0]", offsets="[0,0]")), 0, "64 bits"),
    "a million extents": (named(one(shape="[" + "2," * 1_000_000 + "1]")), 1, "64-bit"),
    "a million ones": (named(one(shape="[" + "1," * 1_000_000 + "1]", offsets="[0,2]")), 2, "needs 1"),
    "a name of a million letters": ('{"' + "x" * 1_000_000 + '":' + one('"F"') + "}", 1, "unknown dtype"),
    "nesting of hundreds": ('{"a":' + "[" * 900 + "]" * 900 + "}", 0, ""),
    "extent of a million digits": (named(one(shape="[" + "9" * 1_000_000 + "]")), 1, "64 bits"),
    "product beyond 64 bits": (named(one(shape="[4294967296,4294967296]")), 1, "64-bit"),
    "product beyond 64 bits before a zero": (
        named(one(shape="[18446744073709551615,2,0]", offsets="[0,0]")), 0, "64-bit",
    ),
    "bits beyond 64 bits": (named(one('"F64"', "[1152921504606846976]", "[0,0]")), 0, "64-bit"),
    "product that wraps to the right size": (named(one(shape="[18446744073709551615,18446744073709551615]")), 1, "64"),
    "offsets of three": (named(one(offsets="[0,1,2]")), 1, "expected [begin, end]"),
    "offsets of one": (named(one(offsets="[0]")), 1, "expected [begin, end]"),
    "offsets an object": (named(one(offsets='{"0":0,"1":1}')), 1, "expected a list"),
    "offsets backwards": (named(one(offsets="[1,0]")), 1, "expected [begin, end]"),
    "offsets negative": (named(one(offsets="[-1,0]")), 1, "negative"),
    "offsets 2^64 - 1": (named(one(offsets="[18446744073709551615,18446744073709551615]", shape="[0]")), 0, "a hole"),
    "too few bytes": (named(one(shape="[2]")), 1, "needs 2"),
    "too many bytes": (named(one(shape="[1]", offsets="[0,2]")), 2, "needs 1"),
    "half a byte": (named(one('"F4"', "[3]", "[0,1]")), 1, "inside a byte"),
    "half a byte rounded up": (named(one('"F4"', "[3]", "[0,2]")), 2, "inside a byte"),
    "beginning behind 0": (named(one(offsets="[1,2]")), 2, "a hole"),
    "a hole": (named(one(), one(offsets="[2,3]")), 3, "a hole"),
    "an overlap": (named(one(shape="[2]", offsets="[0,2]"), one(offsets="[1,2]")), 2, "an overlap"),
    "the same bytes twice": (named(one(), one()), 1, "an overlap"),
    "an empty tensor inside another": (
        named(one(shape="[0]", offsets="[1,1]"), one(shape="[2]", offsets="[0,2]")), 2, "an overlap",
    ),
    "trailing byte": (named(one()), 2, "belong to no tensor"),
    "missing byte": (named(one()), 0, "truncated"),
    "data without tensors": ("{}", 1, "belong to no tensor"),
}  # fmt: skip

# What the reference lets pass and we do not, and why our message says so.
STRICTER: dict[str, tuple[str | bytes, int, str]] = {
    "blank before the brace": (" {}", 0, "begins with byte 0x20"),
    "name twice": ('{"a":' + one() + ',"a":' + one() + "}", 1, "given twice"),
    "metadata entry twice": ('{"__metadata__":{"a":"1","a":"2"}}', 0, "given twice"),
    "metadata null": ('{"__metadata__":null}', 0, "expected an object"),
    "unknown key": (named(one(extra=',"x":1')), 1, "unknown key 'x'"),
    "tensor as a list": ('{"a":["U8",[1],[0,1]]}', 1, "expected an object"),
    "dtype as an object": (named(one('{"U8":null}')), 1, "unknown dtype"),
}


def file_image(header: str | bytes, data_bytes: int) -> bytes:
    header = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(header)) + header + bytes(data_bytes)


def reference_accepts(image: bytes) -> bool:
    try:
        safetensors.deserialize(image)
    except safetensors.SafetensorError:
        return False
    return True


def we_accept(path: Path, image: bytes) -> bool:
    path.write_bytes(image)
    try:
        read_header(path)
    except CheckpointError:
        return False
    return True


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_header_of_the_format_is_accepted_here_and_by_the_reference(case: str, tmp_path: Path) -> None:
    image = file_image(*ACCEPTED[case])
    assert reference_accepts(image)
    path = tmp_path / "a.safetensors"
    path.write_bytes(image)
    header = read_header(path)
    with safetensors.safe_open(path, framework="np") as reference:
        assert {tensor.name for tensor in header.tensors} == set(reference.keys())
        assert header.metadata == (reference.metadata() or {})
    assert header.file_bytes == len(image)
    assert image.startswith(header.raw)
    assert header.data_offset == len(header.raw)


@pytest.mark.parametrize("case", REFUSED)
def test_a_malformed_header_is_refused_here_and_by_the_reference(case: str, tmp_path: Path) -> None:
    header, data_bytes, word = REFUSED[case]
    image = file_image(header, data_bytes)
    assert not reference_accepts(image)
    path = tmp_path / "a.safetensors"
    path.write_bytes(image)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert word in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("case", STRICTER)
def test_an_ambiguous_header_is_refused_though_the_reference_takes_it(case: str, tmp_path: Path) -> None:
    header, data_bytes, word = STRICTER[case]
    image = file_image(header, data_bytes)
    assert reference_accepts(image)
    path = tmp_path / "a.safetensors"
    path.write_bytes(image)
    with pytest.raises(CheckpointError, match=r"a\.safetensors") as caught:
        read_header(path)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (b"", "empty or truncated"),
        (bytes(7), "has 7 bytes"),
        (bytes(8), "begins with nothing"),
        (struct.pack("<Q", 100) + b"{}", "2 follow"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "more than the 100000000"),
        (struct.pack("<Q", 2**63) + b"{}", "more than the 100000000"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "more than the 100000000"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"PK\x03\x04" + bytes(30), "zip archive"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "pickle"),
    ],
)
def test_a_file_of_another_kind_or_cut_short_is_refused_with_the_reason(
    image: bytes, word: str, tmp_path: Path
) -> None:
    assert not reference_accepts(image)
    path = tmp_path / "a.safetensors"
    path.write_bytes(image)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert word in str(caught.value)


def test_a_header_beyond_the_cap_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**40))
        file.truncate(2**40 + 8)  # sparse: takes no space
    with pytest.raises(CheckpointError, match="announces a header of 1099511627776 bytes"):
        read_header(path)
    with pytest.raises(CheckpointError, match="more than the 100000000"):
        parse_header(b"{" + b" " * MAX_HEADER_BYTES, 0)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", Path("/dev/null")):
        with pytest.raises(CheckpointError, match=str(path)):
            read_header(path)


def test_whatever_a_random_edit_makes_of_a_header_we_accept_only_what_the_reference_accepts(tmp_path: Path) -> None:
    good = named(one('"F16"', "[2,3]", "[0,12]"), one('"U8"', "[0]", "[12,12]"), one('"I32"', "[]", "[12,16]"))
    image = file_image(
        '{"__metadata__":{"some key":"some text"},' + good[1:].replace('"a"', '"encoder.layer"') + "  ", 16
    )
    choose = random.Random(20)
    path = tmp_path / "a.safetensors"
    accepted = 0
    for _ in range(1500):
        edited = bytearray(image)
        for _ in range(choose.randint(1, 2)):
            edited[choose.randrange(len(edited) - 16)] ^= 1 << choose.randrange(8)
        if we_accept(path, bytes(edited)):
            accepted += 1
            assert reference_accepts(bytes(edited)), bytes(edited)
    assert accepted > 50  # letters of names changed


def parsed(header: bytes, data_bytes: int) -> dict[str, Spelled] | str:
    """What the parser says, or its complaint."""
    try:
        tensors = parse_header(header, data_bytes).tensors
    except CheckpointError as error:
        return str(error)
    return {tensor.name: (tensor.dtype, tensor.shape, tensor.begin, tensor.end) for tensor in tensors}


def told(header: bytes, data_bytes: int) -> dict[str, Spelled] | str:
    try:
        return tensors_of(header, data_bytes)
    except CheckpointError as error:
        return str(error)


def same(header: bytes, data_bytes: int) -> bool:
    one, other = told(header, data_bytes), parsed(header, data_bytes)
    return one == other and (isinstance(one, str) or list(one) == list(other))


@pytest.mark.parametrize("case", [*ACCEPTED, *REFUSED, *STRICTER])
def test_tensors_are_told_as_the_parser_tells_them(case: str) -> None:
    header, data_bytes, *_ = (ACCEPTED | REFUSED | STRICTER)[case]
    assert same(header if isinstance(header, bytes) else header.encode(), data_bytes)


def test_tensors_are_told_as_the_parser_tells_them_whatever_a_random_edit_does() -> None:
    plain = named(one('"F16"', "[2,3]", "[0,12]"), one('"F4"', "[2,4]", "[12,16]"), one('"I32"', "[]", "[16,20]"))
    images = [plain.encode(), ('{"__metadata__":{"key":"text","":"x"},' + plain[1:] + "  ").encode()]
    choose = random.Random(21)
    quick = 0
    for _ in range(6000):
        edited = bytearray(choose.choice(images))
        for _ in range(choose.randint(1, 2)):
            place = choose.randrange(len(edited))
            if choose.random() < 0.5:
                edited[place] ^= 1 << choose.randrange(8)
            else:
                edited[place : place + choose.randrange(3)] = choose.choice(
                    [b"", b",", b'"', b"}", b"{", b"\\", b"0", b"1", b" ", b'"a":{}', b'"__metadata__":', b"\x7f"]
                )
        assert same(bytes(edited), 20), bytes(edited)
        quick += headers._plain_tensors(bytes(edited), 20) is not None
    assert quick > 80


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {"a": "é", "b": "{"}])
def test_headers_as_the_reference_writes_them_are_read_quickly(
    metadata: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = [(f"layer.{i}.weight", DTYPES["BF16"], (i + 1, 3)) for i in range(100)]
    raw = write_header(layout, metadata)
    expected = parsed(raw[8:], 6 * 5050)
    monkeypatch.setattr(headers, "parse_header", None)
    assert tensors_of(raw[8:], 6 * 5050) == expected


def test_a_tensor_is_told_by_name_dtype_shape_and_place() -> None:
    header = parse_header(b'{"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},'
                          b'"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}', 16)  # fmt: skip
    assert [tensor.name for tensor in header.tensors] == ["a", "b"]
    second = header.tensors[1]
    assert (second.dtype, second.shape, second.begin, second.end) == (DTYPES["BF16"], (2, 3), 4, 16)
    assert header.raw == (110).to_bytes(8, "little") + header.raw[8:]
    assert header.data_offset == 118
    assert header.file_bytes == 118 + 16


# The torch dtypes of the reference's serialiser, one tensor of each.
SERIALISED = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "float8_e5m2": "F8_E5M2", "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0", "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ", "int16": "I16",
    "uint16": "U16", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "uint32": "U32", "float32": "F32",
    "complex64": "C64", "float64": "F64", "int64": "I64", "uint64": "U64",
}  # fmt: skip


def reference_image(tensors: list[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str] | None) -> bytes:
    """What safetensors itself writes for zeros of these names, torch dtypes and shapes."""
    kept = {}
    arrays = []
    for name, dtype, shape in tensors:
        array = np.zeros(int(np.prod(shape)) * DTYPES[SERIALISED[dtype]].bits // 8, dtype=np.uint8)
        arrays.append(array)
        kept[name] = safetensors.TensorSpec(
            dtype=dtype, shape=list(shape), data_ptr=array.ctypes.data, data_len=array.nbytes
        )
    return bytes(safetensors.serialize(kept, metadata))


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {'"\\\n\x01\x7f': "é\u2028\b\f\r\t/"}])
def test_a_written_header_has_the_bytes_of_the_reference(metadata: dict[str, str]) -> None:
    names = ["b", "a.weight", "A", "слой", "🧠", '"quoted"\\', "\x01control", "￿"]
    tensors = [
        (f"{name}{index}", dtype, shape)
        for index, dtype in enumerate(SERIALISED)
        for name, shape in zip(names, [(3, 5), (), (0,), (2, 2, 2), (1,), (7,), (4, 0), (1, 1)], strict=True)
    ]
    random.Random(3).shuffle(tensors)
    image = reference_image(tensors, metadata or None)
    raw = write_header([(name, DTYPES[SERIALISED[dtype]], shape) for name, dtype, shape in tensors], metadata)
    assert raw == image[: len(raw)]
    header = parse_header(raw[8:], len(image) - len(raw))
    assert header.metadata == metadata
    assert [tensor.name for tensor in header.tensors] == list(json.loads(raw[8:]))[bool(metadata) :]


def test_every_dtype_is_written_in_the_order_of_the_table() -> None:
    raw = write_header([(name, dtype, (8,)) for name, dtype in DTYPES.items()], {})
    assert list(json.loads(raw[8:])) == list(reversed(DTYPES))
    image = raw + bytes(sum(dtype.bits for dtype in DTYPES.values()))
    assert reference_accepts(image)


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ([("a", "U8", (1,)), ("a", "U8", (1,))], "holds every name once"),
        ([("__metadata__", "U8", (1,))], "taken"),
        ([("a", "F4", (3,))], "inside a byte"),
        ([("a", "U8", (2**63, 2))], "64-bit"),
        ([("\ud800", "U8", (1,))], "UTF-8"),
        ([("x" * MAX_HEADER_BYTES, "U8", (1,))], "split the checkpoint"),
    ],
)
def test_a_header_nobody_could_read_is_not_written(tensors: list[tuple[str, str, tuple[int, ...]]], word: str) -> None:
    with pytest.raises(CheckpointError, match=word):
        write_header([(name, DTYPES[dtype], shape) for name, dtype, shape in tensors], {})


def test_a_file_saved_by_the_reference_reads_back_the_same(tmp_path: Path) -> None:
    arrays = {"w": np.arange(6, dtype="<f4").reshape(2, 3), "n": np.array(7, dtype="<i8"), "e": np.zeros((0, 4), "<f2")}
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"k": "v"})
    header = read_header(path)
    data = path.read_bytes()[header.data_offset :]
    assert {tensor.name: tensor.shape for tensor in header.tensors} == {"w": (2, 3), "n": (), "e": (0, 4)}
    for tensor in header.tensors:
        assert data[tensor.begin : tensor.end] == arrays[tensor.name].tobytes()
