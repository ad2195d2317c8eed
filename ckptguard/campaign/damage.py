"""What a trial did to the tensors: patches, and what was counted on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ckptguard.evaluate.session import Patch


@dataclass(frozen=True)
class Damage:
    """What a trial did to the tensors.

    Attributes:
        patches: by tensor, words that differ from the base; empty where `raised`.
        raised: the policy is `raise` and protected bits are lost.
        stored_bits, parity_bits: that faults could hit.
        expected_flips, expected_parity_flips: their mean, see `Flips`; None for noise on values.
        flips, parity_flips: drawn, before decoding.
        codewords: that were read; 0 without a code.
        corrected, uncorrectable, miscorrected: codewords with damage: that came out right, were given up on, were taken
            for another. Codewords of units whose message no flip reached are not decoded and not counted.
        residual_bits: stored bits that differ after guards set back what never varies and after decoding, nulled
            elements left out; those of words that guards replace are counted.
        changed_elements: words in `patches`.
        nulled: elements the policy made zero.
        guarded: words of which range guards set bits back, or that they replaced.
        non_finite: words in `patches` that are infinite or no number.
        flips_by_bit, residual_by_bit: by position in the stored word, 0 = most significant.
        residual_by_tensor: residual bits by name.
    """

    patches: dict[str, Patch]
    raised: bool
    stored_bits: int
    parity_bits: int
    expected_flips: float | None
    expected_parity_flips: float | None
    flips: int
    parity_flips: int
    codewords: int
    corrected: int
    uncorrectable: int
    miscorrected: int
    residual_bits: int
    changed_elements: int
    nulled: int
    guarded: int
    non_finite: int
    flips_by_bit: dict[int, int] = field(default_factory=dict)
    residual_by_bit: dict[int, int] = field(default_factory=dict)
    residual_by_tensor: dict[str, int] = field(default_factory=dict)


@dataclass
class Totals:
    """What is counted tensor by tensor."""

    by_bit: dict[int, int] = field(default_factory=dict)
    by_tensor: dict[str, int] = field(default_factory=dict)
    nulled: int = 0
    guarded: int = 0
    non_finite: int = 0

    def count(self, name: str, flips: npt.NDArray[np.uint64], bits: int) -> None:
        """Add the flips left in words of so many bits."""
        from ckptguard.kernels import faults

        total, ones = 0, np.zeros(bits, np.int64)
        faults.count_bits(flips, ones)
        for plane, count in enumerate(ones[::-1].tolist()):
            if count:
                self.by_bit[plane] = self.by_bit.get(plane, 0) + count
                total += count
        if total:
            self.by_tensor[name] = total
