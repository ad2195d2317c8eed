"""Mask sets: which bits of which tensors are protected, and by which code; the file they live in, and what they cost.

A mask is a string of '0' and '1', one per bit of a tensor's word, most significant bit first. A mask set gives one to
every tensor by rules with name patterns; the first rule that matches a tensor wins. `docs/masks.schema.json` describes
the file.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ckptguard.errors import MaskError
from ckptguard.spec import suggestion

FORMAT = "ckptguard-masks"
VERSION = 1

_KEYS = ("format", "version", "rules", "provenance")
_RULE_KEYS = ("tensors", "mask", "code")
_BITS = re.compile(r"[01]{1,64}")
_TOP = re.compile(r"top:([0-9]|[1-5][0-9]|6[0-4])(,or-all)?")
_CODE = re.compile(r"[a-z][a-z0-9-]*(:[^,\s]+(,[^,\s]+)*)?")
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120
_LISTED = 10
_SUGGESTED = 20


@dataclass(frozen=True)
class Rule:
    """What is protected of the tensors whose names match one of `tensors` (case-sensitive globs).

    Attributes:
        mask: bits as '0' and '1', or 'all', 'none', 'top:N' (the N most significant bits), or 'top:N,or-all' (the same,
            and all bits of words that have fewer than N).
        code: a code's spec, or None for the one the caller takes by default.
    """

    tensors: tuple[str, ...]
    mask: str
    code: str | None = None


@dataclass(frozen=True)
class TensorMask:
    """The mask of one tensor, as many '0' and '1' as its words have bits, with its code and the index of its rule."""

    name: str
    mask: str
    code: str | None
    rule: int

    @property
    def protected_bits(self) -> int:
        """Of each word."""
        return self.mask.count("1")


@dataclass(frozen=True)
class UnusedPattern:
    """A name pattern that decided nothing.

    Attributes:
        rule: index of its rule.
        closest: names of tensors that look most like the pattern, where it matches none.
        taken_by: index of an earlier rule that took what it matches, or None where it matches nothing.
    """

    rule: int
    pattern: str
    closest: tuple[str, ...] = ()
    taken_by: int | None = None

    def __str__(self) -> str:
        if self.taken_by is not None:
            return f"rule {self.rule}: {self.pattern!r} matches only tensors that rule {self.taken_by} takes before it"
        closest = f"; closest: {', '.join(self.closest)}" if self.closest else ""
        return f"rule {self.rule}: {self.pattern!r} matches no tensor{closest}"


@dataclass(frozen=True)
class MaskResolution:
    """A mask for every tensor, in the order asked, and what in the rules decided nothing."""

    tensors: tuple[TensorMask, ...]
    unused: tuple[UnusedPattern, ...]


@dataclass(frozen=True)
class MaskSet:
    """An ordered list of rules; `provenance` is free text and numbers about where they come from."""

    rules: tuple[Rule, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MaskSet:
        """Read a mask file. Raises MaskError, with the path, where it is none."""
        path = Path(path)
        try:
            content = json.loads(
                path.read_bytes().decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse_constant
            )
        except OSError as error:
            raise MaskError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise MaskError(f"{path}: is not JSON in UTF-8: {error}") from error
        try:
            return cls.parse(content)
        except MaskError as error:
            raise MaskError(f"{path}: {error}") from error

    @classmethod
    def parse(cls, content: object) -> MaskSet:
        """The mask set that the JSON value `content` of a mask file describes. Raises MaskError."""
        if not isinstance(content, dict):
            raise MaskError(f"a mask file holds an object with 'format': {FORMAT!r}, not {_short(content)}")
        if content.get("format") != FORMAT:
            raise MaskError(f"'format' is {_short(content.get('format'))}, expected {FORMAT!r}; this is no mask file")
        version = content.get("version")
        if isinstance(version, bool) or version != VERSION:
            raise MaskError(f"'version' is {_short(version)}, this program reads {VERSION}; a newer one may read it")
        _check_keys("the mask file", content, _KEYS)
        rules = content.get("rules")
        if not isinstance(rules, list) or not rules:
            raise MaskError(f"'rules' is {_short(rules)}, expected a list of at least one rule")
        provenance = content.get("provenance", {})
        if not isinstance(provenance, dict):
            raise MaskError(f"'provenance' is {_short(provenance)}, expected an object")
        return cls(tuple(_parse_rule(index, rule) for index, rule in enumerate(rules)), provenance)

    @classmethod
    def top(cls, bits: int) -> MaskSet:
        """Protect the `bits` most significant bits of every word; words that are shorter are protected wholly."""
        mask = f"top:{bits}"
        if not _TOP.fullmatch(mask):
            raise MaskError(f"{bits} bits cannot be protected; words have at most 64")
        return cls((Rule(("*",), f"{mask},or-all"),))

    @classmethod
    def all(cls) -> MaskSet:
        """Protect every bit of every tensor."""
        return cls((Rule(("*",), "all"),))

    def to_json(self) -> str:
        """The text of a mask file; `MaskSet.load` reads an equal set from it."""
        rules = []
        for rule in self.rules:
            tensors = rule.tensors[0] if len(rule.tensors) == 1 else list(rule.tensors)
            rules.append({"tensors": tensors, "mask": rule.mask} | ({"code": rule.code} if rule.code else {}))
        content = {"format": FORMAT, "version": VERSION, "rules": rules}
        if self.provenance:
            content["provenance"] = dict(self.provenance)
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def resolve(self, tensors: Sequence[tuple[str, int]]) -> MaskResolution:
        """Give every tensor the mask of the first rule that matches its name.

        Args:
            tensors: names, each with the bits of its words.
        Raises:
            MaskError: a tensor matches no rule, or a rule's mask does not fit the words of a tensor it matches.
        """
        patterns = [
            (index, pattern, _matcher(pattern)) for index, rule in enumerate(self.rules) for pattern in rule.tensors
        ]
        used: set[int] = set()
        resolved, unmatched = [], []
        for name, word_bits in tensors:
            place = next((place for place, (_, _, matches) in enumerate(patterns) if matches(name)), None)
            if place is None:
                unmatched.append(name)
                continue
            used.add(place)
            index = patterns[place][0]
            rule = self.rules[index]
            resolved.append(TensorMask(name, _expand(index, rule.mask, name, word_bits), rule.code, index))
        if unmatched:
            raise MaskError(
                f"no rule matches {_listed(unmatched)}; add a last rule such as "
                '{"tensors": "*", "mask": "none"} that says what becomes of all others'
            )
        unused = [entry for place, entry in enumerate(patterns) if place not in used and entry[1] != "*"]
        return MaskResolution(tuple(resolved), tuple(_explain_unused(unused, resolved)))


@dataclass(frozen=True)
class Similarity:
    """Share of mask positions that agree, per tensor and as the plain mean over tensors."""

    per_tensor: dict[str, float]
    mean: float


def redundancy(parts: Iterable[tuple[int, str, float]]) -> float:
    """Parity bits over all bits that represent the weights, as if streams needed no padding.

    Args:
        parts: per tensor the number of its words, its mask, and the parity bits that its code spends on one protected
            bit, (n - k) / k.
    Source: the redundancy r of Peng et al., with a code per tensor; for one code it is k_pro / k_total * (n - k) / k.
    """
    parity, total = 0.0, 0
    for words, mask, parity_per_bit in parts:
        parity += words * mask.count("1") * parity_per_bit
        total += words * len(mask)
    return parity / total if total else 0.0


def similarity(first: Mapping[str, str], second: Mapping[str, str]) -> Similarity:
    """One minus the normalised Hamming distance between two sets of masks by tensor name.

    Raises:
        MaskError: the sets name different tensors, or two masks of a tensor differ in length.
    """
    if first.keys() != second.keys():
        raise MaskError(f"only one of the two sets has a mask for {_listed(sorted(first.keys() ^ second.keys()))}")
    per_tensor = {}
    for name, mask in first.items():
        other = second[name]
        if len(mask) != len(other) or not mask:
            raise MaskError(f"{name}: masks of {len(mask)} and {len(other)} positions cannot be compared")
        per_tensor[name] = sum(a == b for a, b in zip(mask, other, strict=True)) / len(mask)
    return Similarity(per_tensor, sum(per_tensor.values()) / len(per_tensor) if per_tensor else 1.0)


def _parse_rule(index: int, rule: object) -> Rule:
    where = f"rule {index}"
    if not isinstance(rule, dict):
        raise MaskError(f"{where}: is {_short(rule)}, expected an object with 'tensors' and 'mask'")
    _check_keys(where, rule, _RULE_KEYS)
    tensors = rule.get("tensors")
    patterns = [tensors] if isinstance(tensors, str) else tensors
    if not isinstance(patterns, list) or not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise MaskError(f"{where}: 'tensors' is {_short(tensors)}, expected a name pattern or a list of them")
    code = rule.get("code")
    if "code" in rule and (not isinstance(code, str) or not _CODE.fullmatch(code)):
        raise MaskError(f"{where}: 'code' is {_short(code)}, expected a code such as 'bch:8191,6722'")
    mask = rule.get("mask")
    if not isinstance(mask, str) or not _is_mask(mask):
        raise MaskError(
            f"{where}: 'mask' is {_short(mask)}, expected 1 to 64 characters '0' and '1' (most significant bit first), "
            "'top:N' with N up to 64, 'top:N,or-all', 'all' or 'none'"
        )
    return Rule(tuple(patterns), mask, code)


def _is_mask(mask: str) -> bool:
    return mask in ("all", "none") or bool(_BITS.fullmatch(mask) or _TOP.fullmatch(mask))


def _check_keys(where: str, members: Mapping[str, object], known: Sequence[str]) -> None:
    for key in members:
        if key not in known:
            raise MaskError(f"{where}: unknown key {key!r}{suggestion(key, known)}; known: {', '.join(known)}")


def _expand(index: int, mask: str, name: str, word_bits: int) -> str:
    """The mask of a rule for words of `word_bits` bits."""
    if mask in ("all", "none"):
        return ("1" if mask == "all" else "0") * word_bits
    top = _TOP.fullmatch(mask)
    if top:
        bits = int(top.group(1))
        if bits > word_bits and not top.group(2):
            raise MaskError(
                f"rule {index}: {mask!r} wants more bits than the {word_bits} that the words of tensor {name!r} have; "
                f"write '{mask},or-all' to protect shorter words wholly"
            )
        bits = min(bits, word_bits)
        return "1" * bits + "0" * (word_bits - bits)
    if len(mask) != word_bits:
        raise MaskError(
            f"rule {index}: the mask has {len(mask)} positions but the words of tensor {name!r} have {word_bits} bits; "
            "put a rule for this tensor before, or write 'top:N'"
        )
    return mask


def _matcher(pattern: str) -> Callable[[str], bool]:
    """fnmatchcase, compiled once, as the cache of fnmatch is smaller than large mask sets."""
    if not re.search(r"[*?\[]", pattern):
        return pattern.__eq__
    compiled = re.compile(fnmatch.translate(pattern))
    return lambda name: compiled.match(name) is not None


def _explain_unused(
    unused: Sequence[tuple[int, str, Callable[[str], bool]]], resolved: Sequence[TensorMask]
) -> Iterable[UnusedPattern]:
    names = [tensor.name for tensor in resolved]
    suggested = 0
    for index, pattern, matches in unused:
        takers = [tensor.rule for tensor in resolved if matches(tensor.name)]
        if takers:
            if index not in takers:
                yield UnusedPattern(index, pattern, taken_by=takers[0])
            continue
        suggested += 1  # finding close names is slow, and nobody reads hundreds of them
        plain = re.sub(r"[*?\[\]]", "", pattern)
        closest = difflib.get_close_matches(plain, names, n=3, cutoff=0.5) if suggested <= _SUGGESTED else []
        yield UnusedPattern(index, pattern, tuple(closest))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError(f"a key is given twice in the object that begins with {_short(pairs[0][0])}")
    return members


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _listed(names: Sequence[str]) -> str:
    text = ", ".join(repr(name) for name in names[:_LISTED])
    return text if len(names) <= _LISTED else f"{text} and {len(names) - _LISTED} more tensors"


def _short(value: object) -> str:
    """repr, bounded in length and depth whatever the value."""
    return _REPR.repr(value)
