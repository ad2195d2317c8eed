"""The record of a run of a torch module, operation by operation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Place = tuple[int, int]
"""A storage made during a run: (operation that made it, which of its outputs)."""


@dataclass(frozen=True)
class Output:
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
class Operation:
    """One operation, what it read and gave; `skippable`: it writes to nothing that outlives the run."""

    function: Any
    reads: tuple[Place | int, ...]  # storages: made in this run, or the address of another's
    outputs: tuple[Output, ...]
    structure: Any  # of the outputs
    skippable: bool


@dataclass
class Tape:
    """The operations of one batch; `first_use`: address of an outer storage -> first operation that reads it."""

    operations: list[Operation] = field(default_factory=list)
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


class DivergedError(Exception):
    """A run does not follow its tape."""


def storage_address(tensor: Any) -> int:
    """What identifies a tensor's storage while it lives."""
    address: int = tensor.untyped_storage()._cdata
    return address
