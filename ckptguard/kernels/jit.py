"""numba's njit with a quicker start: code that is in a file already is linked without what only compiling needs.

Before numba loads cached code it imports all that it can compile, typing rules and implementations, and through them
scipy's linear algebra where that is installed. This takes longer than loading all kernels does. A compilation imports
it by itself, so it is left to that here.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
from __future__ import annotations

from typing import Any

import numba
from numba.core.caching import FunctionCache
from numba.core.runtime.nrt import rtsys


class _Cache(FunctionCache):
    """The files of compiled code of one function."""

    def load_overload(self, sig, target_context):
        """The compiled code of a signature, None if there is none; as numba's, but for `target_context.refresh()`."""
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


_STARTS_QUICKLY = all(hasattr(FunctionCache, name) for name in ("_load_overload", "_guard_against_spurious_io_errors"))


def njit(*, cache: bool = False, **options: Any) -> Any:
    """numba.njit with these options. Where numba's own methods have other names, it is numba's to the letter."""
    if not (cache and _STARTS_QUICKLY):
        return numba.njit(cache=cache, **options)

    def decorate(function: Any) -> Any:
        dispatcher = numba.njit(**options)(function)
        dispatcher._cache = _Cache(function)
        return dispatcher

    return decorate
