"""Folders of checkpoint files, and their indices."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from ckptguard.checkpoint import list_checkpoint
from ckptguard.errors import CheckpointError


def save(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file({name: np.ones(4, dtype="<f4") for name in names}, path)


def save_index(path: Path, weight_map: object) -> None:
    path.write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A folder as model hubs have it: two shards, index, config, tokenizer, and things that are none of ours."""
    root = tmp_path / "model"
    save(root / "model-00001-of-00002.safetensors", "a", "b")
    save(root / "model-00002-of-00002.safetensors", "c")
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_index(root / "model.safetensors.index.json", {"a": first, "b": first, "c": second})
    (root / "config.json").write_text("{}")
    (root / "pytorch_model.bin").write_bytes(b"opaque here")
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "слова.txt").write_text("x")
    (root / ".git").mkdir()
    (root / ".git" / "HEAD").write_text("x")
    (root / ".hidden").write_text("x")
    (root / "older.ckg").write_text("x")
    return root


def test_a_single_file_is_a_checkpoint_of_one(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", "w")
    save(tmp_path / "b.safetensors", "w")
    checkpoint = list_checkpoint(tmp_path / "a.safetensors")
    assert checkpoint.root == tmp_path
    (file,) = checkpoint.files
    assert (file.name, file.path) == ("a.safetensors", tmp_path / "a.safetensors")
    assert file.bytes == (tmp_path / "a.safetensors").stat().st_size
    assert file.header is not None
    assert file.header.tensors[0].name == "w"


def test_a_folder_lists_every_file_but_hidden_ones_and_containers(sharded: Path) -> None:
    checkpoint = list_checkpoint(sharded)
    assert checkpoint.root == sharded
    assert [file.name for file in checkpoint.files] == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "tokenizer/слова.txt",
    ]
    assert [file.name for file in checkpoint.files if file.header] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert all(file.bytes == file.path.stat().st_size for file in checkpoint.files)


def test_a_folder_without_index_takes_its_safetensors_files(tmp_path: Path) -> None:
    save(tmp_path / "unet" / "a.safetensors", "w")
    save(tmp_path / "b.safetensors", "w")
    assert [file.name for file in list_checkpoint(tmp_path).files] == ["b.safetensors", "unet/a.safetensors"]


def test_an_index_in_a_folder_below_speaks_of_its_own_folder(tmp_path: Path) -> None:
    save(tmp_path / "unet" / "a.safetensors", "w")
    save_index(tmp_path / "unet" / "diffusion.safetensors.index.json", {"w": "a.safetensors"})
    assert len(list_checkpoint(tmp_path).files) == 2
    save_index(tmp_path / "unet" / "diffusion.safetensors.index.json", {"v": "a.safetensors"})
    with pytest.raises(CheckpointError, match="does not hold"):
        list_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "word"),
    [
        ({"a": "1.safetensors", "b": "2.safetensors"}, "not there"),
        ({"a": "1.safetensors", "b": "config.json"}, "not there as a .safetensors file"),
        ({"a": "1.safetensors", "b": "1.safetensors", "c": "1.safetensors"}, "places 'c' in '1.safetensors'"),
        ({"a": "1.safetensors"}, "does not place 'b'"),
        ({"a": "../1.safetensors", "b": "1.safetensors"}, "expected the name of a file in this folder"),
        ({"a": "/1.safetensors", "b": "1.safetensors"}, "expected the name"),
        ({"a": "./1.safetensors", "b": "1.safetensors"}, "expected the name"),
        ({"a": "", "b": "1.safetensors"}, "expected the name"),
        ({"a": 1, "b": "1.safetensors"}, "expected the name"),
        ([], "no object 'weight_map'"),
        (None, "no object 'weight_map'"),
    ],
)
def test_an_index_that_contradicts_the_files_is_refused(weight_map: object, word: str, tmp_path: Path) -> None:
    save(tmp_path / "1.safetensors", "a", "b")
    (tmp_path / "config.json").write_text("{}")
    save_index(tmp_path / "model.safetensors.index.json", weight_map)
    with pytest.raises(CheckpointError) as caught:
        list_checkpoint(tmp_path)
    assert word in str(caught.value)
    assert "model.safetensors.index.json" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"{", "not the JSON"),
        (b"\xff\xfe", "not the JSON"),
        (b"[]", "no object"),
        (b"[" * 100_000, "not the JSON"),
        (b'{"weight_map":{"a":"1.safetensors","a":"1.safetensors"}}', "given twice"),
        (b'{"weight_map":{},"weight_map":{}}', "given twice"),
    ],
)
def test_an_index_that_is_no_json_object_is_refused(content: bytes, word: str, tmp_path: Path) -> None:
    save(tmp_path / "1.safetensors", "a")
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=word):
        list_checkpoint(tmp_path)


def test_torch_files_alone_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*--select"):
        list_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="convert it"):
        list_checkpoint(tmp_path / "pytorch_model.bin")


def test_nothing_to_protect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found: nothing"):
        list_checkpoint(tmp_path)
    for index in range(7):
        (tmp_path / f"{index}.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"'0\.txt'.* and 2 more"):
        list_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        list_checkpoint(tmp_path / "absent")


def test_a_malformed_shard_is_refused_by_its_path(sharded: Path) -> None:
    shard = sharded / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"00002-of-00002.*truncated"):
        list_checkpoint(sharded)


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_followed(sharded: Path, tmp_path: Path) -> None:
    (sharded / "again.json").symlink_to("config.json")
    assert any(file.name == "again.json" and file.bytes == 2 for file in list_checkpoint(sharded).files)
    (tmp_path / "secret").write_text("x")
    (sharded / "vocab.txt").symlink_to("../secret")
    with pytest.raises(CheckpointError, match=r"vocab\.txt.*outside"):
        list_checkpoint(sharded)


@pytest.mark.parametrize("target", ["absent", "loop"])
def test_a_link_to_nothing_is_refused(target: str, sharded: Path) -> None:
    (sharded / "loop").symlink_to(target)
    with pytest.raises(CheckpointError, match="loop: cannot be read"):
        list_checkpoint(sharded)


def test_a_link_to_a_folder_is_refused(sharded: Path) -> None:
    (sharded / "more").symlink_to("tokenizer")
    with pytest.raises(CheckpointError, match="symbolic link to a folder"):
        list_checkpoint(sharded)


def test_what_is_neither_file_nor_folder_is_refused(sharded: Path) -> None:
    os.mkfifo(sharded / "pipe")
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        list_checkpoint(sharded)


def test_a_file_name_that_is_no_text_is_refused(sharded: Path) -> None:
    Path(os.fsdecode(os.fsencode(sharded) + b"/\xff.json")).write_text("{}")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        list_checkpoint(sharded)


def test_a_snapshot_of_the_hugging_face_cache_may_link_into_its_blobs(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    save(repository / "blobs" / "0123abcd", "w")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("x")
    snapshot = repository / "snapshots" / "rev"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123abcd")
    (file,) = list_checkpoint(snapshot).files
    assert file.header is not None
    (snapshot / "main").symlink_to("../../refs/main")
    with pytest.raises(CheckpointError, match="outside"):
        list_checkpoint(snapshot)
