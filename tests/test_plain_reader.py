"""docs/format.md suffices: a reader written from it alone opens what the product writes, damaged or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import plain_reader
import pytest
from safetensors.numpy import save_file

import ckptguard

CONTAINERS = [
    ("bch:1023,513", "native", 3e-2),
    ("bch:8191,6722", "native", 1e-2),
    ("bch:255,131", "native", 1e-2),
    ("bch:255,191,outer=10", "native", 1.3e-2),
    ("bch:63,45", "fixed:5", 1e-3),
    ("bch:1023,513", "fixed:11,sign-magnitude", 1e-2),
    ("secded:72,64", "native", 2e-5),
    ("secded:39,32", "fixed:8", 2e-5),
    ("secded:64,57", "native", 2e-5),
    ("secded:32,26", "native", 2e-5),
    ("crc", "native", 0.0),
    ("none", "native", 0.0),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with several dtypes, an odd size, an empty and a 0-dim tensor."""
    rng = np.random.default_rng(5)
    tensors = {
        "linear.weight": rng.standard_normal((37, 53)).astype(np.float32),
        "linear.bias": rng.standard_normal(37).astype(np.float16),
        "steps": np.array(1234567),
        "flags": np.array([True, False, True]),
        "größe": rng.standard_normal((3, 5, 7)),
        "nothing": np.zeros((0, 4), np.float32),
    }
    path = tmp_path_factory.mktemp("plain") / "model.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(("code", "representation", "rate"), CONTAINERS)
def test_a_reader_written_from_the_document_reads_a_damaged_container(
    model: Path, tmp_path: Path, code: str, representation: str, rate: float
) -> None:
    container, worn, back = (tmp_path / name for name in ("model.ckg", "worn.ckg", "back.safetensors"))
    ckptguard.protect(model, container, code=code, representation=representation)
    ckptguard.restore(container, back)
    ckptguard.corrupt(container, worn, seed=3, channel=f"bsc:{rate}")
    assert plain_reader.read(worn.read_bytes()) == {"model.safetensors": back.read_bytes()}
    if representation == "native":
        assert back.read_bytes() == model.read_bytes()


def test_it_reads_masked_bits_as_the_product_does(model: Path, tmp_path: Path) -> None:
    container, worn, back = (tmp_path / name for name in ("model.ckg", "worn.ckg", "back.safetensors"))
    ckptguard.protect(model, container, bits=9, code="bch:1023,513")
    ckptguard.corrupt(container, worn, seed=4, channel="bsc:1e-2")
    ckptguard.restore(worn, back, guard=False)
    assert plain_reader.read(worn.read_bytes()) == {"model.safetensors": back.read_bytes()}


def test_it_reads_a_sidecar_with_its_payload(model: Path, tmp_path: Path) -> None:
    beside, worn = tmp_path / "model.safetensors", tmp_path / "worn.safetensors.ckg"
    beside.write_bytes(model.read_bytes())
    ckptguard.protect(beside, sidecar=True, code="bch:1023,513")
    ckptguard.corrupt(f"{beside}.ckg", worn, seed=4, channel="bsc:1e-2")
    payload = worn.with_suffix("").read_bytes()
    assert payload != model.read_bytes()
    assert plain_reader.read(worn.read_bytes(), payload) == {"model.safetensors": model.read_bytes()}


def test_it_reads_a_set_of_shards_on_two_devices(model: Path, tmp_path: Path) -> None:
    devices = tmp_path / "devices.toml"
    devices.write_text(
        '[[device]]\nname = "worn"\ntensors = ["linear.*"]\nchannel = "bsc:1e-2"\n'
        '[[device]]\nname = "good"\ntensors = ["*"]\nchannel = "bsc:1e-6"\n'
    )
    ckptguard.protect(model, tmp_path / "set", code="bch:1023,513", devices=devices)
    ckptguard.corrupt(tmp_path / "set", tmp_path / "worn", seed=4)
    shards = sorted((tmp_path / "worn").glob("*.ckg"))
    assert len(shards) == 2
    assert plain_reader.read_set(path.read_bytes() for path in shards) == {"model.safetensors": model.read_bytes()}


def test_it_is_really_damaged_and_really_plain(model: Path, tmp_path: Path) -> None:
    text = Path(plain_reader.__file__).read_text(encoding="utf-8")
    assert "import ckptguard" not in text
    assert "numba" not in text
    container, worn = tmp_path / "model.ckg", tmp_path / "worn.ckg"
    ckptguard.protect(model, container, code="bch:255,191,outer=10")
    ckptguard.corrupt(container, worn, seed=3, channel="bsc:1.3e-2")
    assert ckptguard.check(container).verdict == "intact"
    assert ckptguard.check(worn).verdict == "correctable"
