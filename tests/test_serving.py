"""Loading from containers agrees with safetensors on the original files, and reads only what is asked for."""

from __future__ import annotations

import doctest
import inspect
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

import ckptguard
import ckptguard.numpy
import ckptguard.torch
from ckptguard.container.shard_file import ShardFile
from ckptguard.devices import DeviceMap
from ckptguard.dtypes import DTYPES
from ckptguard.errors import CheckpointError, ContainerError, UncorrectableError, UsageError
from ckptguard.evaluate.frameworks import TORCH_DTYPES
from ckptguard.pipeline import reader as reader_module
from ckptguard.serving import LoadError

STRONG = "bch:8191,6176"  # t = 163: 1e-2 is survived with probability 1 - 1e-15 per codeword
PAGE = Path(__file__).parents[1] / "docs" / "loading.md"
METADATA = {"format": "pt", "schrift": "Gewichte für Größe"}


def random_tensor(name: str, *shape: int, seed: int = 0) -> torch.Tensor:
    """Random bits of a dtype (random values for floats, so that comparisons are not about NaN)."""
    generator = torch.Generator().manual_seed(seed)
    kind = getattr(torch, TORCH_DTYPES[name])
    if name == "BOOL":
        return torch.randint(0, 2, shape, generator=generator).to(torch.bool)
    if name in ("F16", "BF16", "F32", "F64"):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(kind)
    if name == "C64":
        return torch.randn(shape, generator=generator, dtype=torch.complex64)
    size = kind.itemsize
    raw = torch.randint(0, 256, (*shape[:-1], shape[-1] * size), generator=generator, dtype=torch.uint8)
    return raw.view(kind)


def checkpoint() -> dict[str, torch.Tensor]:
    """Every dtype torch has, and the shapes that are easily forgotten."""
    tensors = {f"every.{name}": random_tensor(name, 7, 5, seed=i) for i, name in enumerate(TORCH_DTYPES)}
    return tensors | {
        "scalar": torch.tensor(-2.5),
        "empty": torch.zeros(0, 4),
        "empty.last": torch.zeros(3, 0, dtype=torch.int64),
        "odd": random_tensor("U8", 4097, seed=50),
        "名前.weight/∂": random_tensor("BF16", 31, 17, seed=51),
        "wide": random_tensor("F32", 600, 1001, seed=52),
        "narrow": random_tensor("F16", 200_003, 3, seed=53),
        "deep": random_tensor("BF16", 12, 5, 33, 7, seed=54),
    }


def same(first: Any, second: Any) -> bool:
    """Same dtype, shape and bits."""
    if isinstance(first, torch.Tensor):
        if first.dtype != second.dtype or first.shape != second.shape:
            return False
        return np.array_equal(bits_of(first), bits_of(second))
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    if not tensor.nelement():
        return np.zeros(0, np.uint8)
    return tensor.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8).numpy()


class Files:
    """One checkpoint: plain, protected wholly, protected in part, and worn copies of these."""

    def __init__(self, folder: Path) -> None:
        self.tensors = checkpoint()
        self.plain = folder / "model.safetensors"
        safetensors.torch.save_file(self.tensors, self.plain, METADATA)
        self.clean = folder / "model.ckg"
        ckptguard.protect(self.plain, self.clean, code=STRONG)
        self.worn = {}
        for rate in ("1e-3", "1e-2"):
            self.worn[rate] = folder / f"worn-{rate}.ckg"
            ckptguard.corrupt(self.clean, self.worn[rate], seed=7, channel=f"bsc:{rate}")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="module")
def lossy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A container beyond what its code corrects, and what `restore` makes of it under both policies."""
    folder = tmp_path_factory.mktemp("lossy")
    tensors = {"a": random_tensor("F32", 300, 400), "b": random_tensor("BF16", 999, 7), "c": torch.tensor(1.5)}
    safetensors.torch.save_file(tensors, folder / "m.safetensors")
    ckptguard.protect(folder / "m.safetensors", folder / "m.ckg", code="secded:72,64")
    ckptguard.corrupt(folder / "m.ckg", folder / "worn.ckg", seed=3, channel="bsc:1e-2")
    for policy in ("raw", "null"):
        ckptguard.restore(folder / "worn.ckg", folder / f"{policy}.safetensors", policy=policy)
    return {"worn": folder / "worn.ckg", "raw": folder / "raw.safetensors", "null": folder / "null.safetensors"}


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(stream, unit) of every unit that is examined as a whole."""
    seen: list[tuple[int, int]] = []
    examine = reader_module.examine

    def spy(shard: Any, stream: int, unit: int, **options: Any) -> Any:
        seen.append((stream, unit))
        return examine(shard, stream, unit, **options)

    monkeypatch.setattr(reader_module, "examine", spy)
    return seen


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of all reads from the payload."""
    seen: list[int] = []
    read = ShardFile.read_payload_into

    def spy(self: ShardFile, offset: int, targets: Any) -> None:
        seen.append(sum(target.size for target in targets))
        read(self, offset, targets)

    monkeypatch.setattr(ShardFile, "read_payload_into", spy)
    return seen


# --- against safetensors --------------------------------------------------------------------------


def test_load_file_gives_what_safetensors_gives(files: Files) -> None:
    expected = safetensors.torch.load_file(files.plain)
    loaded = ckptguard.load_file(files.clean)
    assert set(loaded) == set(expected)
    assert [name for name in loaded if loaded[name].nelement()] == [n for n in expected if expected[n].nelement()]
    assert [name for name in expected if not same(loaded[name], expected[name])] == []


def test_numpy_load_file_gives_what_safetensors_gives(files: Files, tmp_path: Path) -> None:
    tensors = {n: t.numpy() for n, t in files.tensors.items() if t.dtype in NUMPY_TYPES}
    safetensors.numpy.save_file(tensors, tmp_path / "n.safetensors")
    ckptguard.protect(tmp_path / "n.safetensors", tmp_path / "n.ckg", bits=1, code="secded:72,64")
    expected = safetensors.numpy.load_file(tmp_path / "n.safetensors")
    loaded = ckptguard.numpy.load_file(tmp_path / "n.ckg")
    assert set(loaded) == set(expected)
    assert [name for name in expected if not same(loaded[name], expected[name])] == []
    assert all(array.flags.writeable for array in loaded.values())


NUMPY_TYPES = {getattr(torch, TORCH_DTYPES[d.name]) for d in DTYPES.values() if d.numpy and d.name in TORCH_DTYPES}


def test_handles_answer_as_those_of_safetensors(files: Files) -> None:
    with safetensors.safe_open(files.plain, "pt") as plain, ckptguard.safe_open(files.clean, "pt") as ours:
        assert ours.keys() == plain.keys()
        assert sorted(ours.offset_keys()) == sorted(plain.offset_keys())
        full = [name for name in plain.offset_keys() if files.tensors[name].nelement()]
        assert [name for name in ours.offset_keys() if files.tensors[name].nelement()] == full
        assert ours.metadata() == plain.metadata() == METADATA
        assert list(ours.get_tensors()) == ours.offset_keys()
        for name in plain.keys():  # noqa: SIM118 - no mapping
            assert same(ours.get_tensor(name), plain.get_tensor(name)), name
            assert ours.get_slice(name).get_shape() == plain.get_slice(name).get_shape()
            assert ours.get_slice(name).get_dtype() == plain.get_slice(name).get_dtype()


def test_metadata_is_none_where_the_header_has_none(tmp_path: Path) -> None:
    ckptguard.save_file({"a": np.zeros(3)}, tmp_path / "m.ckg")
    with ckptguard.safe_open(tmp_path / "m.ckg", "np") as opened:
        assert opened.metadata() is None


def random_index(rng: random.Random, shape: list[int]) -> Any:
    """An index of whole numbers, slices, `...` and None that fits the shape."""
    items: list[Any] = []
    for size in shape[: rng.randint(0, len(shape))]:
        kind = rng.randrange(4)
        if kind == 0 and size:
            items.append(rng.randrange(-size, size))
        elif kind == 1:
            items.append(slice(None))
        else:
            ends = [rng.choice([None, rng.randint(-size - 2, size + 2)]) for _ in range(2)]
            items.append(slice(*ends, rng.choice([None, 1, 1, 2, 3, 7])))
    if rng.random() < 0.3:
        items.insert(rng.randint(0, len(items)), ...)
    if ... in items:  # what follows an ellipsis belongs to the last axes
        place = items.index(...)
        behind = items[place + 1 :]
        for offset, item in enumerate(behind):
            size = shape[len(shape) - len(behind) + offset]
            if isinstance(item, int):
                items[place + 1 + offset] = rng.randrange(-size, size) if size else slice(None)
    if rng.random() < 0.2:
        items.insert(rng.randint(0, len(items)), None)
    return items[0] if len(items) == 1 and rng.random() < 0.5 else tuple(items)


def test_random_slices_are_those_of_safetensors(files: Files) -> None:
    rng = random.Random(11)
    with safetensors.safe_open(files.plain, "pt") as plain, ckptguard.safe_open(files.clean, "pt") as ours:
        for name in plain.keys():  # noqa: SIM118 - no mapping
            if name == "every.F4":
                continue  # safetensors cannot slice it
            shape = plain.get_slice(name).get_shape()
            for _ in range(60):
                index = random_index(rng, shape)
                if not shape and index not in ((), ...):
                    continue
                assert same(ours.get_slice(name)[index], plain.get_slice(name)[index]), (name, index)


def test_random_slices_for_numpy_are_those_of_the_array(files: Files) -> None:
    rng = random.Random(12)
    with ckptguard.safe_open(files.clean, "np") as ours:
        for name in ("wide", "narrow", "deep"):
            if name == "deep":
                continue  # numpy has no bfloat16
            array = files.tensors[name].numpy()
            for _ in range(150):
                index = random_index(rng, list(array.shape))
                assert same(ours.get_slice(name)[index], np.asarray(array[index])), (name, index)
            assert same(ours.get_slice(name)[::-1, ::-2], array[::-1, ::-2].copy())


@pytest.mark.parametrize(
    "index",
    [[1, 0], [True, False, True], (slice(None), [0, 2]), torch.tensor([0, 2]), np.array([0, 1]), True, (0, [1])],
)
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_lists_and_tensors_as_indices_are_those_of_safetensors(files: Files, tmp_path: Path, index: Any) -> None:
    safetensors.torch.save_file({"a": torch.arange(12.0).reshape(3, 4)}, tmp_path / "m.safetensors")
    ckptguard.protect(tmp_path / "m.safetensors", tmp_path / "m.ckg", code="secded:72,64")
    with (
        safetensors.safe_open(tmp_path / "m.safetensors", "pt") as plain,
        ckptguard.safe_open(tmp_path / "m.ckg", "pt") as ours,
    ):
        assert same(ours.get_slice("a")[index], plain.get_slice("a")[index])


@pytest.mark.parametrize(
    "index",
    [
        600,
        -601,
        (0, 0, 0),
        (0, 1001),
        1.0,
        "a",
        slice(0, 9, 0),
        slice(None, None, -1),
        (0, 0, True, 0),
        (..., 0, 0, 0),
    ],
)
def test_wrong_indices_raise_as_in_safetensors(files: Files, index: Any) -> None:
    with safetensors.safe_open(files.plain, "pt") as plain, ckptguard.safe_open(files.clean, "pt") as ours:
        with pytest.raises(Exception) as expected:  # noqa: PT011 - whatever it is
            plain.get_slice("wide")[index]
        with pytest.raises(expected.type):
            ours.get_slice("wide")[index]


def test_packed_floats_are_sliced_in_pairs(files: Files) -> None:
    packed = files.tensors["every.F4"]
    with ckptguard.safe_open(files.clean, "pt") as ours:
        part = ours.get_slice("every.F4")[1:5:2, 2:]
    assert part.shape == (2, 3)
    assert np.array_equal(part.view(torch.uint8).numpy(), packed.view(torch.uint8)[1:5:2, 2:].numpy())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ckptguard.torch.load_file, safetensors.torch.load_file),
        (ckptguard.torch.save_file, safetensors.torch.save_file),
        (ckptguard.torch.load_model, safetensors.torch.load_model),
        (ckptguard.torch.save_model, safetensors.torch.save_model),
        (ckptguard.numpy.load_file, safetensors.numpy.load_file),
        (ckptguard.numpy.save_file, safetensors.numpy.save_file),
        (ckptguard.load_file, safetensors.torch.load_file),
    ],
)
def test_calls_of_safetensors_fit(ours: Callable[..., Any], theirs: Callable[..., Any]) -> None:
    mine, reference = (inspect.signature(function).parameters for function in (ours, theirs))
    for place, (name, parameter) in enumerate(reference.items()):
        assert mine[name].kind == parameter.kind
        if name != "backend":  # ours is the one that keeps what was checked, see docs/loading.md
            assert mine[name].default == parameter.default
        if parameter.kind != parameter.KEYWORD_ONLY:
            assert list(mine)[place] == name
    assert all(p.kind == p.KEYWORD_ONLY for name, p in mine.items() if name not in reference)


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", ["1e-3", "1e-2"])
def test_wholly_protected_tensors_load_exactly_from_a_worn_container(files: Files, rate: str) -> None:
    records: list[dict[str, Any]] = []
    loaded = ckptguard.load_file(files.worn[rate], report=records.append)
    assert [name for name, tensor in files.tensors.items() if not same(loaded[name], tensor)] == []
    assert records[0]["verdict"] == "correctable"
    assert records[0]["shards"][0]["corrected_bits"] > 1000


@pytest.mark.parametrize("rate", ["1e-3", "1e-2"])
def test_random_slices_of_a_worn_container_are_exact(files: Files, rate: str) -> None:
    rng = random.Random(13)
    with ckptguard.safe_open(files.worn[rate], "pt") as ours:
        for name in ("wide", "narrow", "deep", "odd"):
            tensor = files.tensors[name]
            for _ in range(25):
                index = random_index(rng, list(tensor.shape))
                assert same(ours.get_slice(name)[index], tensor[index].clone()), (name, index)


def test_protected_bits_are_exact_and_the_others_as_worn(files: Files, tmp_path: Path) -> None:
    ckptguard.protect(files.plain, tmp_path / "m.ckg", bits=9, code=STRONG)
    ckptguard.corrupt(tmp_path / "m.ckg", tmp_path / "worn.ckg", seed=5, channel="bsc:1e-2")
    loaded = ckptguard.load_file(tmp_path / "worn.ckg")
    for name, mask in (("wide", 0xFF800000), ("narrow", 0xFF80), ("deep", 0xFF80)):
        kind = f"<u{files.tensors[name].element_size()}"
        difference = bits_of(loaded[name]).view(kind) ^ bits_of(files.tensors[name]).view(kind)
        assert not (difference & mask).any()
        assert difference.any()


@pytest.mark.parametrize("rate", ["clean", "1e-2"])
def test_fixed_point_tensors_load_as_restore_writes_them(files: Files, tmp_path: Path, rate: str) -> None:
    path = tmp_path / "m.ckg"
    ckptguard.protect(files.plain, path, code=STRONG, representation="fixed:8")
    if rate != "clean":
        ckptguard.corrupt(path, tmp_path / "worn.ckg", seed=5, channel=f"bsc:{rate}")
        path = tmp_path / "worn.ckg"
    ckptguard.restore(path, tmp_path / "restored.safetensors")
    expected = safetensors.torch.load_file(tmp_path / "restored.safetensors")
    loaded = ckptguard.load_file(path)
    assert [name for name in expected if not same(loaded[name], expected[name])] == []
    rng = random.Random(14)
    with ckptguard.safe_open(path, "pt") as opened:
        for name in ("wide", "narrow", "deep", "名前.weight/∂"):
            for _ in range(25):
                index = random_index(rng, list(expected[name].shape))
                assert same(opened.get_slice(name)[index], expected[name][index].clone()), (name, index)


def test_lost_tensors_raise_unless_told_otherwise(lossy: dict[str, Path]) -> None:
    with pytest.raises(UncorrectableError, match=r"protected bits are lost in .*on_error") as raised:
        ckptguard.load_file(lossy["worn"])
    assert raised.value.report["lost"]
    with ckptguard.safe_open(lossy["worn"], "pt") as opened, pytest.raises(UncorrectableError):
        opened.get_slice("a")[5:9]


@pytest.mark.parametrize("policy", ["raw", "null"])
def test_lost_tensors_load_as_restore_writes_them(lossy: dict[str, Path], policy: str) -> None:
    expected = safetensors.torch.load_file(lossy[policy])
    records: list[dict[str, Any]] = []
    loaded = ckptguard.load_file(lossy["worn"], on_error=policy, report=records.append)
    assert [name for name in expected if not same(loaded[name], expected[name])] == []
    assert set(records[0]["lost"]) >= {"a", "b"}
    with ckptguard.safe_open(lossy["worn"], "pt", on_error=policy) as opened:
        for name in expected:
            assert same(opened.get_tensor(name), expected[name])
        assert same(opened.get_slice("b")[3:700:2, 1:5], expected["b"][3:700:2, 1:5].clone())


def test_a_tensor_proven_by_its_digest_is_not_nulled_for_its_neighbour(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(1.0, 3000.0), "b": torch.arange(1.0, 3000.0)}
    made = ckptguard.save_file(tensors, tmp_path / "m.ckg", code="bch:1023,513", guard="none")
    (part,) = (part for part in made.plans[0].parts if part.name == "b")
    data = bytearray((tmp_path / "m.ckg").read_bytes())
    with ckptguard.safe_open(tmp_path / "m.ckg", "pt") as opened:
        start = opened._opened.shards[0].file.superblock.payload_offset + part.stored_offset  # type: ignore[union-attr]
    data[start : start + part.bytes] = (byte ^ 0x6D for byte in data[start : start + part.bytes])
    (tmp_path / "m.ckg").write_bytes(data)
    ckptguard.restore(tmp_path / "m.ckg", tmp_path / "restored.safetensors", policy="null")
    for loaded in (
        ckptguard.load_file(tmp_path / "m.ckg", on_error="null"),
        safetensors.torch.load_file(tmp_path / "restored.safetensors"),
    ):
        assert same(loaded["a"], tensors["a"])
        assert not loaded["b"].any()


def test_an_unknown_policy_is_refused(files: Files) -> None:
    with pytest.raises(UsageError, match="known: raise, raw, null"):
        ckptguard.load_file(files.clean, on_error="ignore")


# --- no more than is asked for --------------------------------------------------------------------


def test_clean_tensors_are_read_alone_and_never_decoded(
    files: Files, examined: list[tuple[int, int]], bytes_read: list[int]
) -> None:
    records: list[dict[str, Any]] = []
    with ckptguard.safe_open(files.clean, "pt", report=records.append) as opened:
        opened.get_tensor("wide")
    assert examined == []
    assert sum(bytes_read) == files.tensors["wide"].nbytes
    assert [row["name"] for row in records[0]["tensors"]] == ["wide"]


def test_one_damaged_tensor_decodes_its_own_units_only(files: Files, examined: list[tuple[int, int]]) -> None:
    with ckptguard.safe_open(files.worn["1e-3"], "pt") as opened:
        opened.get_tensor("deep")
        shard = opened._opened.shards[0].plan  # type: ignore[union-attr]
        (place,) = (i for i, part in enumerate(shard.parts) if part.name == "deep")
        needed = shard.units_of_part(place, 0, files.tensors["deep"].nbytes)
    assert set(examined) <= set(needed)
    assert len(needed) < len(shard.all_units()) / 2


def test_rows_read_their_own_pieces_only(files: Files, bytes_read: list[int]) -> None:
    with ckptguard.safe_open(files.clean, "pt") as opened:
        rows = opened.get_slice("wide")[100:110]
    assert same(rows, files.tensors["wide"][100:110].clone())
    assert sum(bytes_read) < files.tensors["wide"].nbytes / 3


def test_nothing_is_read_for_the_device_meta(files: Files, bytes_read: list[int]) -> None:
    loaded = ckptguard.load_file(files.clean, device="meta")
    with ckptguard.safe_open(files.clean, "pt", torch.device("meta")) as opened:
        part = opened.get_slice("deep")[2:4, ..., 0]
    assert bytes_read == []
    assert {n: (t.shape, t.dtype) for n, t in loaded.items()} == {
        n: (t.shape, t.dtype) for n, t in files.tensors.items()
    }
    assert (part.device.type, part.shape, part.dtype) == ("meta", (2, 5, 33), torch.bfloat16)


def test_chosen_tensors_load_together(files: Files, bytes_read: list[int]) -> None:
    with ckptguard.safe_open(files.clean, "pt") as opened:
        loaded = opened.get_tensors(["scalar", "deep"])
    assert list(loaded) == ["scalar", "deep"]
    assert same(loaded["deep"], files.tensors["deep"])
    assert sum(bytes_read) == files.tensors["deep"].nbytes + 4


def test_far_apart_places_are_read_one_by_one(tmp_path: Path, bytes_read: list[int]) -> None:
    array = np.arange(40 << 16, dtype=np.int64).reshape(40, 1 << 16)
    ckptguard.save_file({"a": array}, tmp_path / "m.ckg", code="secded:72,64")
    with ckptguard.safe_open(tmp_path / "m.ckg", "np") as opened:
        bytes_read.clear()
        column = opened.get_slice("a")[::20, 5:7]
    assert same(column, array[::20, 5:7].copy())
    assert sum(bytes_read) < array.nbytes / 4


def test_long_stretches_are_read_in_parts(files: Files, monkeypatch: pytest.MonkeyPatch, bytes_read: list[int]) -> None:
    monkeypatch.setattr("ckptguard.serving.indexing.STRETCH_BYTES", 1 << 16)
    rng = random.Random(15)
    with ckptguard.safe_open(files.clean, "pt") as opened:
        for name in ("wide", "narrow", "deep"):
            for _ in range(25):
                index = random_index(rng, list(files.tensors[name].shape))
                assert same(opened.get_slice(name)[index], files.tensors[name][index].clone()), (name, index)


# --- mapped files ---------------------------------------------------------------------------------


def maps_of(path: Path) -> int:
    """How many maps of a file this process has."""
    return sum(line.endswith(str(path)) for line in Path("/proc/self/maps").read_text().splitlines())


def is_mapped(array: np.ndarray) -> bool:
    """Whether an array lies in a map of a file."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(edge, 16) for edge in line.split(maxsplit=1)[0].split("-"))
        if begin <= address < end:
            return ".ckg" in line or ".safetensors" in line
    return False


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, np.ndarray]:
    """Arrays in a clean and a worn container."""
    rng = np.random.default_rng(5)
    made = {f"{i}.{kind}": rng.standard_normal((400, 300)).astype(kind) for i, kind in enumerate(["f4", "f8", "f2"])}
    ckptguard.save_file(made, tmp_path / "m.ckg", code=STRONG)
    ckptguard.corrupt(tmp_path / "m.ckg", tmp_path / "worn.ckg", seed=7, channel="bsc:1e-3")
    return made


@pytest.mark.parametrize("source", ["clean", "1e-2"])
@pytest.mark.parametrize("jobs", [1, 4])
def test_mapped_tensors_are_those_that_are_read(files: Files, source: str, jobs: int) -> None:
    path = files.clean if source == "clean" else files.worn[source]
    loaded = ckptguard.load_file(path, backend="mmap", jobs=jobs)
    assert list(loaded) == list(ckptguard.load_file(path))
    assert [name for name, tensor in files.tensors.items() if not same(loaded[name], tensor)] == []


@pytest.mark.parametrize("source", ["clean", "1e-2"])
def test_random_slices_of_a_mapped_file_are_exact(files: Files, source: str) -> None:
    path = files.clean if source == "clean" else files.worn[source]
    rng = random.Random(16)
    with ckptguard.safe_open(path, "pt", backend="mmap") as ours:
        for name, tensor in files.tensors.items():
            if name == "every.F4" or not tensor.ndim:
                continue
            for _ in range(20):
                index = random_index(rng, list(tensor.shape))
                assert same(ours.get_slice(name)[index], tensor[index].clone()), (name, index)
            assert same(ours.get_tensor(name), tensor)
    with ckptguard.safe_open(path, "np", backend="mmap") as ours:
        array = files.tensors["wide"].numpy()
        assert same(ours.get_slice("wide")[::-7, ::-2], array[::-7, ::-2].copy())
        assert same(ours.get_slice("wide")[[3, 1]], array[[3, 1]])
        assert ours.get_slice("wide")[3, 5].shape == ()


@pytest.mark.parametrize("worn", [False, True])
def test_clean_and_corrected_tensors_lie_in_the_map_and_the_file_is_never_changed(
    arrays: dict[str, np.ndarray], tmp_path: Path, worn: bool
) -> None:
    path = tmp_path / ("worn.ckg" if worn else "m.ckg")
    before = path.read_bytes()
    loaded = ckptguard.numpy.load_file(path, backend="mmap")
    for name, array in loaded.items():
        assert is_mapped(array)
        assert same(array, arrays[name])
        array[...] = 7
    assert path.read_bytes() == before
    again = ckptguard.numpy.load_file(path, backend="mmap")
    assert all(same(again[name], arrays[name]) for name in arrays)
    assert all(array.base is not None and (array == 7).all() for array in loaded.values())


def test_what_is_read_does_not_lie_in_a_map(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    loaded = ckptguard.numpy.load_file(tmp_path / "m.ckg")
    assert not any(map(is_mapped, loaded.values()))
    data = bytearray((tmp_path / "m.ckg").read_bytes())
    (tmp_path / "m.ckg").write_bytes(bytes(len(data)))
    assert all(same(loaded[name], arrays[name]) for name in arrays)


def test_a_map_lives_as_long_as_its_tensors(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "m.ckg"
    descriptors = open_files()
    with ckptguard.safe_open(path, "pt", backend="mmap") as opened:
        tensor = opened.get_tensor("0.f4")
        rows = opened.get_slice("1.f8")[5:9]
    del opened
    assert maps_of(path) == 1
    del tensor
    assert maps_of(path) == 1
    assert np.array_equal(rows.numpy(), arrays["1.f8"][5:9])
    del rows
    assert maps_of(path) == 0
    assert open_files() == descriptors


def test_a_tensor_taken_twice_from_a_map_is_one_in_memory(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    with ckptguard.safe_open(tmp_path / "worn.ckg", "np", backend="mmap") as opened:
        first = opened.get_tensor("0.f4")
        first[...] = 3
        assert (opened.get_tensor("0.f4") == 3).all()  # neither checked nor corrected again
        assert (opened.get_slice("0.f4")[2:5] == 3).all()
        assert (opened.get_tensors()["0.f4"] == 3).all()
        assert same(opened.get_tensor("1.f8"), arrays["1.f8"])
    with safetensors.safe_open(write_plain(arrays, tmp_path), "pt") as plain:
        plain.get_tensor("0.f4").fill_(3)
        assert (plain.get_tensor("0.f4") == 3).all()


def write_plain(arrays: dict[str, np.ndarray], folder: Path) -> Path:
    safetensors.numpy.save_file(arrays, folder / "plain.safetensors")
    return folder / "plain.safetensors"


def test_only_the_pieces_that_are_touched_are_checked_in_a_map(tmp_path: Path) -> None:
    array = np.arange(40 << 16, dtype=np.int64).reshape(40, 1 << 16)
    ckptguard.save_file({"a": array, "b": array[:3]}, tmp_path / "m.ckg", code="secded:72,64")
    records: list[dict[str, Any]] = []
    with ckptguard.safe_open(tmp_path / "m.ckg", "np", backend="mmap", report=records.append) as opened:
        assert same(opened.get_slice("a")[::20, 5:7], array[::20, 5:7].copy())
        assert opened.get_slice("a")[3:3].shape == (0, 1 << 16)
    rows = {row["name"]: row["pieces"] for row in records[0]["tensors"]}
    assert set(rows) == {"a"}
    assert rows["a"] <= 4
    with ckptguard.safe_open(tmp_path / "m.ckg", "np", backend="mmap", report=records.append) as opened:
        for _ in range(2):
            opened.get_tensor("b")
    assert [row["name"] for row in records[1]["tensors"]] == ["b"]


def test_the_report_of_a_mapped_file_is_that_of_reading(files: Files) -> None:
    records: list[dict[str, Any]] = []
    for backend in ("pread", "mmap"):
        ckptguard.load_file(files.worn["1e-2"], backend=backend, report=records.append)
    assert records[0] == records[1]


@pytest.mark.parametrize("policy", ["raw", "null"])
def test_lost_tensors_are_mapped_as_restore_writes_them(lossy: dict[str, Path], policy: str) -> None:
    expected = safetensors.torch.load_file(lossy[policy])
    loaded = ckptguard.load_file(lossy["worn"], backend="mmap", on_error=policy)
    assert [name for name in expected if not same(loaded[name], expected[name])] == []
    with ckptguard.safe_open(lossy["worn"], "pt", backend="mmap", on_error=policy) as opened:
        assert same(opened.get_slice("b")[3:700:2, 1:5], expected["b"][3:700:2, 1:5].clone())
        assert same(opened.get_tensor("a"), expected["a"])


def test_lost_tensors_raise_in_a_map_as_often_as_they_are_asked_for(lossy: dict[str, Path]) -> None:
    with pytest.raises(UncorrectableError):
        ckptguard.load_file(lossy["worn"], backend="mmap")
    with ckptguard.safe_open(lossy["worn"], "pt", backend="mmap") as opened:
        for _ in range(2):
            with pytest.raises(UncorrectableError):
                opened.get_tensor("a")


def test_many_threads_may_share_a_mapped_handle(files: Files) -> None:
    names = [name for name in files.tensors if files.tensors[name].nelement()]
    order = random.Random(3).choices(names, k=100) + names
    with (
        ckptguard.safe_open(files.worn["1e-2"], "pt", backend="mmap") as opened,
        ThreadPoolExecutor(8) as pool,
    ):
        loaded = pool.map(opened.get_tensor, order)
        assert [n for n, tensor in zip(order, loaded, strict=True) if not same(tensor, files.tensors[n])] == []


def test_tensors_that_cannot_be_used_in_a_map_get_memory_of_their_own(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6.0), "b": np.arange(5, dtype=np.int16), "c": np.arange(8, dtype=np.uint8)}
    raw = safetensors.numpy.save(arrays)
    size = int.from_bytes(raw[:8], "little")
    odd = (size + 3).to_bytes(8, "little") + raw[8 : 8 + size] + b"   " + raw[8 + size :]  # data at an odd place
    (tmp_path / "odd.safetensors").write_bytes(odd)
    ckptguard.protect(tmp_path / "odd.safetensors", tmp_path / "odd.ckg", code="secded:72,64")
    loaded = ckptguard.numpy.load_file(tmp_path / "odd.ckg", backend="mmap")
    assert {name: is_mapped(array) for name, array in loaded.items()} == {"a": False, "b": False, "c": True}
    assert all(same(loaded[name], array) and array.flags.aligned for name, array in arrays.items())
    ckptguard.save_file({"a": np.ones(99, "f4")}, tmp_path / "fixed.ckg", code="secded:72,64", representation="fixed:8")
    loaded = ckptguard.numpy.load_file(tmp_path / "fixed.ckg", backend="mmap")
    assert (is_mapped(loaded["a"]), float(loaded["a"].mean())) == (False, 1.0)


@pytest.mark.parametrize("cut", ["head", "tail"])
def test_a_container_without_one_of_its_ends_is_mapped_as_far_as_it_goes(
    files: Files, tmp_path: Path, cut: str
) -> None:
    data = files.clean.read_bytes()
    with ckptguard.safe_open(files.clean, "pt") as opened:
        block = opened._opened.shards[0].file.superblock  # type: ignore[union-attr]
    kept = data[block.payload_offset + 1001 :] if cut == "head" else data[: block.payload_offset + 2 * 10**6]
    (tmp_path / "cut.ckg").write_bytes(kept)
    read, mapped = (
        ckptguard.load_file(tmp_path / "cut.ckg", backend=backend, on_error="raw") for backend in ("pread", "mmap")
    )
    assert [name for name in read if not same(mapped[name], read[name])] == []
    exact = [name for name, tensor in files.tensors.items() if same(mapped[name], tensor)]
    assert len(exact) == len(files.tensors) if cut == "head" else 5 < len(exact) < len(files.tensors)


def test_a_sidecar_is_mapped_over_its_file(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(files.plain.read_bytes())
    ckptguard.protect(path, sidecar=True, code=STRONG)
    flip(path, 1e-3, 1)
    before = path.read_bytes()
    loaded = ckptguard.load_file(path, backend="mmap")
    assert [n for n, tensor in files.tensors.items() if not same(loaded[n], tensor)] == []
    assert is_mapped(loaded["wide"].numpy())
    assert path.read_bytes() == before


def test_a_file_the_system_does_not_map_is_told_with_what_to_do(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise OSError(19, "No such device")

    monkeypatch.setattr("mmap.mmap", refuse)
    with pytest.raises(ContainerError, match=r"cannot be mapped: No such device.*pread"):
        ckptguard.load_file(files.clean, backend="mmap")


# --- lazy state dicts -----------------------------------------------------------------------------


def materialised(tensor: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """What loaders of models do with whatever stands for a tensor: ask for shape and dtype, then index."""
    assert len(tensor.shape) == tensor.ndim
    assert tensor.shape == torch.Size(tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape)
    whole = tensor[...]
    assert (whole.shape, whole.dtype) == (tensor.shape, tensor.dtype)
    return whole if dtype is None else whole.to(dtype)


@pytest.mark.parametrize("backend", ["pread", "mmap"])
def test_slices_stand_for_tensors_in_a_lazy_state_dict(files: Files, backend: str, bytes_read: list[int]) -> None:
    with ckptguard.safe_open(files.clean, "pt", backend=backend) as opened:
        state = {name: opened.get_slice(name) for name in opened.keys() if name != "every.F4"}  # noqa: SIM118
        assert bytes_read == []
        for name, tensor in state.items():
            assert same(materialised(tensor), materialised(files.tensors[name]))
        half = state["wide"].shape[0] // 2  # one rank of a tensor-parallel group
        assert same(state["wide"][half:], files.tensors["wide"][half:].clone())
        assert materialised(state["wide"], torch.bfloat16).dtype == torch.bfloat16
    with ckptguard.safe_open(files.clean, "np") as opened:
        part = opened.get_slice("narrow")
    assert (part.shape, part.dtype, part.ndim) == ((200_003, 3), np.dtype("f2"), 2)


# --- places ---------------------------------------------------------------------------------------


def flip(path: Path, rate: float, seed: int) -> None:
    """Flip bits of a file in place."""
    rng = np.random.default_rng(seed)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    where = rng.choice(data.size * 8, rng.binomial(data.size * 8, rate), replace=False)
    np.bitwise_xor.at(data, where // 8, (1 << where % 8).astype(np.uint8))
    path.write_bytes(data.tobytes())


def test_a_safetensors_file_loads_through_the_sidecar_beside_it(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(files.plain.read_bytes())
    ckptguard.protect(path, sidecar=True, code=STRONG)
    flip(path, 1e-3, 1)
    for name in (path, tmp_path / "model.safetensors.ckg", tmp_path):
        loaded = ckptguard.load_file(name)
        assert [n for n, tensor in files.tensors.items() if not same(loaded[n], tensor)] == []


def test_a_plain_safetensors_file_is_refused_with_what_to_do(files: Files) -> None:
    with pytest.raises(ContainerError, match=r"no model.safetensors.ckg beside it.*ckptguard protect"):
        ckptguard.load_file(files.plain)
    with pytest.raises(ContainerError, match="no such file"):
        ckptguard.load_file(files.plain.with_name("other.safetensors"))


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A sharded checkpoint with its index and config."""
    path = tmp_path / "sharded"
    path.mkdir()
    tensors = {f"layer.{i}": random_tensor("BF16", 200, 31, seed=i) for i in range(6)}
    for number in (1, 2):
        half = {n: t for i, (n, t) in enumerate(tensors.items()) if i % 2 == number - 1}
        safetensors.torch.save_file(
            half, path / f"model-{number:05}-of-00002.safetensors", {"part": str(number), "x": "y"}
        )
    weight_map = {n: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, n in enumerate(tensors)}
    (path / "model.safetensors.index.json").write_text(
        str({"metadata": {}, "weight_map": weight_map}).replace("'", '"')
    )
    (path / "config.json").write_text("{}")
    return path, tensors


def test_a_folder_of_shards_loads_as_one(folder: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    path, tensors = folder
    ckptguard.protect(path, tmp_path / "protected", code=STRONG)
    ckptguard.corrupt(tmp_path / "protected", tmp_path / "worn", seed=1, channel="bsc:1e-2")
    loaded = ckptguard.load_file(tmp_path / "worn")
    assert set(loaded) == set(tensors)
    assert all(same(loaded[name], tensor) for name, tensor in tensors.items())
    with ckptguard.safe_open(tmp_path / "worn", "pt") as opened:
        assert opened.metadata() == {"part": "1", "x": "y"}
        assert opened.offset_keys() == [f"layer.{i}" for i in (0, 2, 4, 1, 3, 5)]


def test_one_file_of_a_sharded_checkpoint_holds_its_own_tensors(folder: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, tensors = folder
    ckptguard.protect(path, sidecar=True, code=STRONG)
    loaded = ckptguard.load_file(path / "model-00002-of-00002.safetensors")
    assert sorted(loaded) == ["layer.1", "layer.3", "layer.5"]
    assert sorted(ckptguard.load_file(path)) == sorted(tensors)


def test_tensors_on_several_devices_load_as_one(files: Files, tmp_path: Path) -> None:
    devices = DeviceMap.parse(
        """
        [[device]]
        name = "slow"
        tensors = ["wide", "every.*"]
        channel = "bsc:1e-2"
        [[device]]
        name = "fast"
        tensors = ["*"]
        channel = "bsc:1e-4"
        """
    )
    ckptguard.save_file(files.tensors, tmp_path / "split", METADATA, devices=devices, code=STRONG)
    ckptguard.corrupt(tmp_path / "split", tmp_path / "worn", seed=2)
    loaded = ckptguard.load_file(tmp_path / "worn")
    full = [name for name in ckptguard.load_file(files.clean, "meta") if files.tensors[name].nelement()]
    assert [name for name in loaded if files.tensors[name].nelement()] == full
    assert [name for name, tensor in files.tensors.items() if not same(loaded[name], tensor)] == []
    with ckptguard.safe_open(tmp_path / "worn", "pt") as opened:
        assert opened.metadata() == METADATA


@pytest.mark.parametrize("cut", ["head", "tail"])
def test_a_container_without_one_of_its_ends_loads_exactly(files: Files, tmp_path: Path, cut: str) -> None:
    data = files.clean.read_bytes()
    with ckptguard.safe_open(files.clean, "pt") as opened:
        superblock = opened._opened.shards[0].file.superblock  # type: ignore[union-attr]
    first = superblock.payload_offset + 100  # into the payload's copy of the safetensors header
    kept = data[first:] if cut == "head" else data[: superblock.tail_offset]
    (tmp_path / "cut.ckg").write_bytes(kept)
    loaded = ckptguard.load_file(tmp_path / "cut.ckg")
    assert [name for name, tensor in files.tensors.items() if not same(loaded[name], tensor)] == []


# --- handles --------------------------------------------------------------------------------------


def test_a_missing_tensor_is_told_with_the_closest_name(files: Files) -> None:
    with ckptguard.safe_open(files.clean, "pt") as opened:
        for read in (opened.get_tensor, opened.get_slice, lambda name: opened.get_tensors([name])):
            with pytest.raises(LoadError, match="no tensor 'wides', did you mean 'wide'"):
                read("wides")
    assert issubclass(LoadError, safetensors.SafetensorError)
    assert issubclass(LoadError, CheckpointError)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_closed_handle_raises_and_its_slices_go_on(files: Files) -> None:
    before = open_files()
    with ckptguard.safe_open(files.worn["1e-3"], "pt") as opened:
        part = opened.get_slice("deep")
    for read in (
        opened.keys,
        opened.offset_keys,
        opened.metadata,
        opened.get_tensors,
        lambda: opened.get_tensor("deep"),
    ):
        with pytest.raises(LoadError, match="closed"):
            read()
    assert same(part[3:5], files.tensors["deep"][3:5].clone())
    opened.__exit__(None, None, None)
    del part
    assert open_files() == before


def test_a_handle_works_without_a_with_block(files: Files) -> None:
    opened = ckptguard.safe_open(files.clean, "pt")
    assert same(opened.get_tensor("scalar"), files.tensors["scalar"])


def test_many_threads_may_share_a_handle(files: Files) -> None:
    names = [name for name in files.tensors if files.tensors[name].nelement()]
    records: list[dict[str, Any]] = []
    for jobs in (1, 8):
        order = random.Random(jobs).choices(names, k=12 * jobs) + names
        with (
            ckptguard.safe_open(files.worn["1e-2"], "pt", report=records.append) as opened,
            ThreadPoolExecutor(jobs) as pool,
        ):
            loaded = pool.map(opened.get_tensor, order)
            assert [n for n, tensor in zip(order, loaded, strict=True) if not same(tensor, files.tensors[n])] == []
    assert records[0] == records[1]


def test_the_report_of_loading_agrees_with_check(files: Files) -> None:
    records: list[dict[str, Any]] = []
    ckptguard.load_file(files.worn["1e-2"], report=records.append)
    rows = {row["name"]: row for row in records[0]["tensors"]}
    for row in ckptguard.check(files.worn["1e-2"]).to_json()["tensors"]:
        if row["kind"] == "tensor" and row["pieces"]:
            assert rows[row["name"]] == row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"framework": "tf"}, "unknown framework 'tf'"),
        ({"framework": "np", "device": "cuda"}, "numpy has no device 'cuda'"),
        ({"device": "moon"}, "torch has no device 'moon'"),
        ({"backend": "tape"}, "unknown backend 'tape'"),
    ],
)
def test_what_there_is_not_is_refused(files: Files, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ckptguard.load_file(files.clean, **options)


def test_a_dtype_the_framework_lacks_is_refused_before_anything_is_read(files: Files, bytes_read: list[int]) -> None:
    with pytest.raises(UsageError, match="numpy has no type for"):
        ckptguard.load_file(files.clean, framework="np")
    assert bytes_read == []


def test_numpy_users_never_import_torch(files: Files, tmp_path: Path) -> None:
    program = f"""
import sys
import numpy
import ckptguard.numpy, ckptguard.torch
ckptguard.numpy.save_file({{"a": numpy.arange(5)}}, {str(tmp_path / "m.ckg")!r})
assert ckptguard.numpy.load_file({str(tmp_path / "m.ckg")!r})["a"][3] == 3
with ckptguard.safe_open({str(files.clean)!r}, "np") as opened:
    assert opened.get_slice("wide")[3].shape == (1001,)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(ckptguard.__file__).parents[1])


@pytest.mark.parametrize("backend", ["pread", "mmap"])
def test_a_clean_container_is_inspected_and_loaded_without_numba(files: Files, backend: str) -> None:
    program = f"""
import sys
import ckptguard, ckptguard.cli
assert ckptguard.inspect({str(files.clean)!r}).tensors
with ckptguard.safe_open({str(files.clean)!r}, "np", backend={backend!r}) as opened:
    opened.get_tensor("wide"), opened.get_slice("narrow")[3:5]
assert "numba" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(ckptguard.__file__).parents[1])


# --- saving ---------------------------------------------------------------------------------------


def test_saved_tensors_load_again(files: Files, tmp_path: Path) -> None:
    made = ckptguard.save_file(files.tensors, tmp_path / "m.ckg", {"a": "b"}, bits=3, code="secded:72,64")
    assert made.path == tmp_path / "m.ckg"
    loaded = ckptguard.load_file(tmp_path / "m.ckg")
    assert [name for name, tensor in files.tensors.items() if not same(loaded[name], tensor)] == []
    ckptguard.restore(tmp_path / "m.ckg", tmp_path / "restored.safetensors")
    safetensors.torch.save_file(files.tensors, tmp_path / "plain.safetensors", {"a": "b"})
    assert safetensors.safe_open(tmp_path / "restored.safetensors", "pt").metadata() == {"a": "b"}
    assert (tmp_path / "restored.safetensors").stat().st_size == (tmp_path / "plain.safetensors").stat().st_size
    assert not list(tmp_path.glob(".ckptguard-*"))


def test_a_file_named_safetensors_stays_one_and_gets_a_sidecar(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for seed in (1, 2):  # the second replaces the first
        tensors = {"a": random_tensor("F32", 99, 31, seed=seed)}
        made = ckptguard.save_file(tensors, path)
        assert made.path == tmp_path / "m.safetensors.ckg"
        assert same(safetensors.torch.load_file(path)["a"], tensors["a"])
        assert same(ckptguard.load_file(path)["a"], tensors["a"])
    with pytest.raises(UsageError, match="exists already"):
        ckptguard.save_file(tensors, path, overwrite=False)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.safetensors", "m.safetensors.ckg"]


def test_arrays_are_saved_as_their_strides_say(tmp_path: Path) -> None:
    array = np.arange(24.0).reshape(4, 6)
    ckptguard.numpy.save_file({"t": array.T, "s": array[::2, 1::3], "0": np.float32(7)}, tmp_path / "m.ckg")
    loaded = ckptguard.numpy.load_file(tmp_path / "m.ckg")
    assert np.array_equal(loaded["t"], array.T)
    assert np.array_equal(loaded["s"], array[::2, 1::3])
    assert loaded["0"].shape == ()


@pytest.mark.parametrize("values", [{"a": torch.zeros(2), "b": np.zeros(2)}, {"a": [1, 2]}])
def test_mixed_and_foreign_values_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="all values must be tensors of torch, or all must be arrays of numpy"):
        ckptguard.save_file(values, tmp_path / "m.ckg")
    assert list(tmp_path.iterdir()) == []


class Tied(torch.nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(30, 8)
        self.head = torch.nn.Linear(8, 30, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def test_models_are_saved_and_loaded_as_by_safetensors(tmp_path: Path) -> None:
    model, other, third = Tied(), Tied(), Tied()
    ckptguard.torch.save_model(model, tmp_path / "m.ckg", {"a": "b"})
    safetensors.torch.save_model(model, str(tmp_path / "m.safetensors"), {"a": "b"})
    with ckptguard.safe_open(tmp_path / "m.ckg", "pt") as ours:
        assert ours.metadata() == safetensors.safe_open(tmp_path / "m.safetensors", "pt").metadata()
    assert ckptguard.torch.load_model(other, tmp_path / "m.ckg") == ([], [])
    safetensors.torch.load_model(third, tmp_path / "m.safetensors")
    assert same(other.head.weight.data, model.embed.weight.data)
    assert same(third.head.weight.data, model.embed.weight.data)


def test_models_that_do_not_fit_raise_as_in_safetensors(tmp_path: Path) -> None:
    ckptguard.torch.save_model(Tied(), tmp_path / "m.ckg")
    safetensors.torch.save_model(Tied(), str(tmp_path / "m.safetensors"))
    messages = []
    for load, path in ((ckptguard.torch.load_model, "m.ckg"), (safetensors.torch.load_model, "m.safetensors")):
        with pytest.raises(RuntimeError) as raised:
            load(torch.nn.Linear(8, 30), tmp_path / path)
        messages.append(str(raised.value))
        missing, unexpected = load(torch.nn.Linear(8, 30), tmp_path / path, strict=False)
        assert (sorted(missing), len(unexpected)) == (["bias", "weight"], 1)
    assert messages[0] == messages[1]


# --- the page on loading -----------------------------------------------------------------------------


def test_the_examples_of_the_page_on_loading_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = doctest.testfile(str(PAGE), module_relative=False)
    assert results.attempted > 10
    assert results.failed == 0
