"""Torch files become the safetensors files that safetensors' own writer would make, and nothing in them is run."""

from __future__ import annotations

import collections
import os
import pickle
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckptguard.checkpoint import convert, read_header
from ckptguard.checkpoint import torch_file as module
from ckptguard.errors import CheckpointError, MissingExtraError, UsageError


def every_dtype() -> dict[str, torch.Tensor]:
    bits = torch.arange(48, dtype=torch.uint8)
    kinds = [getattr(torch, name) for name in module._DTYPES if name != "bool"]
    tensors = {f"слой.{str(kind).removeprefix('torch.')}": bits.view(kind).reshape(2, -1).clone() for kind in kinds}
    return {**tensors, "bool": torch.tensor([True, False]), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_the_file_has_the_bytes_of_the_reference_writer(zipped: bool, tmp_path: Path) -> None:
    tensors = every_dtype()
    if not zipped:  # the old container knows the old dtypes only
        old = {torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64}
        tensors = {name: tensor for name, tensor in tensors.items() if tensor.dtype in old}
    source = saved(tmp_path / "a.pt", tensors, _use_new_zipfile_serialization=zipped)
    conversion = convert(source, tmp_path / "a.safetensors")
    save_file(tensors, tmp_path / "b.safetensors", metadata={"format": "pt"})
    assert conversion.path.read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert conversion.header == read_header(conversion.path)
    assert (conversion.selected, conversion.left_out, conversion.densified, conversion.shared) == (".", (), (), ())


def test_tensors_larger_than_a_piece_pass_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE_BYTES", 40)
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(7, 5, 3, generator=generator)
    tensors = {
        "plain": matrix,
        "turned": matrix.clone().permute(2, 0, 1),
        "row": matrix.clone()[:, 1],
        "one": matrix[:1],
    }
    source = saved(tmp_path / "a.pt", tensors)
    conversion = convert(source, tmp_path / "a.safetensors")
    dense = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    save_file(dense, tmp_path / "b.safetensors", metadata={"format": "pt"})
    assert conversion.path.read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_views_are_written_densely_and_reported(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "embed": base, "head": base, "turned": torch.arange(6.0).reshape(2, 3).T, "wide": torch.ones(1).expand(4),
        "conjugate": torch.tensor([1 + 2j]).conj(), "own": torch.zeros(3), "parameter": torch.nn.Parameter(base + 1),
    }  # fmt: skip
    conversion = convert(saved(tmp_path / "a.pt", tensors), tmp_path / "a.safetensors")
    assert conversion.densified == ("turned", "wide")
    assert conversion.shared == (("embed", "head"),)
    restored = load_file(conversion.path)
    assert list(restored) == sorted(restored, key=list(restored).index)
    for name, tensor in tensors.items():
        assert torch.equal(restored[name], tensor.detach()), name


def test_the_only_mapping_with_tensors_is_found_and_what_is_beside_it_is_told(tmp_path: Path) -> None:
    state = collections.OrderedDict({"module.w": torch.ones(2), "epoch_in_state": 3})
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    content = {"epoch": 7, "net": {"state_dict": state, "arch": "resnet"}, "history": [1.0, 2.0]}
    conversion = convert(saved(tmp_path / "a.pt", content), tmp_path / "a.safetensors")
    assert conversion.selected == "net.state_dict"
    assert [tensor.name for tensor in conversion.header.tensors] == ["module.w"]
    assert sorted(conversion.left_out) == [
        "epoch (int)",
        "history (list of 2)",
        "net.arch (str)",
        "net.state_dict._metadata (versions of modules, as load_state_dict reads)",
        "net.state_dict.epoch_in_state (int)",
    ]


def test_of_several_mappings_one_must_be_chosen(tmp_path: Path) -> None:
    content = {
        "model": {"a": torch.ones(1), "b": torch.ones(2)},
        "ema": [{"a": torch.zeros(1)}],
        "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}, 1: {"exp_avg": torch.ones(1)}}},
        "step": torch.tensor(3),
    }
    source = saved(tmp_path / "a.pt", content)
    target = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match="--select NAME") as caught:
        convert(source, target)
    for line in ("model  (2 tensors)", ".  (1 tensor)", "ema.0  (1 tensor)", "optimizer.state.1  (1 tensor)"):
        assert f"\n  {line}" in str(caught.value)
    with pytest.raises(CheckpointError, match="named 'modle'"):
        convert(source, target, "modle")
    assert not target.exists()
    assert convert(source, target, "ema.0").selected == "ema.0"
    assert torch.equal(load_file(target)["a"], torch.zeros(1))
    top = convert(source, tmp_path / "top.safetensors", ".")
    assert [tensor.name for tensor in top.header.tensors] == ["step"]
    assert "model (dict of 2)" in top.left_out
    assert sum("model" in entry for entry in top.left_out) == 1


def test_a_name_that_fits_two_mappings_is_refused(tmp_path: Path) -> None:
    content = {"a.b": {"w": torch.ones(1)}, "a": {"b": {"w": torch.ones(1)}}}
    with pytest.raises(CheckpointError, match="fits 2 mappings"):
        convert(saved(tmp_path / "a.pt", content), tmp_path / "a.safetensors", "a.b")


def test_many_mappings_are_listed_shortly(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.pt", {str(index): {"w": torch.ones(1)} for index in range(50)})
    with pytest.raises(CheckpointError, match="and 30 more"):
        convert(source, tmp_path / "a.safetensors")


def test_a_bare_tensor_and_a_bare_state_dict_convert(tmp_path: Path) -> None:
    bare = convert(saved(tmp_path / "a.pt", torch.ones(3)), tmp_path / "a.safetensors")
    assert torch.equal(load_file(bare.path)["tensor"], torch.ones(3))
    state = torch.nn.Linear(2, 2).state_dict()
    linear = convert(saved(tmp_path / "b.pt", state), tmp_path / "b.safetensors")
    assert {tensor.name for tensor in linear.header.tensors} == {"weight", "bias"}


class Trap:
    """Leaves a file behind when unpickled by a reader that runs what it reads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_by_name_and_not_run(zipped: bool, tmp_path: Path) -> None:
    content = {"w": torch.ones(1), "x": Trap(tmp_path / "sprung")}
    source = saved(tmp_path / "a.pt", content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"asks for posix\.mkdir, which is refused") as caught:
        convert(source, tmp_path / "a.safetensors")
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "a.safetensors").exists()


def test_files_that_are_no_torch_files_are_refused(tmp_path: Path) -> None:
    good = saved(tmp_path / "good.pt", {"w": torch.ones(100)}).read_bytes()
    legacy = saved(tmp_path / "old.pt", {"w": torch.ones(9)}, _use_new_zipfile_serialization=False).read_bytes()
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("readme.txt", "x")
    other = (tmp_path / "zip.pt").read_bytes()
    contents = [b"", b"x", b"<html>", good[:100], good[: len(good) // 2], legacy[:-20], legacy[:50], other]
    contents += [pickle.dumps({"w": 1}), pickle.dumps(2**70), b"\x80\x02]." * 3]
    for index, content in enumerate(contents):
        path = tmp_path / f"{index}.pt"
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(CheckpointError, match=f"{index}.pt"):
                convert(path, tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        convert(tmp_path / "absent.pt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_damaged_torch_files_convert_or_are_refused_but_never_crash(tmp_path: Path) -> None:
    image = saved(tmp_path / "a.pt", {"w": torch.ones(8)}, _use_new_zipfile_serialization=False).read_bytes()
    refused = 0
    for position in range(0, len(image), 3):
        damaged = bytearray(image)
        damaged[position] ^= 0x11
        (tmp_path / "b.pt").write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                convert(tmp_path / "b.pt", tmp_path / "b.safetensors", overwrite=True)
            except CheckpointError:
                refused += 1
    assert refused > 50


@pytest.mark.parametrize("content", [3, [], {}, {"a": 1}, {"a": {"b": "c"}}, [torch.ones(1)]], ids=repr)
def test_a_file_without_named_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        convert(saved(tmp_path / "a.pt", content), tmp_path / "a.safetensors")


def test_nesting_without_end_is_refused_and_cycles_are_walked_once(tmp_path: Path) -> None:
    deep: dict[str, Any] = {"w": torch.ones(1)}
    for _ in range(100):
        deep = {"a": deep}
    with pytest.raises(CheckpointError, match="deeper than 64"):
        convert(saved(tmp_path / "a.pt", deep), tmp_path / "a.safetensors")
    cycle: dict[str, Any] = {"net": {"w": torch.ones(1)}}
    cycle["self"] = cycle
    conversion = convert(saved(tmp_path / "b.pt", cycle), tmp_path / "b.safetensors")
    assert conversion.selected == "net"


def unsupported() -> dict[str, tuple[Any, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    return {
        "sparse": (torch.ones(3).to_sparse(), "sparse_coo"),
        "quantized": (quantized, "is quantized (qint8)"),
        "complex128": (torch.ones(3, dtype=torch.complex128), "complex128"),
        "complex32": (torch.ones(3, dtype=torch.complex64).to(torch.complex32), "complex32"),
        "meta": (torch.ones(3, device="meta"), "has no data"),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["sparse", "quantized", "complex128", "complex32", "meta"])
def test_a_tensor_that_safetensors_cannot_hold_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    tensor, word = unsupported()[kind]
    source = saved(tmp_path / "a.pt", {"fine": torch.ones(1), "odd.one": tensor})
    with pytest.raises(CheckpointError) as caught:
        convert(source, tmp_path / "a.safetensors")
    assert word in str(caught.value)
    assert "'odd.one'" in str(caught.value)
    assert not (tmp_path / "a.safetensors").exists()


def test_a_key_that_is_no_string_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the key 0 of a tensor is int"):
        convert(saved(tmp_path / "a.pt", {0: torch.ones(1)}), tmp_path / "a.safetensors")


def test_an_existing_destination_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.pt", {"w": torch.ones(1)})
    target = tmp_path / "a.safetensors"
    target.write_text("precious")
    with pytest.raises(UsageError, match="exists already"):
        convert(source, target)
    assert target.read_text() == "precious"
    convert(source, target, overwrite=True)
    assert read_header(target).tensors[0].name == "w"
    with pytest.raises(UsageError, match="does not exist"):
        convert(source, tmp_path / "absent" / "a.safetensors")


def test_tensors_that_would_fill_the_disk_are_refused_first(tmp_path: Path) -> None:
    source = saved(tmp_path / "a.pt", {"w": torch.ones(1).expand(2**50)})
    with pytest.raises(CheckpointError, match="free"):
        convert(source, tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_without_torch_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ckptguard\[torch\]'"):
        convert(tmp_path / "a.pt", tmp_path / "a.safetensors")


def test_the_package_is_imported_without_torch() -> None:
    import subprocess

    code = "import sys, ckptguard.checkpoint; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "selected", "left_out", "count"),
    [
        ("resnet20-12fca82f.th", "state_dict", ("best_prec1 (float)",), 97),
        ("imagenet-clip-text-photo.pth", ".", (), 1),
    ],
)
def test_published_torch_checkpoints_convert(
    name: str, selected: str, left_out: tuple[str, ...], count: int, tmp_path: Path
) -> None:
    source = Path(__file__).resolve().parents[2] / "shared" / "data" / name
    if not source.exists():
        pytest.skip("the published checkpoints lie in ../shared/data, which is absent")
    conversion = convert(source, tmp_path / "a.safetensors")
    assert (conversion.selected, conversion.left_out) == (selected, left_out)
    restored = load_file(conversion.path)
    content = torch.load(source, map_location="cpu", weights_only=True)
    expected = {"tensor": content} if isinstance(content, torch.Tensor) else content[selected]
    assert restored.keys() == expected.keys()
    assert len(restored) == count
    assert all(torch.equal(restored[key], expected[key]) for key in expected)
