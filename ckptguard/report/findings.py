"""What a run found, in sentences: for the page and for the terminal alike."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ckptguard.report import numbers, ticks, views
from ckptguard.report.run import Cell, Point, Run, mapping, number, records

OUTCOMES = ("PASS", "INCONCLUSIVE", "FAIL")


def size_of(run: Run) -> str:
    """`9 points × 3 variants`."""
    return f"{numbers.count(len(run.points), 'point')} × {numbers.count(len(run.variants), 'variant')}"


def outcome(run: Run) -> str | None:
    """The overall verdict, if the run has a limit to judge by."""
    found = run.analysis.get("verdict")
    return found if found in OUTCOMES else None


def judged(run: Run) -> list[Mapping[str, Any]]:
    """The verdicts on the variants that the campaign judges, in the order of the points."""
    names = run.analysis.get("judged") or run.campaign.get("judged") or run.variants
    return [record for record in records(run.analysis.get("verdicts")) if record.get("variant") in names]


def limit(run: Run) -> str:
    """What was asked for: `accuracy may fall by 0.005 on 5 % of devices, confidence 95 %`, or nothing."""
    asked = mapping(run.campaign.get("limit"))
    change = number(asked.get("change"))
    if not math.isfinite(change):
        return ""
    way = "fall by at most" if change <= 0 else "rise by at most"
    whom = f"on at least {100 * number(asked.get('share', 0.95)):g} % of devices"
    if asked.get("claim") == "mean":
        whom = "in the mean over devices"
    confidence = f"confidence {100 * number(asked.get('confidence', 0.95)):g} %"
    return f"{asked.get('metric')} may {way} {ticks.short(abs(change))} {whom}, {confidence}"


def verdict(run: Run) -> str:
    """One sentence about all verdicts; empty without any."""
    found = judged(run)
    if not found:
        return ""
    if len(found) == 1:
        return sentence(str(found[0].get("text", "")))
    names = {point.id: views.place(point) for point in run.points}
    parts = []
    for variant in dict.fromkeys(str(record.get("variant")) for record in found):
        said = []
        for kind in OUTCOMES:
            places = [
                names.get(str(r.get("point")), "")
                for r in found
                if r.get("variant") == variant and r.get("outcome") == kind
            ]
            if places:
                said.append(f"{kind} at {_listed(places)}")
        parts.append(f"{variant}: {'; '.join(said)}.")
    return " ".join(parts)


def _listed(places: Sequence[str]) -> str:
    if len(places) <= 3:
        return " and ".join(filter(None, [", ".join(places[:-1]), places[-1]]))
    return f"{len(places)} points, {places[0]} to {places[-1]}"


def sentence(text: str) -> str:
    """The text with a capital letter and a full stop."""
    text = text[:1].upper() + text[1:]
    return text if not text or text.endswith(".") else f"{text}."


def headline(run: Run) -> str:
    """What was found, in one sentence, without a verdict."""
    points = run.of_kind("all")
    if run.metrics:
        metric = run.metrics[0]
        found = [(p, cell) for p in points or run.points for v in run.variants if (cell := run.cell(p, v, metric))]
        if found and not points:
            return _weakest(run, found)
        if found:
            return _strongest(run, found)
    return "No trial has been evaluated."


def _strongest(run: Run, found: Sequence[tuple[Point, Cell]]) -> str:
    """The best judged variant beside the unprotected one, where the two differ most; oracles do not count."""
    variants = records(run.campaign.get("variants"))
    oracles = {str(v.get("name")) for v in variants if v.get("code") == "ideal"}
    bare = {str(v.get("name")) for v in variants if v.get("code") == "none" and not (v.get("guard") or v.get("masks"))}
    names = run.analysis.get("judged") or [name for name in run.variants if name not in oracles]
    real = [pair for pair in found if pair[1].variant in names] or list(found)
    unprotected = {point.id: cell for point, cell in found if cell.variant in bare}

    def won(pair: tuple[Point, Cell]) -> float:
        other = unprotected.get(pair[0].id)
        gain = goodness(run, pair[1]) - goodness(run, other) if other else 0.0
        return gain if math.isfinite(gain) else 0.0

    most = max(map(won, real))
    point, best = max((pair for pair in real if won(pair) == most), key=lambda pair: pair[0].id)
    other = unprotected.get(point.id)
    if other is None or other is best:
        return about(run, point, best)
    name = "" if other.variant == "unprotected" else f" ({other.variant})"
    return f"{about(run, point, best)} Without protection{name} it is {_mean(run, other)}."


def _weakest(run: Run, found: Sequence[tuple[Point, Cell]]) -> str:
    """The part of the model whose faults cost most, at the strength that tells the parts apart most."""
    groups: dict[str, list[tuple[Point, Cell]]] = {}
    for pair in found:
        groups.setdefault(pair[0].label, []).append(pair)

    def spread(pairs: Iterable[tuple[Point, Cell]]) -> float:
        means = [cell.mean for _, cell in pairs if math.isfinite(cell.mean)]
        return max(means) - min(means) if means else 0.0

    point, cell = min(max(groups.values(), key=spread), key=lambda pair: goodness(run, pair[1]))
    where = " of ".join(part for part in (f"bit {point.bit}" if point.bit else "", point.layer) if part)
    return f"Faults in {where} alone cost most. {about(run, point, cell)}"


def goodness(run: Run, cell: Cell) -> float:
    """The mean, so signed that higher is better; -inf where there is none."""
    if not math.isfinite(cell.mean):
        return -math.inf
    return cell.mean if run.better_is_higher(cell.metric) else -cell.mean


def _mean(run: Run, cell: Cell) -> str:
    if math.isfinite(cell.mean):
        return run.say(cell.metric, cell.mean)
    return f"not a finite number: {cell.failures} of {cell.trials} trials failed"


def about(run: Run, point: Point, cell: Cell) -> str:
    """A sentence about one cell."""
    say = functools.partial(run.say, cell.metric)
    at = place(point)
    if not math.isfinite(cell.mean):
        return f"{at} the {cell.metric} of {cell.variant} is {_mean(run, cell)}; undamaged it is {say(cell.clean)}."
    ends = interval(run, cell) if cell.low < cell.high else ""
    return (
        f"{at} {cell.variant} has a mean {cell.metric} of {say(cell.mean)}{f' ({ends})' if ends else ''}, "
        f"{say(cell.worst)} in the worst of {cell.trials} trials, and {say(cell.clean)} undamaged."
    )


def interval(run: Run, cell: Cell) -> str:
    """`80.1 – 80.9`, or nothing where no interval is known."""
    if not (math.isfinite(cell.low) and math.isfinite(cell.high)):
        return ""
    return f"{run.say(cell.metric, cell.low)} – {run.say(cell.metric, cell.high)}"


def place(point: Point) -> str:
    """A point at the start of a sentence: `At error rate 10⁻³`, `On nand.mlc at pe=3000`."""
    device = str((point.device or {}).get("name") or "")
    if device:
        return f"On {point.label}" if device in point.label else f"On {device} at {point.label}"
    return f"At error rate {ticks.power(point.ber)}" if point.ber else f"With {point.label}"
