"""What must hold before a number of a campaign is believed: a failed check stops it.

- null: without faults nothing is drawn, every weight is bit-identical, the metrics are those of the clean model, twice;
  and after a heavily damaged trial `undo` brings bits and metrics back.
- golden: the variant, written as a real container and restored, gives the very weights that the campaign damages.
- flips: over the run, the flips drawn at every point, and in every bit plane, lie within the tails of probability 1e-6
  of their binomial distribution.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard import codes, representations
from ckptguard.campaign import worker
from ckptguard.campaign.design import Point
from ckptguard.campaign.faults import COUNT, RATES, assign, make
from ckptguard.campaign.results import Row
from ckptguard.campaign.statistics import stats
from ckptguard.campaign.subject import Subject
from ckptguard.campaign.variants import Prepared, Variant
from ckptguard.errors import CkptGuardError, SpecError
from ckptguard.masks import MaskSet, Rule
from ckptguard.pipeline.protect import protect
from ckptguard.pipeline.restore import restore

TAIL = 1e-6
_HEAVY = 1000
"""Flips of the trial that `undo` has to take back."""

Bytes = npt.NDArray[np.uint8]
Planes = dict[str, dict[str, int]]
"""Point -> bit plane -> stored bits of the message that may be hit there."""


class CheckError(CkptGuardError):
    """A check of a campaign failed: its numbers would mean nothing."""


@dataclass(frozen=True)
class Start:
    """What is found out about an encoding before its trials.

    Attributes:
        clean: metrics of the undamaged model.
        redundancy: by variant and point, as an ideal code is priced for a rate.
        planes: by variant; see `Planes`.
        golden: by variant, `passed` or why it was not done.
    """

    clean: dict[str, float]
    redundancy: dict[str, dict[str, float]]
    planes: dict[str, Planes]
    golden: dict[str, str]


def begin(task: tuple[worker.Packed, int, bool]) -> Start:
    """Run the null check and the golden check of one encoding, in a worker.

    Args:
        task: the work, the index of the encoding, and whether to do the golden check.
    Raises:
        CheckError: one of them failed.
    """
    packed, encoding, with_golden = task
    state = worker.state(packed)
    clean = null(state, encoding)
    group = [state.work.variants[index] for index in state.groups[encoding]]
    prepared = {state.work.variants[index].name: state.prepared(index) for index in state.groups[encoding]}
    return Start(
        clean,
        {name: {p.id: one.redundancy_at(_rate(p)) for p in state.work.points} for name, one in prepared.items()},
        {
            name: {point.id: _planes(one, point, state.work.decoder) for point in state.work.points}
            for name, one in prepared.items()
        },
        {
            one.name: golden(state.subject, packed.subject, one, prepared[one.name]) if with_golden else "not asked for"
            for one in group
        },
    )


def null(state: worker.State, encoding: int) -> dict[str, float]:
    """The null check of an encoding; returns its clean metrics."""
    indices = state.groups[encoding]
    first = state.prepared(indices[0])
    for index in indices:
        _without_faults(state, index, first)
    clean = state.clean(encoding)
    again = state.session.metrics()
    if not worker.same(clean, again):
        raise CheckError(
            f"null check: the same undamaged weights score {_show(clean)}, then {_show(again)}; the evaluator is not "
            "deterministic (seed it, fix its data, switch off dropout), so trials cannot be compared"
        )
    _undone(state, encoding, clean)
    return clean


def _without_faults(state: worker.State, index: int, first: Prepared) -> None:
    variant, prepared = state.work.variants[index], state.prepared(index)
    _same_weights(prepared.base, first.base, f"null check: variant {variant.name!r}: two variants of one encoding")
    if variant.representation == "native":
        original = {name: tensor.data for name, tensor in state.subject.tensors.items()}
        _same_weights(prepared.base, original, f"null check: variant {variant.name!r}: encoding and decoding")
    damage = prepared.trial(make("bsc:0"), state.work.seed, 0, None, state.work.decoder)
    counts = ("flips", "parity_flips", "corrected", "uncorrectable", "residual_bits", "changed_elements")
    found = {name: int(getattr(damage, name)) for name in counts if getattr(damage, name)}
    if found or damage.raised or any(patch.elements.size for patch in damage.patches.values()):
        raise CheckError(f"null check: variant {variant.name!r}: without faults there are {found or 'changed weights'}")


def _same_weights(found: Mapping[str, Bytes], expected: Mapping[str, Bytes], what: str) -> None:
    if found.keys() != expected.keys():
        raise CheckError(f"{what} give other tensors: {sorted(found.keys() ^ expected.keys())[0]!r} is in one only")
    for name, data in found.items():
        if not np.array_equal(data.reshape(-1).view(np.uint8), expected[name].reshape(-1).view(np.uint8)):
            raise CheckError(f"{what} change tensor {name!r}, which has to stay bit-identical")


def _undone(state: worker.State, encoding: int, clean: Mapping[str, float]) -> None:
    variant = state.work.variants[state.groups[encoding][0]]
    bare = Prepared(state.subject, Variant("bare", variant.representation))
    before = state.session.digest()
    damage = bare.trial(make(f"flips:{_HEAVY}"), state.work.seed, 0)
    state.score(damage, clean)
    if state.session.digest() != before:
        raise CheckError("null check: taking a trial's damage back does not bring the weights back, bit for bit")
    after = state.session.metrics()
    if not worker.same(clean, after):
        raise CheckError(
            f"null check: the undamaged model scores {_show(clean)}, and {_show(after)} after a damaged trial was "
            "taken back; the evaluator keeps something from one call to the next or changes the weights"
        )


def golden(subject: Subject, path: str | Subject, variant: Variant, prepared: Prepared) -> str:
    """Write a variant as a container, restore it, and hold every tensor against what the campaign damages.

    Returns `passed`, or the reason why there can be no such container.
    """
    if variant.code.split(":")[0] == "ideal":
        return "skipped: an ideal code has no container"
    with tempfile.TemporaryDirectory(prefix=".ckptguard-golden-") as folder:
        place = Path(folder)
        restored = place / "restored.safetensors"
        if isinstance(path, str) and subject.variant == replace(variant, name=getattr(subject.variant, "name", "")):
            restore(path, restored, jobs=1)
        else:
            reason = _written(subject, variant, place)
            if reason is not None:
                return f"skipped: {reason}"
            restore(place / "golden.ckg", restored, jobs=1)
        found = Subject.open(restored)
        _same_weights(
            {name: tensor.data for name, tensor in found.tensors.items()},
            prepared.base,
            f"golden check: variant {variant.name!r}: a container and its restoring",
        )
    return "passed"


def _written(subject: Subject, variant: Variant, place: Path) -> str | None:
    """Write `golden.ckg`, or say why not."""
    if not isinstance(variant.representation, str):
        return "several representations in one model are compared in the container's own variant only"
    try:
        representations.make(variant.representation)
    except SpecError:
        return f"{variant.representation} exists in campaigns only"
    if variant.code != "none":
        codes.make(variant.code)
    with (place / "model.safetensors").open("wb") as file:
        subject.write(file, {name: tensor.data for name, tensor in subject.tensors.items()})
    masks = MaskSet((Rule(("*",), "none"),)) if variant.code == "none" else variant.masks
    protect(
        place / "model.safetensors",
        place / "golden.ckg",
        masks=masks,
        code=variant.code,
        representation=variant.representation,
        guard=variant.granularity,
        restorer="none",
        jobs=1,
    )
    return None


def _planes(prepared: Prepared, point: Point, decoder: str) -> dict[str, int]:
    """Stored bits that are hit one by one, by plane; empty unless all of them have the same probability to flip.

    The decoder `sampled` draws no flips of bits that a code protects.
    """
    names = list(prepared.encodings)
    faults = assign({glob: make(spec) for glob, spec in point.faults.items()}, names, point.scope)
    found: dict[str, int] = {}
    if len({fault.spec for fault in faults.values()}) != 1:
        return {}
    fault = next(iter(faults.values()))
    if fault.kind != RATES or fault.of_0 != fault.of_1:
        return {}
    for name in faults:
        encoding = prepared.encodings[name]
        mask, code = prepared.masks[name]
        for plane in point.scope.planes(encoding):
            if decoder == "sampled" and mask[plane] == "1" and code != "none":
                continue
            found[str(plane)] = found.get(str(plane), 0) + encoding.elements
    return found


def flips(rows: Iterable[Row], points: Sequence[Point], planes: Mapping[str, Planes]) -> dict[str, Any]:
    """Hold the flips drawn against their distribution.

    Where every bit flips with the same probability, the counts in every plane and in parity are binomial. Where bits
    flip independently with several (asymmetric channels, several devices), the tail of the total is bounded (Chernoff).
    Faults of exactly k flips have k in every trial. Other faults (bursts, erasures, noise on values) are not counted.

    Args:
        rows: all of the run.
        planes: variant -> see `Planes`.
    Returns:
        how many counts were compared, and the smallest tail probability among them.
    Raises:
        CheckError: a count has a tail probability below 1e-6.
    """
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        grouped.setdefault((row.point, row.variant), []).append(row)
    by_id = {point.id: point for point in points}
    tails = [1.0]
    for (point, variant), found in grouped.items():
        known = planes[variant][point]
        for where, count, expected, tail in (
            _by_plane(by_id[point], found, known) if known else _totals(by_id[point], found)
        ):
            tails.append(tail)
            if tail < TAIL:
                raise CheckError(_implausible(by_id[point], variant, where, count, expected, tail))
    return {"counts": len(tails) - 1, "smallest_tail": min(tails), "allowed_tail": TAIL}


_Count = tuple[str, int, float, float]
"""Where, how many, how many are expected, probability of a count as far off."""


def _by_plane(point: Point, rows: Sequence[Row], planes: Mapping[str, int]) -> list[_Count]:
    rate = make(next(iter(point.faults.values()))).of_0
    counts = [
        (f"bit plane {plane}", sum(row.tallies["flips_by_bit"].get(plane, 0) for row in rows), bits * len(rows))
        for plane, bits in planes.items()
    ]
    parity = sum(row.counts["parity_flips"] for row in rows), sum(row.counts["parity_bits"] for row in rows)
    return [
        (where, count, bits * rate, _tail(count, bits, rate)) for where, count, bits in (*counts, ("parity", *parity))
    ]


def _totals(point: Point, rows: Sequence[Row]) -> list[_Count]:
    faults = [make(spec) for spec in point.faults.values()]
    if len(faults) == 1 and faults[0].kind == COUNT:
        wrong = [row for row in rows if row.counts["flips"] + row.counts["parity_flips"] != faults[0].count]
        odd = wrong[0] if wrong else rows[0]
        count = odd.counts["flips"] + odd.counts["parity_flips"]
        return [(f"trial {odd.trial}", count, faults[0].count, 0.0 if wrong else 1.0)]
    if any(fault.kind != RATES for fault in faults):
        return []
    found = []
    for where, key in (("message", "flips"), ("parity", "parity_flips")):
        expected = [row.expected_flips if key == "flips" else row.expected_parity_flips for row in rows]
        if None not in expected:
            mean = math.fsum(value for value in expected if value is not None)
            count = sum(row.counts[key] for row in rows)
            found.append((where, count, mean, _chernoff(count, mean)))
    return found


def _chernoff(count: int, mean: float) -> float:
    """A bound of P(as far from the mean, on that side) for a sum of independent indicators.

    Source: Mitzenmacher, Upfal, Probability and Computing, theorems 4.4 and 4.5.
    """
    if mean <= 0:
        return 1.0 if count == 0 else 0.0
    exponent = count - mean - (count * math.log(count / mean) if count else 0.0)
    return min(1.0, math.exp(exponent))


def _rate(point: Point) -> float | None:
    """The highest bit error rate among the faults of a point; None where one has none."""
    found = [make(spec).bit_error_rate for spec in point.faults.values()]
    return None if None in found else max(rate for rate in found if rate is not None)


def _tail(count: int, bits: int, rate: float) -> float:
    """The smaller of P(as many or more) and P(as many or fewer)."""
    distribution = stats().binom(bits, rate)
    return float(min(distribution.sf(count - 1), distribution.cdf(count)))


def _implausible(point: Point, variant: str, where: str, count: int, expected: float, tail: float) -> str:
    return (
        f"flip-count check: point {point.id} ({point.label}), variant {variant!r}, {where}: {count} flips were drawn "
        f"where {expected:.6g} are expected (probability {tail:.1e}); the faults are not those that were asked for, "
        "please report this with the command and the seed"
    )


def _show(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in metrics.items())
