"""Inputs and labels for `classification` and `logits`: .npz files, CSV files, image folders, functions."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard.errors import MissingExtraError, UsageError
from ckptguard.evaluate.frameworks import import_torch
from ckptguard.evaluate.settings import Settings
from ckptguard.evaluate.user import load_object

Array = npt.NDArray[Any]

DATA_KEYS = {
    "data": "FILE.npz, FILE.csv, a folder with one folder of images per class, or FILE.py:function",
    "part": "I/N: the I-th of N parts that a fixed shuffle cuts the data into, so that parts share no input",
    "limit": "use the first so many inputs",
    "inputs": "name of the array of inputs in an .npz (default: inputs or x)",
    "labels": "name of the array (default: labels or y) or of the CSV column (default: label, or the last) of labels",
    "names": "file with the names of the classes, one per line",
    "resize": "size of images as 32x32 (height, width); they must be of one size without it",
    "mean": "to subtract from images in [0, 1], per channel: 0.49/0.48/0.45",
    "std": "to divide images by, per channel",
}
_SHUFFLE = 0x70617274  # the same for everyone, so that parts of several commands fit together
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".webp"}


@dataclass(frozen=True)
class Data:
    """Inputs, (count, ...) tensor, with (count,) int64 labels, -1 where there are none, and names of classes."""

    inputs: Any
    labels: Any
    names: tuple[str, ...] = ()


def load_data(settings: Settings, key: str = "data", labelled: bool = True) -> Data:
    """The data that `key` names; UsageError says what is wrong with it."""
    text = settings.text(key)
    path, limit = Path(text), settings.optional_integer("limit")
    names: tuple[str, ...] = ()
    inputs: Any
    labels: Any
    if path.is_dir():
        inputs, labels, names = _image_folder(path, settings, None if "part" in settings else limit)
    elif path.suffix == ".npz":
        inputs, labels = _npz(path, settings, labelled)
    elif path.suffix == ".csv":
        inputs, labels = _csv(path, settings, labelled)
    elif text.rpartition(":")[0].endswith(".py"):
        inputs, labels = _function(text, labelled)
    else:
        raise UsageError(f"{key}={text} is no .npz, .csv, folder or FILE.py:function; {settings.keys[key]}")
    if "names" in settings:
        names = tuple(Path(settings.text("names")).read_text(encoding="utf-8").split("\n"))
    if "part" not in settings:
        return _as_tensors(text, inputs, labels, names, limit)
    whole = _as_tensors(text, inputs, labels, names, None)
    chosen = _part(settings.text("part"), len(whole.labels))[:limit]
    return Data(whole.inputs[chosen], whole.labels[chosen], whole.names)


def _part(text: str, count: int) -> Array:
    """Indices of a part, shuffled: data that is sorted by class has balanced parts all the same."""
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second) <= count):
        raise UsageError(f"part={text}: expected I/N with 1 <= I <= N <= {count} inputs, such as 1/2")
    index, parts = int(first), int(second)
    order = np.random.Generator(np.random.Philox(_SHUFFLE)).permutation(count)
    return order[count * (index - 1) // parts : count * index // parts]


def _as_tensors(where: str, inputs: Any, labels: Any, names: tuple[str, ...], limit: int | None) -> Data:
    torch = import_torch()
    inputs = inputs if isinstance(inputs, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(inputs))
    if labels is None:
        labels = torch.full((len(inputs),), -1)
    labels = labels if isinstance(labels, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(labels))
    if labels.shape != inputs.shape[:1] or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise UsageError(
            f"{where}: labels are {labels.dtype} {list(labels.shape)} for inputs {list(inputs.shape)}; expected one "
            "whole number per input"
        )
    if not len(inputs):
        raise UsageError(f"{where}: has no inputs")
    return Data(inputs[:limit], labels[:limit].to(torch.int64), names)


def _npz(path: Path, settings: Settings, labelled: bool) -> tuple[Array, Array | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as .npz of plain arrays: {error}") from error
    given = settings.values
    inputs = _pick(path, arrays, [given["inputs"]] if "inputs" in given and labelled else ["inputs", "x"])
    labels = _pick(path, arrays, [given["labels"]] if "labels" in given else ["labels", "y"]) if labelled else None
    return inputs, labels


def _pick(path: Path, arrays: dict[str, Array], names: list[str]) -> Array:
    for name in names:
        if name in arrays:
            return arrays[name]
    raise UsageError(f"{path}: has no array {' or '.join(map(repr, names))}; it has {', '.join(sorted(arrays))}")


def _csv(path: Path, settings: Settings, labelled: bool) -> tuple[Array, Array | None]:
    """Columns by the header line; all but the labels are numbers. Labels that are words are numbered in their order."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = [row for row in csv.reader(file) if row]
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as CSV with a header line: {error}") from error
    label = _label_column(path, header, settings) if labelled else None
    columns = [index for index in range(len(header)) if index != label]
    try:
        inputs = np.array([[float(row[index]) for index in columns] for row in rows], np.float32)
    except (ValueError, IndexError) as error:
        raise UsageError(f"{path}: {error}; every column but the labels must hold numbers") from error
    return inputs, None if label is None else _numbered([row[label] for row in rows])


def _label_column(path: Path, header: list[str], settings: Settings) -> int:
    name = settings.text("labels", "label" if "label" in header else header[-1])
    if name not in header:
        raise UsageError(f"{path}: has no column {name!r}; it has {', '.join(header)}")
    return header.index(name)


def _numbered(labels: list[str]) -> Array:
    try:
        return np.array([int(label) for label in labels], np.int64)
    except ValueError:
        return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _function(spec: str, labelled: bool) -> tuple[Any, Any]:
    found = load_object(spec)()
    if labelled and not (isinstance(found, tuple | list) and len(found) == 2):
        raise UsageError(f"{spec}: returned {type(found).__name__}; expected (inputs, labels)")
    if isinstance(found, tuple | list):
        return found[0], found[1] if labelled else None
    return found, None


def _image_folder(path: Path, settings: Settings, limit: int | None) -> tuple[Array, Array, tuple[str, ...]]:
    """Images of the class folders, taken in turn from each class so that any prefix is balanced."""
    classes = sorted(folder for folder in path.iterdir() if folder.is_dir())
    lists = [sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGES) for folder in classes]
    turns = sorted((place, label) for label, files in enumerate(lists) for place in range(len(files)))[:limit]
    if not turns:
        raise UsageError(f"{path}: has no folders with images ({', '.join(sorted(IMAGES))})")
    pixels = _read_images([lists[label][place] for place, label in turns], settings)
    return pixels, np.array([label for _, label in turns], np.int64), tuple(folder.name for folder in classes)


def _read_images(files: Iterable[Path], settings: Settings) -> Array:
    """(count, 3, height, width) float32, normalised."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("images need Pillow: pip install 'ckptguard[images]'") from error
    size = _size(settings)
    rows = []
    for file in files:
        with Image.open(file) as image:
            colour = image.convert("RGB")
            rows.append(np.asarray(colour if size is None else colour.resize(size, Image.Resampling.BILINEAR)))
        if rows[-1].shape != rows[0].shape:
            raise UsageError(f"{file}: is {rows[-1].shape[:2]} pixels, others {rows[0].shape[:2]}; give resize=")
    pixels = np.stack(rows).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    return (pixels - _channels(settings, "mean", 0.0)) / _channels(settings, "std", 1.0)


def _size(settings: Settings) -> tuple[int, int] | None:
    """(width, height), as Pillow has it."""
    if "resize" not in settings:
        return None
    shape = settings.shape("resize")
    if len(shape) != 2:
        raise UsageError(f"resize={settings.text('resize')}: expected height and width as in 32x32")
    return shape[1], shape[0]


def _channels(settings: Settings, key: str, default: float) -> Array:
    try:
        values = [float(part) for part in settings.text(key, str(default)).split("/")]
    except ValueError as error:
        raise UsageError(f"{key}={settings.text(key)}: expected numbers as in 0.49/0.48/0.45") from error
    if len(values) not in (1, 3):
        raise UsageError(f"{key}={settings.text(key)}: expected one number or three")
    return np.array(values, np.float32).reshape(-1, 1, 1)
