"""Which posterior restorers a container is to get: what was asked for, and what its masks were searched with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckptguard.channels import make as make_channel
from ckptguard.channels.asymmetric import Asymmetric
from ckptguard.errors import MaskError, UsageError
from ckptguard.masks import MaskSet
from ckptguard.spec import suggestion

NONE, POSTERIOR = "none", "posterior"
RESTORERS = (NONE, POSTERIOR)
RESTORER = "restorer"
"""In the provenance of masks: that they count on posterior restorers, and for which rates; see `recorded`."""
ROW_SUMS = "row_sums"
"""In the provenance of masks: names of the tensors that carry row sums."""

Pair = tuple[float, float]


@dataclass(frozen=True)
class Wanted:
    """Restorers to be made.

    Attributes:
        bit_error_rate: of every tensor, whatever else is known; None where devices or masks say it.
        rates: those that the masks were searched for, by tensor; `*` = all others.
        summed: names of the tensors that carry row sums.
    """

    bit_error_rate: float | None = None
    rates: Mapping[str, Pair] = field(default_factory=dict)
    summed: frozenset[str] = frozenset()

    def pair_of(self, name: str, channel: str | None) -> Pair:
        """Rates that a stored 0, a stored 1 of a tensor on a device with this channel are read wrong.

        Raises UsageError where nothing says them.
        """
        if self.bit_error_rate is not None:
            return self.bit_error_rate, self.bit_error_rate
        if channel is not None:
            made = make_channel(channel)
            return (made.p01, made.p10) if isinstance(made, Asymmetric) else (made.bit_error_rate,) * 2
        known = self.rates.get(name, self.rates.get("*"))
        if known is None:
            raise UsageError(
                f"a posterior restorer is made for an error rate, and nothing says that of {name!r}; give --ber P or a "
                "device (--device, --devices)"
            )
        return known


def wanted(restorer: str | None, bit_error_rate: float | None, masks: MaskSet) -> Wanted | None:
    """What to make; None = no restorers.

    Args:
        restorer: `posterior`, `none`, or None: as the masks' provenance says.

    Raises:
        UsageError, MaskError: the request, or the provenance, makes no sense.
    """
    if restorer is not None and restorer not in RESTORERS:
        raise UsageError(
            f"unknown restorer {restorer!r}{suggestion(restorer, RESTORERS)}; known: {', '.join(RESTORERS)}"
        )
    if bit_error_rate is not None and not 0 <= bit_error_rate < 0.5:
        raise UsageError(f"--ber: {bit_error_rate:g} is no bit error rate of at least 0 and below 0.5")
    if restorer == NONE or (restorer is None and RESTORER not in masks.provenance):
        if bit_error_rate is not None:
            raise UsageError("--ber is what posterior restorers are made for; it belongs to --restorer posterior")
        return None
    names = masks.provenance.get(ROW_SUMS, [])
    if not _are_texts(names):
        raise MaskError(f"the masks' provenance: {ROW_SUMS!r} is no list of names")
    return Wanted(bit_error_rate, _recorded_rates(masks.provenance.get(RESTORER)), frozenset(names))


def counts_on_restorers(masks: MaskSet) -> bool:
    """Whether masks were searched for readers with posterior restorers, as mask files of any age say it."""
    return RESTORER in masks.provenance or masks.provenance.get("guard") == POSTERIOR


def recorded(rates: Mapping[str, Pair]) -> dict[str, Any]:
    """What the provenance of masks says of restorers: their kind, and tensors by the rates that they are for."""
    groups: dict[Pair, list[str]] = {}
    for name, pair in rates.items():
        groups.setdefault(pair, []).append(name)
    rows = [
        {"tensors": ["*"] if len(groups) == 1 else names, "of_0": of_0, "of_1": of_1}
        for (of_0, of_1), names in groups.items()
    ]
    return {"kind": POSTERIOR, "rates": rows}


def _recorded_rates(record: Any) -> dict[str, Pair]:
    """Inverse of `recorded`; nothing where there is no record."""
    if record is None:
        return {}
    rows = record.get("rates") if isinstance(record, dict) and record.get("kind") == POSTERIOR else None
    if not isinstance(rows, list):
        raise MaskError(f"the masks' provenance: {RESTORER!r} is not what a search writes; give --restorer and --ber")
    found: dict[str, Pair] = {}
    for row in rows:
        said: dict[str, Any] = row if isinstance(row, dict) else {}
        names, pair = said.get("tensors"), (said.get("of_0"), said.get("of_1"))
        if not _are_texts(names) or not all(map(_is_rate, pair)):
            raise MaskError(f"the masks' provenance: {RESTORER!r} has a row that is no tensors and rates")
        found |= {str(name): (float(said["of_0"]), float(said["of_1"])) for name in names or ()}
    return found


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _are_texts(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str) and all(isinstance(one, str) for one in values)
