"""docs/behaviour.md, row by row: what each command does with each kind of damage."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from ckptguard.cli import app

Bytes = npt.NDArray[np.uint8]
PAYLOAD, SUPERBLOCK = 4096, 128
DOCUMENT = Path(__file__).parent.parent / "docs" / "behaviour.md"


def run(*words: object) -> tuple[int, str]:
    """Exit status and stdout of a command."""
    result = CliRunner().invoke(app.main, [str(word) for word in words])
    return result.exit_code, result.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 512 KiB, so that either end can be lost without the other."""
    path = tmp_path_factory.mktemp("behaviour") / "model.safetensors"
    values = np.random.Generator(np.random.Philox(2)).normal(size=(2, 256, 256)).astype(np.float32)
    coarse = (values[0, :64].view(np.uint32) & 0xFFFF0000).view(np.float32)  # the lower half of its words never varies
    save_file({"first": values[0], "second": values[1], "third": coarse}, path)
    return path


@pytest.fixture(scope="module")
def intact(model: Path) -> Bytes:
    """Its container, the top 9 bits under a short code."""
    path = model.with_name("model.ckg")
    assert run("protect", model, "-o", path, "--bits", 9, "--code", "bch:1023,923")[0] == 0
    return np.frombuffer(path.read_bytes(), np.uint8)


@pytest.fixture(scope="module")
def signs(model: Path) -> Bytes:
    """Another container of it, with signs protected only."""
    path = model.with_name("signs.ckg")
    assert run("protect", model, "-o", path, "--bits", 1, "--code", "bch:1023,923")[0] == 0
    return np.frombuffer(path.read_bytes(), np.uint8)


def flipped(data: Bytes, begin: int, end: int, pattern: int = 0xFF) -> Bytes:
    """A copy with the bits of `pattern` flipped in some bytes."""
    data = data.copy()
    data[begin:end] ^= np.uint8(pattern)
    return data


def last_word(data: Bytes, pattern: int) -> Bytes:
    """A copy with bits of the last word of the last tensor flipped."""
    (size,) = struct.unpack_from("<Q", data.tobytes(), 24)  # payload_bytes of the superblock
    data = data.copy()
    data[PAYLOAD + size - 4 : PAYLOAD + size].view("<u4")[0] ^= np.uint32(pattern)
    return data


def noisy_ends(data: Bytes) -> Bytes:
    """A copy with 1 % of the bits before and after payload and parity flipped."""
    data = data.copy()
    tail = metadata_bytes(data)
    for part in (data[: tail + SUPERBLOCK], data[-tail - SUPERBLOCK :]):
        bits = np.random.Generator(np.random.Philox(4)).random(8 * part.size) < 1e-2
        part ^= np.packbits(bits)
    return data


def metadata_bytes(data: Bytes) -> int:
    """Stored bytes of one copy of the metadata: its ends are the same, the head begins at 128."""
    size = next(n for n in range(128, data.size // 2, 128) if (data[128 : 128 + n] == data[-128 - n : -128]).all())
    return size


def both_copies(data: Bytes) -> Bytes:
    """A copy with both copies of the metadata destroyed."""
    size = metadata_bytes(data)
    return flipped(flipped(data, 128, 128 + size, 0x55), data.size - 128 - size, data.size - 128, 0x55)


def both_superblocks(data: Bytes) -> Bytes:
    """A copy with both superblocks destroyed."""
    return flipped(flipped(data, 0, 128), data.size - 128, data.size)


DAMAGE: dict[str, Callable[[Bytes], Bytes]] = {
    "none": lambda data: data,
    "only unprotected bits": lambda data: flipped(data, PAYLOAD + 4096, PAYLOAD + 4097, 1),
    "only unprotected bits that never vary in their tensor": lambda data: last_word(data, 0x0101),
    "up to t flips in every codeword": lambda data: flipped(data, PAYLOAD + 4099, PAYLOAD + 4100, 0x80),
    "more than t flips in a codeword": lambda data: flipped(data, PAYLOAD, PAYLOAD + 200_000),
    "metadata flipped at BER 1e-2": noisy_ends,
    "one end overwritten or cut off, payload intact": lambda data: data[:-SUPERBLOCK],
    "one end overwritten or cut off, payload hit too": lambda data: data[65536:],
    "bytes appended or put before it": lambda data: np.concatenate([np.zeros(1000, np.uint8), data]),
    "both copies of the metadata beyond repair": both_copies,
    "both superblocks beyond repair": both_superblocks,
    "empty, too short, or another kind of file": lambda data: data[:100],
}
IMPOSSIBLE = "unprotected bits, so that an element is impossible"
EXTRA = "row sums and outliers of posterior restorers, beyond what their code corrects"
COMMANDS = ("inspect", "check", "restore", "repair")


def documented() -> dict[str, dict[str, int]]:
    """Exit statuses of the table in the document, by damage and command."""
    rows = [
        line.strip("|").split(" | ") for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line[:1] == "|"
    ]
    table = {}
    for row in rows[2:]:
        numbers = [int(found.group()) for cell in row[1:] if (found := re.match(r"\d+", cell.strip()))]
        table[row[0].strip()] = dict(zip(COMMANDS, numbers, strict=True))
    return table


def test_the_table_is_covered() -> None:
    elsewhere = {"a version that is not known", "a shard of a set is missing or of another set"}
    assert set(documented()) - elsewhere == {*DAMAGE, IMPOSSIBLE, EXTRA}


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_command_exits_as_documented(damage: str, intact: Bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.ckg"
    path.write_bytes(DAMAGE[damage](intact).tobytes())
    before = path.read_bytes()
    extra = {"restore": ("-o", tmp_path / "back.safetensors"), "repair": ("-o", tmp_path / "healed.ckg")}
    found = {command: run(command, path, *extra.get(command, ()))[0] for command in COMMANDS}
    assert found == documented()[damage]
    assert path.read_bytes() == before
    written = {file.name for file in tmp_path.iterdir()} - {"damaged.ckg"}
    assert written == ({"back.safetensors", "healed.ckg"} if found["inspect"] == 0 else set())


@pytest.mark.parametrize("damage", [name for name in DAMAGE if documented()[name]["repair"] == 0])
def test_what_is_repaired_is_intact_where_protected(damage: str, intact: Bytes, tmp_path: Path) -> None:
    (tmp_path / "damaged.ckg").write_bytes(DAMAGE[damage](intact).tobytes())
    assert run("repair", tmp_path / "damaged.ckg", "-o", tmp_path / "healed.ckg")[0] == 0
    status, text = run("check", tmp_path / "healed.ckg", "--json")
    assert status == 0
    verdict = json.loads(text)["verdict"]
    assert verdict == ("protected-intact" if damage == "only unprotected bits" else "intact")


def test_an_impossible_element_is_replaced_by_restore_alone(signs: Bytes, model: Path, tmp_path: Path) -> None:
    path, original = tmp_path / "damaged.ckg", load_file(model)["third"].ravel()
    path.write_bytes(last_word(signs, 1 << 30).tobytes())
    extra = {"restore": ("-o", tmp_path / "back.safetensors"), "repair": ("-o", tmp_path / "healed.ckg")}
    found = {command: run(command, path, *extra.get(command, ()))[0] for command in COMMANDS}
    assert found == documented()[IMPOSSIBLE]
    assert json.loads(run("check", path, "--json")[1])["verdict"] == "protected-intact"
    back = load_file(tmp_path / "back.safetensors")["third"].ravel()
    assert (back[:-1] == original[:-1]).all()
    assert back[-1] == 0 != original[-1]
    run("restore", path, "-o", tmp_path / "read.safetensors", "--guard", "off")
    run("restore", tmp_path / "healed.ckg", "-o", tmp_path / "healed.safetensors", "--guard", "off")
    as_read, healed = (load_file(tmp_path / f"{name}.safetensors")["third"].ravel()[-1] for name in ("read", "healed"))
    assert abs(as_read) > np.abs(original).max()
    assert healed == as_read


def test_elements_are_estimated_without_row_sums_that_are_lost(model: Path, tmp_path: Path) -> None:
    masks = {"format": "ckptguard-masks", "version": 1, "rules": [{"tensors": "*", "mask": "top:1"}]}
    (tmp_path / "sp.json").write_text(json.dumps(masks | {"provenance": {"row_sums": ["first"]}}), encoding="utf-8")
    words = ("--masks", tmp_path / "sp.json", "--restorer", "posterior", "--ber", "1e-2", "--code", "bch:1023,923")
    path = tmp_path / "damaged.ckg"
    assert run("protect", model, "-o", path, *words)[0] == 0
    row = next(row for row in json.loads(run("inspect", path, "--json")[1])["tensors"] if row["kind"] == "extra")
    data = np.frombuffer(path.read_bytes(), np.uint8)
    (size,) = struct.unpack_from("<Q", data.tobytes(), 24)
    data = flipped(data, PAYLOAD + size - row["elements"], PAYLOAD + size)
    path.write_bytes(flipped(data, PAYLOAD + 4096, PAYLOAD + 4097, 1).tobytes())  # an unprotected bit of `first`
    extra = {
        "restore": ("-o", tmp_path / "back.safetensors", "--json"),
        "repair": ("-o", tmp_path / "healed.ckg", "--json"),
    }
    found = {command: run(command, path, *extra.get(command, ())) for command in COMMANDS}
    assert {command: status for command, (status, _) in found.items()} == documented()[EXTRA]
    for command in extra:
        rows = {(row["kind"], row["name"]): row for row in json.loads(found[command][1])["tensors"]}
        first = rows["tensor", "first"]
        assert (first["estimated_elements"] > 0, first["pieces_without_extra"] > 0) == (command == "restore",) * 2
        assert rows["tensor", "second"]["estimated_elements"] == 0


def test_in_place_refuses_a_file_of_another_size(intact: Bytes, tmp_path: Path) -> None:
    (tmp_path / "cut.ckg").write_bytes(intact[:-SUPERBLOCK].tobytes())
    assert run("repair", tmp_path / "cut.ckg", "--in-place")[0] == 2


def test_nulled_elements_are_zero_and_the_others_as_read(model: Path, intact: Bytes, tmp_path: Path) -> None:
    (tmp_path / "damaged.ckg").write_bytes(DAMAGE["more than t flips in a codeword"](intact).tobytes())
    words = ("restore", tmp_path / "damaged.ckg", "--policy", "null", "-o", tmp_path / "null.safetensors", "--json")
    status, text = run(*words)
    lost = {row["name"]: row["affected_elements"] for row in json.loads(text)["tensors"] if row["state"] == "lost"}
    restored, original = load_file(tmp_path / "null.safetensors"), load_file(model)
    assert status == 11
    assert lost
    for name, most in lost.items():
        assert 0 < (restored[name] == 0).sum() <= most
        kept = restored[name] != 0
        assert (restored[name].view(np.uint32)[kept] >> 23 == original[name].view(np.uint32)[kept] >> 23).all()
