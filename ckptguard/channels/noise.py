"""What channels share: keys of their random numbers, distributions as integers, and the reading of settings."""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ckptguard.channels.base import NoiseKey
from ckptguard.errors import SpecError, UsageError

PART_BYTES = 8192
"""Independent flips are drawn per part of this many bytes, so that the work stays in the first cache."""

GEOMETRIC_DIGITS = 19

_FRACTION = 320  # bits of the fixed-point numbers that distributions are computed in
_NEGLIGIBLE = 100  # weights below 2**-100 of the largest are left out


def stream_key(key: NoiseKey, purpose: str) -> np.uint64:
    """Hash of seed, shard and purpose, which all streams of a file start from."""
    if not 0 <= key.seed < 1 << 64:
        raise UsageError(f"a seed lies in 0 .. 2**64 - 1, not {key.seed}")
    parts = [key.seed.to_bytes(8, "little"), *(part.encode() for part in (key.shard, purpose))]
    text = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return np.uint64(int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"ckptguard").digest(), "little"))


def require_bytes(data: npt.NDArray[np.uint8], first_block: int) -> None:
    """Refuse what cannot be changed in place, byte by byte."""
    if data.dtype != np.uint8 or data.ndim != 1 or not data.flags.c_contiguous or not data.flags.writeable:
        raise UsageError(f"data is a writable contiguous row of uint8, not {data.dtype} of shape {data.shape}")
    if first_block < 0:
        raise UsageError(f"a block's index is at least 0, not {first_block}")


def probability(text: str, what: str) -> float:
    """Read a probability in 0 .. 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise SpecError(f"{what} is a probability in 0 .. 1, not {text!r}")
    return value


@lru_cache(maxsize=64)
def binomial(count: int, p: float) -> tuple[npt.NDArray[np.uint64], int]:
    """Distribution function of Bin(count, p), each value rounded to the nearest multiple of 2**-64.

    Args:
        p: at most 1/2.
    Returns:
        thresholds, (values,) uint64 ascending, and the least value: P(X <= least + i) = thresholds[i] / 2**64, from
        the first one that is not 0 up to the last one that is not 1.
    """
    hit, of = p.as_integer_ratio()
    miss = of - hit
    mode = int((count + 1) * p)
    top = 1 << _FRACTION
    floor = top >> _NEGLIGIBLE
    down: list[int] = []
    weight, j = top, mode
    while j > 0 and weight > floor:
        weight = weight * j * miss // ((count - j + 1) * hit)
        j -= 1
        down.append(weight)
    weights = [*reversed(down), top]
    weight, j = top, mode
    while j < count and weight > floor:
        weight = weight * (count - j) * hit // ((j + 1) * miss)
        j += 1
        weights.append(weight)
    total, so_far, least = sum(weights), 0, mode - len(down)
    thresholds = []
    for weight in weights:
        so_far += weight
        threshold = ((so_far << 65) // total + 1) >> 1
        if threshold >> 64:
            break
        if threshold:
            thresholds.append(threshold)
        else:
            least += 1
    result = np.array(thresholds, np.uint64)
    result.setflags(write=False)
    return result, least


def of_2_to_63(p: float) -> np.uint64:
    """The multiple of 2**-63 next to p, as an integer; exact at both ends."""
    hit, of = p.as_integer_ratio()
    return np.uint64(((hit << 64) // of + 1) >> 1)


@lru_cache(maxsize=64)
def geometric(p: float) -> npt.NDArray[np.uint64]:
    """What the kernels draw the number of failures before a success of probability p from.

    Digit j of such a number X is 1 with probability r / (1 + r), r = (1 - p)**(2**j), independently of the others.

    Returns:
        (1 + digits,) uint64, all of 2**63: P(X >= 2**19), then P(digit j of X is 1); digits that are never 1 at the
        end are left out.
    """
    hit, of = p.as_integer_ratio()
    one = 1 << _FRACTION
    power = ((of - hit) << _FRACTION) // of
    digits = []
    for _ in range(GEOMETRIC_DIGITS):
        digits.append((((power << 64) // (one + power)) + 1) >> 1)
        power = power * power >> _FRACTION
    while digits and digits[-1] == 0:
        digits.pop()
    return np.array([((power << 64 >> _FRACTION) + 1) >> 1, *digits], np.uint64)
