"""Prefix reuse: what a model computes before it first reads a changed weight is taken from an earlier run.

The unit is the operation of torch, not the module: a clean run of every batch is recorded as a tape of operations. A
cut at operation c is taken where the first of the changed weights is read. Of everything before it, only the tensors
that are read again after it (the activations that cross the cut) are kept. In later runs the model's own Python code
runs as always, but operations before the cut are not carried out: they return placeholders, or the kept tensors.
Against skipping whole modules this also skips the operations between modules, needs no more than the crossing
activations in memory, and stays right where modules work in place, share activations or keep some as attributes.

Exactness: an operation is skipped only if it is the one on the tape, all it read was unchanged, and it is free of
random numbers and of writes to anything that outlives the run. Where a run leaves the tape, or reads a placeholder
after the cut, it is repeated in full. The first use of every cut is compared bit for bit with a full run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ckptguard.evaluate.frameworks import import_torch

Place = tuple[int, int]
"""A storage made during a run: (operation that made it, which of its outputs)."""


@dataclass(frozen=True)
class _Output:
    """One output of an operation: an input itself, a view of one, a new tensor, or a plain value."""

    kind: str  # "input", "view", "new", "value"
    value: Any = None  # which input; the place of the storage; the value
    store_bytes: int = 0
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    offset: int = 0
    dtype: Any = None
    device: Any = None


@dataclass(frozen=True)
class _Operation:
    function: Any
    reads: tuple[Place | int, ...]  # storages: made in this run, or the address of another's
    outputs: tuple[_Output, ...]
    structure: Any  # of the outputs
    skippable: bool


@dataclass
class _Tape:
    """The operations of one batch; `first_use`: address of an outer storage -> first operation that reads it."""

    operations: list[_Operation] = field(default_factory=list)
    first_use: dict[int, int] = field(default_factory=dict)
    results: set[Place] = field(default_factory=set)

    def cut(self, changed: Iterable[int]) -> int:
        """How many operations come before the first that reads a changed storage or cannot be skipped.

        A changed storage that no operation reads may be read by other means: nothing is reused then.
        """
        limit = next((i for i, one in enumerate(self.operations) if not one.skippable), len(self.operations))
        return min([limit, *(self.first_use.get(address, 0) for address in changed)])

    def crossing(self, cut: int) -> set[Place]:
        """Storages made before a cut and read after it, or by the caller."""
        later = {place for one in self.operations[cut:] for place in one.reads if not isinstance(place, int)}
        return {place for place in later | self.results if place[0] < cut}


@dataclass
class ReuseReport:
    """What reuse did since the weights were loaded.

    Attributes:
        full, reused: runs of a batch.
        skipped_operations, operations: of the reused runs.
        diverged: runs that left the tape and were repeated in full.
        kept_bytes: held now.
        refused: why reuse was given up, or empty.
    """

    full: int = 0
    reused: int = 0
    skipped_operations: int = 0
    operations: int = 0
    diverged: int = 0
    kept_bytes: int = 0
    refused: str = ""


class _DivergedError(Exception):
    """A run does not follow its tape."""


class PrefixReuse:
    """Runs batches, reusing what unchanged weights determine.

    Args:
        budget: bytes of activations to keep at most; 0 switches reuse off.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.report = ReuseReport()
        self._tapes: dict[Hashable, _Tape] = {}
        self._kept: OrderedDict[int, dict[Hashable, dict[Place, Any]]] = OrderedDict()  # by cut, batch, place
        self._asked: set[tuple[int, Hashable]] = set()
        self._checked: set[int] = set()

    def forget(self) -> None:
        """Drop tapes and activations: other weights were loaded."""
        self.report = ReuseReport()
        self._tapes.clear()
        self._kept.clear()
        self._asked.clear()
        self._checked.clear()

    def record(self, batch: Hashable, call: Callable[[], Any]) -> Any:
        """Run a batch on clean weights and remember its operations; returns what `call` returns."""
        self.report.full += 1
        if not self.budget or self.report.refused:
            return call()
        tape = _Tape()
        mode = _recorder(tape)
        try:
            with mode:
                result = call()
        except (NotImplementedError, RuntimeError) as error:  # a tensor without storage; or the model's own error again
            self.report.refused = f"the run could not be recorded: {error}"
            return call()
        tape.results = {place for tensor in _tensors(result) if isinstance(place := mode.place(tensor), tuple)}
        self._tapes[batch] = tape
        return result

    def run(self, batch: Hashable, call: Callable[[], Any], changed: Iterable[int]) -> Any:
        """Run a batch on patched weights.

        Args:
            changed: addresses (`storage_address`) of the storages of changed weights; none means a full run.
        """
        tape, changed = self._tapes.get(batch), list(changed)
        cut = tape.cut(changed) if tape is not None and changed and not self.report.refused else 0
        if tape is None or cut == 0:
            self.report.full += 1
            return call()
        start = self._nearest(cut, batch)
        # many cuts are asked for once only; activations are kept from the second time on
        capture = cut if start != cut and (cut, batch) in self._asked else None
        self._asked.add((cut, batch))
        if start == 0 and capture is None:
            self.report.full += 1
            return call()
        mode = _replayer(tape, start, self._kept[start][batch] if start else {}, capture)
        try:
            with mode:
                result = call()
            result = mode.finish(result)
        except _DivergedError:
            self.report.diverged += 1
            return call()
        if capture is not None:
            self._keep(capture, batch, mode.captured)
        if start == 0:
            self.report.full += 1
            return result
        self.report.reused += 1
        self.report.skipped_operations += start
        self.report.operations += len(tape.operations)
        return self._checked_result(start, result, call)

    def _nearest(self, cut: int, batch: Hashable) -> int:
        """The largest kept cut that is not behind `cut`, or 0."""
        return max((kept for kept, batches in self._kept.items() if kept <= cut and batch in batches), default=0)

    def _keep(self, cut: int, batch: Hashable, stores: dict[Place, Any]) -> None:
        size = sum(store.nbytes for store in stores.values())
        if cut in self._kept:
            self._kept.move_to_end(cut)
        while self.report.kept_bytes + size > self.budget and next(iter(self._kept), cut) != cut:
            _, dropped = self._kept.popitem(last=False)
            self.report.kept_bytes -= sum(store.nbytes for kept in dropped.values() for store in kept.values())
        if self.report.kept_bytes + size <= self.budget:
            self._kept.setdefault(cut, {})[batch] = stores
            self.report.kept_bytes += size

    def _checked_result(self, cut: int, result: Any, call: Callable[[], Any]) -> Any:
        """The result; at a cut's first use compared with a full run, which is returned where they differ."""
        if cut in self._checked:
            return result
        self._checked.add(cut)
        full = call()
        if not _same(result, full):
            self.report.refused = f"a run from operation {cut} on differed from a full run"
            self._kept.clear()
            self.report.kept_bytes = 0
            return full
        return result


def storage_address(tensor: Any) -> int:
    """What identifies a tensor's storage while it lives."""
    address: int = tensor.untyped_storage()._cdata
    return address


def _tensors(tree: Any) -> list[Any]:
    torch = import_torch()
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _same(one: Any, other: Any) -> bool:
    """Whether two results hold the same bits."""
    torch = import_torch()
    pairs = list(zip(_tensors(one), _tensors(other), strict=True))
    return all(
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
        for a, b in pairs
    )


def _recorder(tape: _Tape) -> Any:
    """A mode of torch that carries out every operation and writes it on the tape."""
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_flatten

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self._places: dict[int, Place] = {}
            self._alive: list[Any] = []  # a weak reference keeps an address from being given to another storage

        def place(self, tensor: Any) -> Place | int:
            address = storage_address(tensor)
            return self._places.get(address, address)

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            inputs = _tensors((args, kwargs))
            index = len(tape.operations)
            reads = tuple(self.place(tensor) for tensor in inputs)
            for place in reads:
                if isinstance(place, int):
                    tape.first_use.setdefault(place, index)
            result = func(*args, **kwargs)
            leaves, structure = tree_flatten(result)
            outputs = tuple(self._output((index, number), leaf, inputs) for number, leaf in enumerate(leaves))
            kinds = {output.kind for output in outputs}
            skippable = _is_pure(func, args, kwargs, self.place) and not ("view" in kinds and "new" in kinds)
            tape.operations.append(_Operation(func, reads, outputs, structure, skippable))
            return result

        def _output(self, place: Place, leaf: Any, inputs: list[Any]) -> _Output:
            import torch

            if not isinstance(leaf, torch.Tensor):
                return _Output("value", leaf)
            for number, tensor in enumerate(inputs):
                if leaf is tensor:
                    return _Output("input", number)
            address = storage_address(leaf)
            if address in map(storage_address, inputs):
                return _Output("view")
            if address not in self._places:  # two outputs may share one storage
                self._places[address] = place
                weak: Any = StorageWeakRef(leaf.untyped_storage())  # type: ignore[no-untyped-call]
                self._alive.append(weak)
            return _Output(
                "new",
                self._places[address],
                leaf.untyped_storage().nbytes(),
                tuple(leaf.shape),
                leaf.stride(),
                int(leaf.storage_offset()),
                leaf.dtype,
                leaf.device,
            )

    return Recorder()


def _is_pure(function: Any, args: Any, kwargs: Any, place: Callable[[Any], Place | int]) -> bool:
    """Whether an operation draws no random numbers and writes only to what was made in this run."""
    import torch

    if torch.Tag.nondeterministic_seeded in function.tags:
        return False
    return all(isinstance(place(tensor), tuple) for tensor in _written(function, args, kwargs))


def _written(function: Any, args: Any, kwargs: Any) -> list[Any]:
    """The tensors that an operation writes to."""
    schema = function._schema
    if not schema.is_mutable:
        return []
    found = []
    for number, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[number] if number < len(args) else kwargs.get(argument.name))
    return _tensors(found)


def _replayer(tape: _Tape, start: int, kept: dict[Place, Any], capture: int | None) -> Any:
    """A mode of torch that skips the first `start` operations and, before operation `capture`, copies what crosses."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map, tree_unflatten

    wanted = set() if capture is None else tape.crossing(capture)

    class Replayer(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.captured: dict[Place, Any] = {}
            self._index = 0
            self._stores: dict[Place, Any] = {}  # storages that cross the cut to capture
            self._lent: dict[int, Place] = {}  # kept storages given to the model, by address
            self._skipped: dict[
                Place, Any
            ] = {}  # what stands for storages before the cut; held for the addresses' sake
            self._placeholders: set[int] = set()  # addresses of those without content

        def finish(self, result: Any) -> Any:
            """The result, apart from what is kept; raises _DivergedError if the run ended before its cut."""
            self._capture()
            addresses = [storage_address(tensor) for tensor in _tensors(result)]
            if self._index < max(start, capture or 0) or self._placeholders.intersection(addresses):
                raise _DivergedError
            if not self._lent.keys() & set(addresses):
                return result
            return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, result)

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            self._capture()
            index, self._index = self._index, self._index + 1
            if index < max(start, capture or 0) and (
                index >= len(tape.operations) or tape.operations[index].function is not func
            ):
                raise _DivergedError
            if index < start:
                return self._skip(index, func, args, kwargs)
            self._protect(func, args, kwargs)
            result = func(*args, **kwargs)
            if capture is not None and index < capture:
                self._hold(tape.operations[index], _tensors(result))
            return result

        def _skip(self, index: int, func: Any, args: Any, kwargs: Any) -> Any:
            operation = tape.operations[index]
            if any(output.kind == "view" for output in operation.outputs):
                return func(*args, **kwargs)
            inputs = _tensors((args, kwargs))
            leaves = [self._stand_in(output, inputs) for output in operation.outputs]
            self._hold(operation, [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)])
            return tree_unflatten(leaves, operation.structure)

        def _stand_in(self, output: _Output, inputs: list[Any]) -> Any:
            if output.kind == "value":
                return output.value
            if output.kind == "input":
                return inputs[output.value]
            store = self._skipped.get(output.value)
            if store is None and output.value in kept:
                store = kept[output.value]
                self._lent[storage_address(store)] = output.value
            elif store is None:
                store = torch.empty(output.store_bytes, dtype=torch.uint8, device=output.device)
                self._placeholders.add(storage_address(store))
            self._skipped[output.value] = store
            empty = torch.empty(0, dtype=output.dtype, device=output.device)
            return empty.set_(store.untyped_storage(), output.offset, output.shape, output.stride)

        def _protect(self, func: Any, args: Any, kwargs: Any) -> None:
            """Refuse placeholders; copy a kept storage before it is written to."""
            if not self._placeholders and not self._lent:
                return
            if any(storage_address(tensor) in self._placeholders for tensor in _tensors((args, kwargs))):
                raise _DivergedError
            for tensor in _written(func, args, kwargs):
                place = self._lent.pop(storage_address(tensor), None)
                if place is not None:
                    kept[place] = kept[place].clone()

        def _hold(self, operation: _Operation, leaves: list[Any]) -> None:
            if capture is None:
                return
            made = [output for output in operation.outputs if output.kind != "value"]
            for output, leaf in zip(made, leaves, strict=True):
                if output.kind == "new" and output.value in wanted:
                    self._stores[output.value] = leaf.untyped_storage()

        def _capture(self) -> None:
            if capture is None or self._index != capture or self.captured:
                return
            for place, store in self._stores.items():
                whole = torch.empty(0, dtype=torch.uint8, device=store.device).set_(store)
                self.captured[place] = whole.clone()

    return Replayer()
