"""`safe_open`: the tensors of a container one by one, or slices of them, decoded only where they are damaged."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError

from ckptguard.checkpoint.safetensors import parse_header
from ckptguard.container.shard_file import SUFFIX
from ckptguard.errors import CheckpointError, ContainerError, UsageError
from ckptguard.evaluate.frameworks import (
    framework_name,
    import_torch,
    numpy_dtype,
    tensor_from_bytes,
    tensor_shape,
    torch_dtype,
)
from ckptguard.pipeline.reader import Reader
from ckptguard.pipeline.shard import Shard, open_set
from ckptguard.plan import TENSOR, Part
from ckptguard.serving.indexing import basic_axes, select, stretches

BACKENDS = ("pread", "mmap")
DEFAULT_BACKEND = "pread"

Filename = str | os.PathLike[str]
TakeReport = Callable[[dict[str, Any]], object]
Bytes = npt.NDArray[np.uint8]


class LoadError(CheckpointError, SafetensorError):
    """A closed container, or a tensor that is not there. A SafetensorError too, as safetensors raises for these."""


class Opened:
    """An open container and its reader; the files are closed when nothing refers to it any more.

    Attributes:
        mapped: tensors are views of the mapped file where that can be; otherwise each gets a buffer of its own.
    """

    def __init__(
        self, filename: Filename, on_error: str, guard: bool, estimate: bool, jobs: int | None, mapped: bool
    ) -> None:
        path = Path(filename)
        self.mapped = mapped
        with contextlib.ExitStack() as stack:
            self.shards = _open(path, stack)
            self.reader = Reader(self.shards, on_error, guard=guard, estimate=estimate, jobs=jobs)
            self.parts = self.reader.tensors
            weakref.finalize(self, stack.pop_all().close)

    def record(self) -> dict[str, Any]:
        """The report so far; of the tensors only those of which something was read."""
        record = self.reader.report.to_json()
        record["tensors"] = [row for row in record["tensors"] if row["pieces"]]
        return record

    def offset_names(self) -> list[str]:
        """Names of the tensors in the order of their data, file after file."""
        files: dict[str, int] = {}
        places = []
        for shard in self.shards:
            numbers = [files.setdefault(source.name, len(files)) for source in shard.plan.sources]
            places += [
                (numbers[part.source], part.offset, part.offset + part.bytes, part.name)
                for part in shard.plan.parts
                if part.kind == TENSOR
            ]
        return [place[3] for place in sorted(places, key=itemgetter(0, 1, 2))]

    def metadata(self) -> dict[str, str] | None:
        """The free text of the headers; where files of a sharded checkpoint differ, the first one's entry."""
        found: dict[str, str] = {}
        for shard in self.shards:
            for source in shard.plan.sources:
                if source.header:
                    header = parse_header(source.header[8:], source.bytes - len(source.header), where=source.name)
                    found = header.metadata | found
        return found or None


def _open(path: Path, stack: contextlib.ExitStack) -> Sequence[Shard]:
    """A container as it is, or the sidecar beside a safetensors file."""
    beside = path.with_name(path.name + SUFFIX)
    if path.suffix != SUFFIX and not path.is_dir():
        if beside.exists():
            shard = Shard.open(beside)
            stack.callback(shard.close)
            return [shard]
        if path.suffix == ".safetensors" and path.exists():
            raise ContainerError(
                f"{path}: is not protected: there is no {beside.name} beside it; make one with "
                f"`ckptguard protect {path.name} --sidecar`, or load the file with safetensors itself"
            )
    return stack.enter_context(open_set(path, whole=False))


class TensorSlice:
    """A tensor that is read when it is indexed, and only as far as the index needs.

    Indices are those of the framework: whole numbers, slices, `...`, None read what they select; lists, arrays and
    tensors read the whole tensor first.
    """

    def __init__(self, opened: Opened, name: str, framework: str, device: Any) -> None:
        self._opened = opened
        self._name = name
        self._framework = framework
        self._device = device
        self._part = opened.parts[name]

    def get_shape(self) -> list[int]:
        """The shape, as in the header."""
        return list(self._part.shape)

    def get_dtype(self) -> str:
        """The dtype, as in the header: `F32`, `BF16`, ..."""
        return self._part.dtype.name

    @property
    def shape(self) -> Any:
        """The shape, as the whole tensor would have it: `torch.Size`, or a tuple."""
        shape = tensor_shape(self._framework, self._part.dtype, self._part.shape)
        return shape if self._framework == "numpy" else import_torch().Size(shape)

    @property
    def dtype(self) -> Any:
        """The dtype, as the whole tensor would have it: torch's or numpy's."""
        return numpy_dtype(self._part.dtype) if self._framework == "numpy" else torch_dtype(self._part.dtype)

    @property
    def ndim(self) -> int:
        """How many dimensions."""
        return len(self._part.shape)

    def __getitem__(self, index: Any) -> Any:
        """The selected elements; of a mapped file a view, where the framework gives views, otherwise a fresh tensor.

        Raises what the framework raises for a wrong index.
        """
        part = self._part
        stand_in = _stand_in(self._framework, part)
        shape = tuple(int(size) for size in stand_in[index].shape)
        if _is_meta(self._device):
            return import_torch().empty(shape, dtype=torch_dtype(part.dtype), device="meta")
        held = tensor_shape(self._framework, part.dtype, part.shape)
        axes = basic_axes(index, held)
        if axes is None:
            whole = read_tensor(self._opened, self._name, self._framework, "cpu")[index]
            return whole if str(self._device) == "cpu" else whole.to(self._device)
        itemsize = max(1, part.dtype.bits // 8)
        if self._opened.mapped:
            view = self._opened.reader.view(self._name, stretches(axes, itemsize))
            if view is not None:
                chosen = tensor_from_bytes(self._framework, part.dtype, part.shape, view)[index]
                return np.asarray(chosen) if self._framework == "numpy" else chosen.to(self._device)

        def read_into(begin: int, out: Bytes) -> None:
            self._opened.reader.read_into(self._name, begin, out)

        data = select(axes, itemsize, read_into)
        tensor = tensor_from_bytes(self._framework, part.dtype, (data.size * 8 // part.dtype.bits,), data, self._device)
        return tensor.reshape(shape)


def _stand_in(framework: str, part: Part) -> Any:
    """A tensor of the same shape and dtype without memory of its own, to try an index on."""
    shape = tensor_shape(framework, part.dtype, part.shape)
    if framework == "numpy":
        return np.broadcast_to(np.zeros((), numpy_dtype(part.dtype)), shape)
    torch = import_torch()
    torch_dtype(part.dtype)
    return torch.zeros((), dtype=torch.uint8).expand(shape)


def _is_meta(device: Any) -> bool:
    return str(device) == "meta"


def read_tensor(opened: Opened, name: str, framework: str, device: Any) -> Any:
    """A whole tensor of the framework, on its device; nothing is read for the device `meta`."""
    part = opened.parts[name]
    if _is_meta(device):
        shape = tensor_shape(framework, part.dtype, part.shape)
        return import_torch().empty(shape, dtype=torch_dtype(part.dtype), device="meta")
    data = opened.reader.view(name, [(0, part.bytes)]) if opened.mapped else None
    if data is None:
        data = opened.reader.elements(name, 0, part.bytes)
    return tensor_from_bytes(framework, part.dtype, part.shape, data, device)


def read_tensors(opened: Opened, names: Sequence[str], framework: str, device: Any, jobs: int | None) -> dict[str, Any]:
    """Whole tensors, in the order of `names`, read on several threads; views of the map or memory of their own."""
    if _is_meta(device):
        return {name: read_tensor(opened, name, framework, device) for name in names}
    held = opened.reader.views(names, jobs=jobs) if opened.mapped else {}

    def allocate(part: Part) -> Bytes:
        return held.setdefault(part.name, np.empty(part.bytes, np.uint8))

    opened.reader.load(allocate, names=[name for name in names if name not in held], jobs=jobs)
    parts = opened.parts
    return {
        name: tensor_from_bytes(framework, parts[name].dtype, parts[name].shape, held.pop(name), device)
        for name in dict.fromkeys(names)
    }


def check_dtype(framework: str, part: Part) -> None:
    """Raise UsageError or MissingExtraError before anything is read, where the framework lacks the dtype."""
    if framework == "numpy":
        numpy_dtype(part.dtype)
    else:
        torch_dtype(part.dtype)


def check_request(framework: str, device: Any, backend: str) -> tuple[str, Any]:
    """(framework, device) as used here. Raises UsageError for what there is not, MissingExtraError without torch."""
    if backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    framework = framework_name(framework)
    if framework == "numpy":
        if device not in ("cpu", None):
            raise UsageError(f"numpy has no device {str(device)!r}; leave it out, or ask for framework='pt'")
        return framework, "cpu"
    torch = import_torch()
    try:
        return framework, torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"torch has no device {device!r}: {str(error).splitlines()[0]}") from error


class safe_open:  # noqa: N801 - the name it has in safetensors
    """Open a container as `safetensors.safe_open` opens a file, and decode what is damaged when it is read.

    Args:
        filename: a container (a file or a folder of shards), or a safetensors file with its sidecar beside it.
        framework: `pt` or `np`.
        device: for torch; on `meta` nothing is read.
        backend: `pread` reads every tensor into memory of its own; what was checked there stays as it was checked.
            `mmap` maps the file privately, checks and corrects it in place, and gives views of the map without a copy
            (see docs/loading.md for what that trades).
        on_error: where protected bits are lost, in what is read: `raise` UncorrectableError, keep the bits as read
            (`raw`), or set the elements to zero (`null`).
        guard: where the container has range guards and what is read is damaged, set back bits that never vary and
            replace elements that cannot be.
        estimate: where the container has posterior restorers and what is read is damaged, read it as what it most
            likely was; its protected bits may be among what that changes.
        report: called at the end of the `with` block with the record of what was found in all that was read.
        jobs: threads for large tensors; default: as many as the process may run on.

    Raises:
        ContainerError, MetadataLostError, MismatchError: as the container is found.
    """

    def __init__(
        self,
        filename: Filename,
        framework: str,
        device: Any = "cpu",
        *,
        backend: str = DEFAULT_BACKEND,
        on_error: str = "raise",
        guard: bool = True,
        estimate: bool = True,
        report: TakeReport | None = None,
        jobs: int | None = None,
    ) -> None:
        self._framework, self._device = check_request(framework, device, backend)
        self._report = report
        self._jobs = jobs
        self._opened: Opened | None = Opened(filename, on_error, guard, estimate, jobs, mapped=backend == "mmap")

    def __enter__(self) -> safe_open:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        """Close; slices that were taken keep the files open and go on working, as in safetensors."""
        opened, self._opened = self._opened, None
        if opened is not None and self._report is not None:
            self._report(opened.record())

    def keys(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self._open().parts)

    def offset_keys(self) -> list[str]:
        """Names of the tensors, in the order of their data."""
        return self._open().offset_names()

    def metadata(self) -> dict[str, str] | None:
        """The free text of the safetensors header, from its armoured copy; None where there is none."""
        return self._open().metadata()

    def get_tensor(self, name: str) -> Any:
        """A whole tensor."""
        self._part(name)
        return read_tensor(self._open(), name, self._framework, self._device)

    def get_tensors(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """The tensors of these names (default: all, in the order of their data), read on several threads."""
        opened = self._open()
        names = opened.offset_names() if names is None else list(names)
        if not opened.parts.keys() >= set(names):
            for name in names:
                self._part(name)
        for part in {opened.parts[name].dtype.name: opened.parts[name] for name in names}.values():
            check_dtype(self._framework, part)
        return read_tensors(opened, names, self._framework, self._device, self._jobs)

    def get_slice(self, name: str) -> TensorSlice:
        """A tensor to be read by indexing."""
        self._part(name)
        return TensorSlice(self._open(), name, self._framework, self._device)

    def _open(self) -> Opened:
        if self._opened is None:
            raise LoadError("the container is closed; read inside the `with` block, or open it again")
        return self._opened

    def _part(self, name: str) -> Part:
        opened = self._open()
        try:
            opened.reader.place(name)
        except CheckpointError as error:
            raise LoadError(str(error)) from None
        part = opened.parts[name]
        check_dtype(self._framework, part)
        return part
