"""The certificate that a container carries: what a search has shown for its masks, with the masks' provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckptguard.guards import NONE
from ckptguard.pipeline.wanted import POSTERIOR


@dataclass(frozen=True)
class Certificate:
    """What was shown for the masks of a container before it was made; nothing here was tested again.

    Attributes:
        statement: in words.
        departs: settings in which the container is not what was certified, in words.
        record: all of it, as the mask file has it.
    """

    statement: str
    departs: tuple[str, ...]
    record: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"statement": self.statement, "departs": list(self.departs), "record": dict(self.record)}


def certificate_of(info: Mapping[str, Any]) -> Certificate | None:
    """The certificate in the record common to a set's shards; None where its free settings hold none."""
    settings = _object(info.get("settings"))
    provenance = _object(_object(settings.get("masks")).get("provenance"))
    record = _object(provenance.get("certificate"))
    statement = record.get("statement")
    if not isinstance(statement, str) or not statement.strip():
        return None
    plain = "".join(character if character.isprintable() else " " for character in statement)
    return Certificate(" ".join(plain.split()), tuple(_departures(provenance, settings)), record)


def _departures(provenance: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    found = []
    searched, stored = provenance.get("representation"), settings.get("representation")
    if isinstance(searched, str) and searched != stored:
        found.append(f"searched as {searched}, stored as {stored}")
    guarded = settings.get("guard", NONE) != NONE
    if provenance.get("guard") == POSTERIOR:
        if settings.get("restorer") != POSTERIOR:
            found.append("searched with posterior restorers, stored without")
    elif provenance.get("guard") not in (None, guarded, settings.get("guard")):
        found.append("searched with range guards, stored without" if not guarded else "searched without range guards")
    return found


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
