"""One trial of a finished campaign made again, and the damaged model written to a file, to look at what went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptguard.campaign import worker
from ckptguard.campaign.design import Point
from ckptguard.campaign.faults import make
from ckptguard.campaign.metrics import Metric
from ckptguard.campaign.record import RESULTS, load_campaign
from ckptguard.campaign.results import Row, read_rows
from ckptguard.campaign.subject import Bytes, Subject
from ckptguard.campaign.variants import Prepared, Variant
from ckptguard.errors import MismatchError, UsageError
from ckptguard.files import atomic_writer, refuse_overlap
from ckptguard.spec import suggestion

WORST = "worst"
_METADATA = {"format": "pt"}
"""What loaders of others ask for in the header of a safetensors file."""


@dataclass(frozen=True)
class Replayed:
    """A trial that was made again.

    Attributes:
        point: with its faults, in words.
        row: as the campaign has it; the trial gave the same counts again.
        output: the file with the weights that were evaluated.
    """

    point: Point
    row: Row
    output: Path


def replay(
    run: Path | str,
    subject: Path | str | Subject,
    output: Path | str,
    *,
    point: str | None = None,
    variant: str | None = None,
    trial: int | str = WORST,
    select: str | None = None,
    overwrite: bool = False,
) -> Replayed:
    """Write the weights that one trial of a campaign was evaluated with to a safetensors file.

    They are those after decoding and range guards: what a reader makes of the damaged storage. Nothing is evaluated.

    Args:
        run: the folder of a campaign, or of a part of one.
        subject: what the campaign damaged.
        point: its id, such as `p03`; may be left out where there is only one.
        variant: its name; default: the first that the campaign judges.
        trial: its number, or `worst`: the lowest of the campaign's metric at this point, for this variant.
    Raises:
        UsageError: there is no such trial, or the policy `raise` refused its model.
        MismatchError: the subject is another, or the trial does not come out as the campaign has it.
    """
    folder, target = Path(run), Path(output)
    campaign = load_campaign(folder)
    opened = subject if isinstance(subject, Subject) else Subject.open(subject, select)
    if opened.digest != campaign["subject"]["digest"]:
        raise MismatchError(
            f"{opened.name}: is not what {folder} damaged ({campaign['subject']['name']}): its weights are others"
        )
    points = {one["id"]: one for one in campaign["points"]}
    variants = {one["name"]: one for one in campaign["variants"]}
    if point is None and len(points) > 1:
        raise UsageError(f"{folder} has {len(points)} points; name one of {', '.join(points)}")
    chosen = Point.from_json(_named(points, point or next(iter(points)), "point"))
    stored = Variant.from_json(_named(variants, variant or campaign["judged"][0], "variant"))
    row = _row(folder, campaign, chosen.id, stored.name, trial)
    if not isinstance(subject, Subject):
        refuse_overlap(target, [Path(subject)])
    weights = _weights(opened, stored, chosen, row, campaign)
    with atomic_writer(target, overwrite=overwrite) as file:
        opened.write(file, weights, _METADATA)
    return Replayed(chosen, row, target)


def _named(known: dict[str, Any], name: str, what: str) -> Any:
    if name not in known:
        raise UsageError(f"the campaign has no {what} {name!r}{suggestion(name, known)}; it has {', '.join(known)}")
    return known[name]


def _row(folder: Path, campaign: dict[str, Any], point: str, variant: str, trial: int | str) -> Row:
    path = folder / RESULTS
    if not path.exists():
        raise UsageError(f"{folder}: has no {RESULTS}; finish the campaign with `sweep --resume` first")
    rows = [row for row in read_rows(path) if (row.point, row.variant) == (point, variant)]
    if trial == WORST:
        return _worst(rows, campaign)
    found = next((row for row in rows if row.trial == trial), None)
    if found is None:
        raise UsageError(f"{folder}: has no trial {trial} at point {point} of variant {variant!r}")
    return found


def _worst(rows: Sequence[Row], campaign: dict[str, Any]) -> Row:
    """The first of the rows with the lowest metric, of those that have a model."""
    name = campaign["metric"]
    metric = Metric.from_json(name, campaign["metrics"][name])
    loaded = [row for row in rows if not row.raised]
    if not loaded:
        raise UsageError("every trial there was refused by the policy `raise`, so that there is no model to write")
    return min(loaded, key=lambda row: metric.goodness(row.value(name)))


def _weights(subject: Subject, variant: Variant, point: Point, row: Row, campaign: dict[str, Any]) -> dict[str, Bytes]:
    """Bytes of all tensors as the trial left them."""
    prepared = Prepared(subject, variant)
    faults = {glob: make(spec) for glob, spec in point.faults.items()}
    damage = prepared.trial(faults, campaign["seed"], row.trial, point.scope, campaign["decoder"])
    again = worker.row_of(point.id, variant.name, row.trial, damage, row.metrics, row.error)
    if again != row:
        raise MismatchError(
            f"trial {row.trial} at point {point.id} of variant {variant.name!r} comes out otherwise than the campaign "
            f"has it, which was run by {campaign['tool']}; run the campaign again with this version"
        )
    if damage.raised:
        raise UsageError(
            f"trial {row.trial} at point {point.id} was refused by the policy `raise` of variant {variant.name!r}, so "
            "that there is no model to write"
        )
    found = {name: base.copy() for name, base in prepared.base.items()}
    for name, patch in damage.patches.items():
        found[name].view(patch.words.dtype)[patch.elements] = patch.words
    return found
