"""Weights in memory that can be patched word by word and put back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ckptguard.errors import UsageError
from ckptguard.evaluate.frameworks import tensor_from_bytes
from ckptguard.evaluate.session import Bytes, Context, Patch, Session, TensorSpec

Words = npt.NDArray[np.unsignedinteger[Any]]

_ALIGNMENT = 64  # bytes, as torch allocates: kernels may round differently by where data lies


class LiveSession(Session):
    """The base of all sessions: one buffer per tensor, the same for the session's life, patched in place.

    Attributes:
        context: what the session was opened for.
        data: (bytes,) uint8 per tensor, writable; what the tensors of any framework lie over.
        words: the same memory as words.
        loaded_digest: of what `load` set.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.data: dict[str, Bytes] = {name: _aligned(spec.bytes) for name, spec in context.specs.items()}
        self.words: dict[str, Words] = {
            name: self.data[name].view(f"<u{spec.dtype.word_bits // 8}") for name, spec in context.specs.items()
        }
        self._undo: list[tuple[str, npt.NDArray[np.int64], Words]] = []
        self._reference_digest = ""
        self.loaded_digest = ""

    @cached_property
    def state(self) -> dict[str, Any]:
        """Live tensors of the context's framework, over `data`: the same objects for the session's life."""
        return {
            name: tensor_from_bytes(self.context.framework, spec.dtype, spec.shape, self.data[name])
            for name, spec in self.context.specs.items()
        }

    @property
    def is_reference(self) -> bool:
        """Whether what `load` set is the clean model."""
        return self.loaded_digest == self._reference_digest

    @property
    def touched(self) -> set[str]:
        """Names of the tensors that patches changed since `load` or `undo`."""
        return {name for name, _, _ in self._undo}

    def patched(self, name: str) -> list[npt.NDArray[np.int64]]:
        """Indices of the words of a tensor that patches changed, one array per patch."""
        return [elements for tensor, elements, _ in self._undo if tensor == name]

    def load(self, tensors: Mapping[str, Bytes], *, reference: bool = True) -> None:
        """Copy all weights into the buffers; see `Session.load`."""
        _refuse_other_names(self.context.specs, tensors)
        self._undo.clear()
        for name, spec in self.context.specs.items():  # one at a time: the mapping may read them from a file
            found = np.asarray(tensors[name])
            if found.dtype != np.uint8 or found.size != spec.bytes:
                raise UsageError(
                    f"{name!r}: got {found.size} elements of {found.dtype}; {spec.dtype.name} {list(spec.shape)} needs "
                    f"{spec.bytes} bytes as uint8"
                )
            self.data[name][:] = found.reshape(-1)
        self.loaded_digest = self.digest()
        new = (reference or not self._reference_digest) and self.loaded_digest != self._reference_digest
        self._reference_digest = self.loaded_digest if new else self._reference_digest
        self.loaded(new)

    def patch(self, patches: Mapping[str, Patch]) -> None:
        """Write the new words; the old ones are kept for `undo`."""
        for name, patch in patches.items():
            self._check(name, patch)
        for name, patch in patches.items():
            if patch.elements.size:
                words = self.words[name]
                self._undo.append((name, patch.elements, words[patch.elements]))
                words[patch.elements] = patch.words
                self.changed(name, patch.elements)

    def undo(self) -> None:
        """Write the old words back, the latest patch first."""
        while self._undo:
            name, elements, old = self._undo.pop()
            self.words[name][elements] = old
            self.changed(name, elements)

    def digest(self) -> str:
        """XXH3 of all buffers, in the order of the specs."""
        state = xxhash.xxh3_64()
        for buffer in self.data.values():
            state.update(buffer.data)
        return state.hexdigest()

    def loaded(self, reference: bool) -> None:
        """Called after the buffers were filled; for sessions that hold more than the buffers.

        Args:
            reference: the weights are a new clean model, other than the one of before.
        """

    def changed(self, name: str, elements: npt.NDArray[np.int64]) -> None:
        """Called after words of a tensor were written; for sessions whose model holds its own copies."""

    def _check(self, name: str, patch: Patch) -> None:
        if name not in self.words:
            raise UsageError(f"a patch is for {name!r}, which is no tensor of this session")
        words = self.words[name]
        if patch.words.dtype != words.dtype or patch.words.shape != patch.elements.shape or patch.elements.ndim != 1:
            raise UsageError(
                f"{name!r}: a patch of {patch.elements.shape} elements has {patch.words.shape} words of "
                f"{patch.words.dtype}; expected one {words.dtype} per element"
            )
        if patch.elements.size and not 0 <= patch.elements.min() <= patch.elements.max() < words.size:
            raise UsageError(
                f"{name!r}: a patch reaches words {patch.elements.min()} to {patch.elements.max()} of {words.size}"
            )


def _aligned(size: int) -> Bytes:
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % _ALIGNMENT
    return raw[offset : offset + size]


def _refuse_other_names(specs: Mapping[str, TensorSpec], tensors: Mapping[str, Bytes]) -> None:
    different = sorted(set(specs) ^ set(tensors))
    if different:
        side = "missing" if different[0] in specs else "unknown"
        raise UsageError(f"{len(different)} tensors are not those of the session; {different[0]!r} is {side}")
