"""Sections of a page about what was tested and whether to trust it: identity, checks, failures in time, the command."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from ckptguard.report import findings, html, numbers, ticks
from ckptguard.report.markup import Child, Markup, element, join
from ckptguard.report.run import Run, mapping, number, records

_SAID_ELSEWHERE = frozenset({"digest", "command"})


def identity(run: Run) -> Markup | None:
    """What was tested, with what, so that anyone can tell whether two reports speak of the same."""
    campaign, said = run.campaign, mapping(run.campaign.get("identity"))
    subject = mapping(campaign.get("subject"))
    rows: list[tuple[str, Child]] = [
        ("checkpoint", str(subject.get("name") or "")),
        ("digest", code(subject.get("digest"))),
        ("size", _size(subject)),
        ("evaluator", code(flat(campaign.get("evaluator")))),
        ("metric", _metric(run)),
        ("limit", findings.sentence(findings.limit(run))),
        ("trials", _trials(run)),
        ("seed", code(flat(campaign.get("seed")))),
        ("campaign", code(said.get("digest"))),
        ("tool", flat(campaign.get("tool"))),
    ]
    rows += [(name.replace("_", " "), flat(value)) for name, value in said.items() if name not in _SAID_ELSEWHERE]
    rows.append(("took", _took(mapping(campaign.get("run")))))
    return html.section("What was tested", html.facts(rows), variants(run), devices(run))


def _size(subject: Mapping[str, Any]) -> str:
    tensors, parts = subject.get("tensors"), []
    if isinstance(tensors, (list, tuple, Mapping)):
        parts.append(numbers.count(len(tensors), "tensor"))
    for name, unit in (("elements", "weight"), ("bits", "stored bit")):
        if isinstance(subject.get(name), int):
            parts.append(numbers.count(subject[name], unit))
    kinds = mapping(tensors).values()
    dtypes = dict.fromkeys(str(mapping(kind).get("dtype")) for kind in kinds if mapping(kind).get("dtype"))
    return ", ".join([*parts, *list(dtypes)[:4]])


def _metric(run: Run) -> str:
    if not run.metrics:
        return ""
    better = "higher" if run.better_is_higher(run.metrics[0]) else "lower"
    others = f"; also {', '.join(run.metrics[1:])}" if run.metrics[1:] else ""
    return f"{run.metrics[0]}, {better} is better{others}"


def _trials(run: Run) -> str:
    counts = sorted({cell.trials for cell in run.cells.values()})
    until = run.campaign.get("until")
    stop = f", until {until}" if until else ""
    if not counts:
        return flat(run.campaign.get("trials")) + stop
    said = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{said} per point and variant{stop}"


def _took(record: Mapping[str, Any]) -> str:
    seconds, done = number(record.get("seconds")), number(record.get("evaluations"))
    if not math.isfinite(seconds) or not math.isfinite(done):
        return ""
    workers = f"{flat(record.get('jobs'))} at a time ({flat(record.get('backend'))})"
    return f"{ticks.short(seconds, 3)} s for {done:,.0f} evaluations, {workers}"


def code(value: object) -> Markup | None:
    """Text as code, or nothing."""
    return element("code", str(value)) if value not in (None, "") else None


def flat(value: Any) -> str:
    """Any JSON value on one line; nothing for what is empty."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return ticks.short(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {flat(item)}" for name, item in value.items() if flat(item))
    if isinstance(value, (list, tuple)):
        return ", ".join(filter(None, map(flat, value)))
    return str(value)


def variants(run: Run) -> Markup | None:
    """How each variant stores and protects the weights."""
    rows = []
    for variant in records(run.campaign.get("variants")):
        name = str(variant.get("name"))
        costs = [cell.redundancy for cell in run.cells.values() if cell.variant == name]
        ends = dict.fromkeys(html.say(value) for value in (min(costs), max(costs))) if costs else ["–"]
        rows.append(
            [
                name,
                _spoken(variant.get("representation")),
                _masks(variant.get("masks")),
                str(variant.get("code", "")),
                str(variant.get("policy", "")),
                str(variant.get("guard") or "none"),
                " – ".join(ends),
            ]
        )
    heading = ("variant", "stored as", "masks", "code", "uncorrectable", "range guard", "redundancy r")
    found = html.table(heading, rows, about="variants", numeric=(6,))
    return join(element("h3", "Variants"), found) if found else None


def _spoken(representation: Any) -> str:
    if isinstance(representation, str):
        return representation
    return ", ".join(f"{pair[0]} {pair[1]}" for pair in representation or () if len(pair) == 2)


def _masks(masks: Any) -> str:
    """A mask set in a few words: its only mask, or how many rules it has."""
    if not isinstance(masks, Mapping):
        return str(masks) if masks else "–"
    rules = records(masks.get("rules"))
    if len(rules) == 1:
        return str(rules[0].get("mask"))
    return numbers.count(len(rules), "rule")


def devices(run: Run) -> Markup | None:
    """The devices and their operating points, with where the numbers come from."""
    seen: dict[str, list[Child]] = {}
    for point in run.points:
        for device in records(mapping(point.device).get("devices")) or records([point.device]):
            keys = ("name", "operating_point", "channel", "confidence", "source")
            seen.setdefault(flat(device), [flat(device.get(key)) for key in keys])
    heading = ("device", "operating point", "channel", "confidence", "source")
    found = html.table(heading, list(seen.values()), about="devices")
    return join(element("h3", "Devices"), found) if found else None


_CHECKS = {
    "null": "null trial, without faults: weights bit-exact, metrics those of the original, before and after damage",
    "golden": "written as a container and restored: weights equal to those that were damaged",
    "flips": "flip counts against their exact distribution",
}


def checks(run: Run) -> Markup | None:
    """What was checked before any number was printed."""
    items = []
    for name, found in mapping(run.campaign.get("checks")).items():
        if name == "planes":
            continue
        for who, said in found.items() if name == "golden" and isinstance(found, Mapping) else [("", found)]:
            label = " ".join(filter(None, [_CHECKS.get(name, name.replace("_", " ")), f"({who})" if who else ""]))
            state, words = _check(said)
            items.append(element("li", label, f": {words}", class_=state))
    return html.section("Checks", element("ul", *items, class_="checks")) if items else None


def _check(said: Any) -> tuple[str, str]:
    """(state, words) of what a check says."""
    record = mapping(said)
    if "counts" in record:
        least, allowed = number(record.get("smallest_tail")), number(record.get("allowed_tail"))
        counts = numbers.count(int(number(record["counts"])), "count")
        if not record["counts"]:
            return "skipped", "no counts of one known distribution"
        kept = "passed" if least >= allowed else "missed"
        return kept, f"{counts}, smallest tail probability {ticks.short(least, 3)} (allowed {ticks.power(allowed)})"
    text = str(record.get("text") or flat(said))
    passed = record.get("passed", said if isinstance(said, bool) else None)
    if passed is True or text.startswith("passed"):
        return "passed", text if text not in ("yes", "") else "passed"
    if passed is False:
        return "missed", text if text not in ("no", "") else "FAILED"
    return "skipped", text or "not run"


def rates(run: Run) -> Markup | None:
    """Failures in time and how long devices last, with every assumption."""
    labels = {point.id: findings.place(point) for point in run.points}
    blocks: list[Child] = []
    for record in records(run.analysis.get("in_time")):
        title = f"{labels.get(str(record.get('point')), record.get('point'))}: {record.get('variant')}"
        fleet, count = number(record.get("fleet_hours")), record.get("devices")
        span = _duration(number(record.get("hours")))
        rows: list[tuple[str, Child]] = [
            (
                "failures",
                f"{record.get('failures')} of {record.get('trials')} trials, {span} each",
            ),
            ("FIT", f"{_bounded(record, 'fit')} failures per 10⁹ device hours"),
            ("mean time to failure", _wait(record)),
            (
                "first failure",
                f"among {numbers.count(int(count), 'device')} at least {_duration(fleet)}"
                if count and count > 1
                else "",
            ),
        ]
        assumptions = [element("li", str(line)) for line in record.get("assumptions", ())]
        held = join(element("p", "This holds if", class_="soft"), element("ul", *assumptions)) if assumptions else None
        blocks += [element("h3", title), html.facts(rows), held]
    return html.section("Failures in time", *blocks, _lasting(run))


def _lasting(run: Run) -> Markup | None:
    rows: list[list[Child]] = []
    for record in records(run.analysis.get("lasting")):
        last, first = number(record.get("last_pass")), number(record.get("first_fail"))
        unit = str(record.get("unit", ""))
        rows.append(
            [
                str(record.get("variant")),
                str(record.get("device")),
                str(record.get("parameter")),
                f"{ticks.short(last)} {unit}" if math.isfinite(last) else "at none",
                f"{ticks.short(first)} {unit}" if math.isfinite(first) else "at none",
            ]
        )
    heading = ("variant", "device", "parameter", "passes up to", "fails from")
    found = html.table(heading, rows, about="how long devices last", numeric=(3, 4))
    return join(element("h3", "How long it lasts"), found) if found else None


def _bounded(record: Mapping[str, Any], name: str) -> str:
    value, low, high = (number(record.get(key)) for key in (name, f"{name}_low", f"{name}_high"))
    if math.isnan(value):
        return "–"
    return ticks.short(value) + (f" ({ticks.short(low)} to {ticks.short(high)})" if not math.isnan(low + high) else "")


def _wait(record: Mapping[str, Any]) -> str:
    mean, low = number(record.get("mean_hours")), number(record.get("mean_hours_low"))
    said = _duration(mean) if math.isfinite(mean) else "no failure seen"
    return f"{said}, at least {_duration(low)}" if math.isfinite(low) else said


def _duration(hours: float) -> str:
    """Hours in the largest unit of which there are two or more."""
    if not math.isfinite(hours):
        return "unbounded time" if hours > 0 else "an unknown time"
    unit, size = next(
        ((unit, size) for unit, size in (("years", 8766.0), ("days", 24.0)) if hours >= 2 * size), ("hours", 1.0)
    )
    return f"{ticks.short(hours / size, 3)} {unit}"


def reproduce(run: Run) -> Markup | None:
    """The command that gives the same numbers again."""
    command = run.campaign.get("command") or mapping(run.campaign.get("identity")).get("command")
    if not command:
        return None
    text = command if isinstance(command, str) else _joined(command)
    note = "The same command gives the same results.jsonl, byte for byte, for any number of workers."
    return html.section("To reproduce", element("pre", element("code", text)), element("p", note, class_="soft"))


def _joined(words: Iterable[Any]) -> str:
    import shlex

    return shlex.join(str(word) for word in words)


def name_of(run: Run) -> str:
    """The checkpoint's file name."""
    name = str(mapping(run.campaign.get("subject")).get("name") or "a checkpoint")
    return PurePath(name).name or name


def words() -> Markup:
    """What the words of the page mean."""
    said = (
        "A trial is one corrupted checkpoint, evaluated whole; intervals are over trials, never over inputs. A trial "
        "fails if its metric is NaN or infinite, if the policy refused the checkpoint, or if the evaluator raised; it "
        "counts as the worst value the metric can have where that is known. The 5 % quantile is counted from the worst "
        "trial seen. Variants at one point meet the same flips."
    )
    return element("footer", element("p", said))
