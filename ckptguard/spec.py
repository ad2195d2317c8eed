"""Names with settings, as users write them: `bch:8191,6722`, `fixed:8,sign-magnitude`, `bsc:1e-2`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ckptguard.errors import SpecError

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Spec:
    """A kind's name and its settings, in the order given."""

    name: str
    settings: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read `name` or `name:setting,setting`; blanks around parts are dropped."""
        name, _, rest = text.partition(":")
        settings = tuple(part.strip() for part in rest.split(",")) if rest.strip() else ()
        if not name.strip() or "" in settings:
            raise SpecError(f"{text!r} is not of the form 'name' or 'name:setting,setting'")
        return cls(name.strip(), settings)

    def __str__(self) -> str:
        return f"{self.name}:{','.join(self.settings)}" if self.settings else self.name


def look_up(table: Mapping[str, Kind], name: str, what: str) -> Kind:
    """Return `table[name]`; an unknown name lists the known ones and suggests the closest."""
    if name in table:
        return table[name]
    raise SpecError(f"unknown {what} {name!r}{suggestion(name, table)}; known: {', '.join(sorted(table))}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """`", did you mean 'x'?"` for the closest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
