"""Variants as users write them, and the controls that belong beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ckptguard.campaign.variants import Variant
from ckptguard.errors import UsageError
from ckptguard.guards import TENSOR
from ckptguard.masks import MaskSet
from ckptguard.pipeline.protect import DEFAULT_CODE
from ckptguard.spec import suggestion

KEYS = ("name", "masks", "code", "representation", "policy", "guard")
UNPROTECTED, GUARDS, FULL, IDEAL = "unprotected", "guards", "full", "ideal"

_SWITCH = {"yes": True, "no": False}


def parse_variant(text: str) -> Variant:
    """Read `name=...;masks=sp.json;code=bch:8191,6722;representation=fixed:8;policy=null;guard=tensor`; all optional.

    `guard` is `yes` (`tensor`), `no` (`none`) or a granularity as `protect --guard` takes. Masks alone take the code
    that `protect` takes by default; a code alone protects every bit.
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise UsageError(f"--variant {text!r}: {part!r} is not of the form key=value")
        if key not in KEYS:
            raise UsageError(f"--variant {text!r}: no key {key!r}{suggestion(key, KEYS)}; known: {', '.join(KEYS)}")
        if key in found:
            raise UsageError(f"--variant {text!r}: {key!r} is given twice")
        found[key] = value
    made = make_variant(
        found.get("masks"),
        found.get("code"),
        found.get("representation", "native"),
        found.get("policy", "raw"),
        _SWITCH.get(found.get("guard", "no"), found.get("guard")),
    )
    return replace(made, name=found.get("name") or describe(made))


def make_variant(
    masks: str | MaskSet | None,
    code: str | None,
    representation: str,
    policy: str,
    guard: str | bool | None,
    name: str = "",
) -> Variant:
    """A variant; `masks` is a file, `top:N` or `all`."""
    chosen = read_masks(masks) if isinstance(masks, str) else masks
    code = code or (DEFAULT_CODE if chosen is not None else "none")
    made = Variant(name or "?", representation, chosen, code, policy, guard)
    return replace(made, name=name or describe(made))


def read_masks(text: str) -> MaskSet:
    """A mask file, or what a rule says of all tensors."""
    top = re.fullmatch(r"top:(\d+)", text)
    if top:
        return MaskSet.top(int(top.group(1)))
    return MaskSet.all() if text == "all" else MaskSet.load(text)


def describe(variant: Variant) -> str:
    """A name that says what it is: `bch:8191,6722`, `unprotected fixed:8`, `ideal null`."""
    parts = [UNPROTECTED if variant.code == "none" else variant.code]
    if isinstance(variant.representation, str) and variant.representation != "native":
        parts.append(variant.representation)
    if variant.policy != "raw":
        parts.append(variant.policy)
    if variant.guard:
        parts.append("guard" if variant.granularity == TENSOR else f"guard={variant.granularity}")
    return " ".join(parts)


def axes(
    masks: str | MaskSet | None,
    code: str | None,
    representations: Sequence[str],
    policies: Sequence[str],
    guard: str | bool | None,
) -> list[Variant]:
    """One variant per representation and policy."""
    return [
        make_variant(masks, code, representation, policy, guard)
        for representation in representations or ("native",)
        for policy in policies or ("raw",)
    ]


def controls(variants: Sequence[Variant]) -> list[Variant]:
    """For every encoding: nothing protected; where variants have range guards, those guards and no code; every bit, by
    the code of the first that protects; and its protected bits by an ideal code. Those that are among the variants
    already are left out."""
    found: list[Variant] = []
    for representation in dict.fromkeys(variant.representation for variant in variants):
        suffix = f" {representation}" if isinstance(representation, str) and representation != "native" else ""
        alike = [variant for variant in variants if variant.representation == representation]
        protected = next((v for v in alike if v.code != "none" and not v.is_ideal), None)
        code = DEFAULT_CODE if protected is None else protected.code
        masks = None if protected is None else protected.masks
        found += [
            Variant(UNPROTECTED + suffix, representation),
            *_guards_only(alike, suffix),
            Variant(FULL + suffix, representation, None, code),
            Variant(IDEAL + suffix, representation, masks, "ideal"),
        ]
    return [control for control in found if not _is_among(control, variants)]


def _guards_only(variants: Sequence[Variant], suffix: str) -> list[Variant]:
    """What the range guards of variants of one encoding achieve without parity."""
    granularities = dict.fromkeys(variant.granularity for variant in variants if variant.guard)
    return [
        Variant(
            (GUARDS if granularity == TENSOR else f"{GUARDS}={granularity}") + suffix,
            variants[0].representation,
            guard=granularity,
        )
        for granularity in granularities
    ]


def _is_among(variant: Variant, others: Iterable[Variant]) -> bool:
    return any(replace(other, name=variant.name) == variant for other in others)
