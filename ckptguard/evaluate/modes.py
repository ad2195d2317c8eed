"""Modes of torch that record a run on a tape and replay one from it. Imports torch: to be imported late."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from ckptguard.evaluate.tape import DivergedError, Operation, Output, Place, Tape, storage_address


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries out every operation and writes it on a tape; `random`: whether random numbers were drawn."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = tape
        self.random = False
        self._places: dict[int, Place] = {}
        self._alive: list[Any] = []  # a weak reference keeps an address from being given to another storage

    def place(self, tensor: Any) -> Place | int:
        """Where in the run a tensor's storage was made, or its address where that was before."""
        address = storage_address(tensor)
        return self._places.get(address, address)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = tensors_of((args, kwargs))
        index = len(self.tape.operations)
        reads = tuple(self.place(tensor) for tensor in inputs)
        for place in reads:
            if isinstance(place, int):
                self.tape.first_use.setdefault(place, index)
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        before = _random_state() if seeded else None
        result = func(*args, **kwargs)
        # attention has the tag because it could drop; only what moves a generator has drawn
        self.random |= seeded and (kwargs.get("generator") is not None or _random_state() != before)
        leaves, structure = tree_flatten(result)
        outputs = tuple(self._output((index, number), leaf, inputs) for number, leaf in enumerate(leaves))
        kinds = {output.kind for output in outputs}
        inner = all(isinstance(self.place(tensor), tuple) for tensor in _written(func, args, kwargs))
        skippable = inner and not ("view" in kinds and "new" in kinds)
        self.tape.operations.append(Operation(func, reads, outputs, structure, skippable))
        return result

    def _output(self, place: Place, leaf: Any, inputs: list[Any]) -> Output:
        if not isinstance(leaf, torch.Tensor):
            return Output("value", leaf)
        for number, tensor in enumerate(inputs):
            if leaf is tensor:
                return Output("input", number)
        address = storage_address(leaf)
        if address in map(storage_address, inputs):
            return Output("view")
        if address not in self._places:  # two outputs may share one storage
            self._places[address] = place
            weak: Any = StorageWeakRef(leaf.untyped_storage())  # type: ignore[no-untyped-call]
            self._alive.append(weak)
        return Output(
            "new",
            self._places[address],
            leaf.untyped_storage().nbytes(),
            tuple(leaf.shape),
            leaf.stride(),
            int(leaf.storage_offset()),
            leaf.dtype,
            leaf.device,
        )


class Replayer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows a tape: skips operations before `start`, copies what crosses operation `capture`, if any.

    Args:
        kept: contents of the storages that cross `start`. One that the run writes to is replaced by a copy.
    """

    def __init__(self, tape: Tape, start: int, kept: dict[Place, Any], capture: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tape, self._start, self._kept, self._capture_at = tape, start, kept, capture
        self._end = max(start, capture or 0)  # where following the tape ends
        self._wanted = set() if capture is None else tape.crossing(capture)
        self.captured: dict[Place, Any] = {}
        self._index = 0
        self._left = False
        self._stores: dict[Place, Any] = {}  # storages that cross the cut to capture
        self._lent: dict[int, Place] = {}  # kept storages given to the model, by address
        self._skipped: dict[Place, Any] = {}  # what stands for storages before the cut; held for the addresses' sake
        self._placeholders: set[int] = set()  # addresses of those without content

    def finish(self, result: Any) -> Any:
        """The result, apart from what is kept; raises DivergedError if the run ended before its cut."""
        self._capture()
        addresses = [storage_address(tensor) for tensor in tensors_of(result)]
        if self._left or self._index < self._end or self._placeholders.intersection(addresses):
            raise DivergedError
        if not self._lent.keys() & set(addresses):
            return result
        return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, result)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._capture()
        index, self._index = self._index, self._index + 1
        if index < self._end and (
            index >= len(self._tape.operations) or self._tape.operations[index].function is not func
        ):
            self._leave()
        if index < self._start:
            return self._skip(index, func, args, kwargs)
        self._protect(func, args, kwargs)
        result = func(*args, **kwargs)
        if self._capture_at is not None and index < self._capture_at:
            self._hold(self._tape.operations[index], tensors_of(result))
        return result

    def _leave(self) -> NoReturn:
        self._left = True  # a model may catch what is raised
        raise DivergedError

    def _skip(self, index: int, func: Any, args: Any, kwargs: Any) -> Any:
        operation = self._tape.operations[index]
        if any(output.kind == "view" for output in operation.outputs):
            return func(*args, **kwargs)
        inputs = tensors_of((args, kwargs))
        leaves = [self._stand_in(output, inputs) for output in operation.outputs]
        self._hold(operation, [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)])
        return tree_unflatten(leaves, operation.structure)

    def _stand_in(self, output: Output, inputs: list[Any]) -> Any:
        if output.kind == "value":
            return output.value
        if output.kind == "input":
            return inputs[output.value]
        store = self._skipped.get(output.value)
        if store is None and output.value in self._kept:
            store = self._kept[output.value]
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
        if any(storage_address(tensor) in self._placeholders for tensor in tensors_of((args, kwargs))):
            self._leave()
        for tensor in _written(func, args, kwargs):
            place = self._lent.pop(storage_address(tensor), None)
            if place is not None:
                self._kept[place] = self._kept[place].clone()

    def _hold(self, operation: Operation, leaves: list[Any]) -> None:
        if self._capture_at is None:
            return
        made = [output for output in operation.outputs if output.kind != "value"]
        for output, leaf in zip(made, leaves, strict=True):
            if output.kind == "new" and output.value in self._wanted:
                self._stores[output.value] = leaf.untyped_storage()

    def _capture(self) -> None:
        if self._capture_at is None or self._index != self._capture_at or self.captured:
            return
        for place, store in self._stores.items():
            whole = torch.empty(0, dtype=torch.uint8, device=store.device).set_(store)
            self.captured[place] = whole.clone()


def tensors_of(tree: Any) -> list[Any]:
    """The tensors in nested containers."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def same_bits(one: Any, other: Any) -> bool:
    """Whether two results hold the same bits."""
    pairs = list(zip(tensors_of(one), tensors_of(other), strict=True))
    return all(
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
        for a, b in pairs
    )


def _random_state() -> list[bytes]:
    """The states of torch's default generators."""
    cuda: Any = torch.cuda
    devices = cuda.get_rng_state_all() if cuda.is_initialized() else []
    return [state.numpy().tobytes() for state in (torch.get_rng_state(), *devices)]


def _written(function: Any, args: Any, kwargs: Any) -> list[Any]:
    """The tensors that an operation writes to."""
    schema = function._schema
    if not schema.is_mutable:
        return []
    found = []
    for number, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[number] if number < len(args) else kwargs.get(argument.name))
    return tensors_of(found)
