"""What searches find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ckptguard.masks import MaskSet
from ckptguard.search.calibrate import Calibration
from ckptguard.search.certify import Certificate, Tested
from ckptguard.search.paths import MaskPath
from ckptguard.search.trials import NONE


@dataclass(frozen=True)
class Vertex:
    """One mask set on the way from nothing to all.

    Attributes:
        predicted: damage left, in units of the loss that was differentiated.
        expected: loss of the metric by the calibration; None without one.
    """

    vertex: int
    redundancy: float
    charged: float
    predicted: float
    expected: float | None = None

    @classmethod
    def of(cls, path: MaskPath, vertex: int, calibration: Calibration | None) -> Vertex:
        """The vertex of a path."""
        damage = path.damage[vertex]
        expected = None if calibration is None else calibration.loss(damage)
        return cls(vertex, path.redundancy(vertex), path.charged(vertex), damage, expected)


@dataclass(frozen=True)
class Compared:
    """What a guard came to where several were tried.

    Attributes:
        loss: mean loss of the metric on the data that choose: measured, or expected by the calibration.
        cost: charged redundancy.
        draws: that it was measured on; 0 = by the calibration.
    """

    guard: str
    loss: float
    cost: float
    draws: int

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"guard": self.guard, "loss": self.loss, "charged_redundancy": self.cost, "draws": self.draws}


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        masks: with their provenance.
        chosen: where they lie on the path.
        path: vertices, thinned to a few hundred.
        table: damage by tensor and bit position.
        calibration: (predicted damage, mean loss of the metric) as measured, and the map; None without one.
        certificate: None where none was asked for, or the first test failed.
        walk: all tests of the certificate's walk.
        seconds: by phase.
        evaluations: of the model.
        guard: that readers are expected to have; `compared` with others where the search was to choose one.
    """

    method: str
    masks: MaskSet
    chosen: Vertex
    path: tuple[Vertex, ...]
    table: dict[str, tuple[float, ...]]
    metric: str
    clean: float
    faults: str
    calibration: Calibration | None
    certificate: Certificate | None
    asked_certificate: bool
    walk: tuple[Tested, ...]
    seconds: dict[str, float]
    evaluations: int
    unknown: tuple[str, ...] = ()
    guard: str = NONE
    compared: tuple[Compared, ...] = ()


@dataclass(frozen=True)
class Sensitivity:
    """The damage table of a model.

    Attributes:
        table: expected damage by tensor and bit position, 0 = most significant; infinite where it is not known.
        source: of the curvature.
        metadata_bits: that masks and guards cost.
    """

    table: dict[str, tuple[float, ...]]
    words: dict[str, int]
    faults: str
    source: str
    metadata_bits: int
    unknown: tuple[str, ...]


def thinned(count: int, most: int = 300) -> list[int]:
    """Indices of at most `most` of `count` places, first and last among them."""
    return sorted({round(i * (count - 1) / max(min(count, most) - 1, 1)) for i in range(min(count, most))})
