"""Where faults strike: from tensors, layers, bits and fields, as users name them, to the points of a campaign."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ckptguard.campaign import design
from ckptguard.campaign.encodings import encode_tensor
from ckptguard.campaign.faults import Scope
from ckptguard.campaign.subject import Subject
from ckptguard.campaign.variants import Variant
from ckptguard.errors import UsageError
from ckptguard.spec import suggestion

LAYER, TENSOR = "layer", "tensor"
PLACES = (LAYER, TENSOR)


@dataclass(frozen=True)
class Places:
    """What may be hit.

    Attributes:
        tensors: globs; empty = all.
        layer_types: classes of layers; empty = all.
        bits: positions such as `0-8`, 0 = most significant; None = all.
        fields: `sign`, `exponent`, `fraction`; empty = all.
        per: `layer` or `tensor`: each by itself. per_bit: each position by itself.
    """

    tensors: tuple[str, ...] = ()
    layer_types: tuple[str, ...] = ()
    bits: str | None = None
    fields: tuple[str, ...] = ()
    per: str | None = None
    per_bit: bool = False

    def __post_init__(self) -> None:
        if self.per is not None and self.per not in PLACES:
            raise UsageError(f"each {self.per!r} by itself is not known; known: {', '.join(PLACES)}")

    def points(
        self,
        subject: Subject,
        variants: Sequence[Variant],
        sources: Sequence[design.Source],
        types: Callable[[], Mapping[str, str]],
    ) -> tuple[design.Point, ...]:
        """One point per source of faults and place.

        Args:
            types: gives the class of the layer of every tensor; called where classes are named.
        Raises:
            UsageError: a glob, a class or a field that nothing in the subject has.
        """
        names = design.matching(subject.tensors, self.tensors) if self.tensors else tuple(subject.tensors)
        globs = self.tensors or ("*",)
        if self.layer_types:
            names = _of_types(names, self.layer_types, types())
            globs = tuple(design.exactly(name) for name in names)
        scope = Scope(globs, None if self.bits is None else design.positions(self.bits), self.fields or None)
        positions = _bit_positions(subject, variants, names, scope) if self.per_bit else None
        return design.make_points(sources, names, scope=scope, groups=self._groups(names), bits=positions)

    def _groups(self, names: Sequence[str]) -> Mapping[str, tuple[str, ...]] | None:
        if self.per is None:
            return None
        return design.layers(names) if self.per == LAYER else {name: (name,) for name in names}


def _of_types(names: Sequence[str], types: Sequence[str], known: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the tensors whose layer is of one of the classes; `Conv` stands for `Conv1d`, `Conv2d`, ..."""
    if not known:
        raise UsageError(
            "--layer-types: this evaluator does not say which layer a tensor belongs to; those with a model do "
            "(classification, logits, perplexity). Name the tensors instead: --tensors 'conv*.weight'"
        )
    kinds = sorted(set(known.values()))
    for kind in types:
        if not any(_is_kind(one, kind) for one in kinds):
            raise UsageError(
                f"--layer-types: no layer is a {kind}{suggestion(kind, kinds)}; there are {', '.join(kinds)}"
            )
    return tuple(name for name in names if any(_is_kind(known.get(name, ""), kind) for kind in types))


def _is_kind(found: str, kind: str) -> bool:
    return fnmatchcase(found, kind) or found in (f"{kind}1d", f"{kind}2d", f"{kind}3d")


def _bit_positions(
    subject: Subject, variants: Sequence[Variant], names: Sequence[str], scope: Scope
) -> tuple[int, ...]:
    """Positions that some tensor in scope has in some encoding."""
    found: set[int] = set()
    for variant in {variant.representation: variant for variant in variants}.values():
        for name in names:
            tensor = subject.tensors[name]
            found |= set(scope.planes(encode_tensor(name, tensor, variant.representation_of(name))))
    if not found:
        raise UsageError("--per-bit: no stored word has the bits or fields that were named")
    return tuple(sorted(found))
