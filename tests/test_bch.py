"""BCH codes: against galois, bchlib, brute force and exact probabilities."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ckptguard.codes.bch import Bch
from ckptguard.codes.probability import binomial_tail
from ckptguard.errors import SpecError, UsageError
from ckptguard.kernels import algebra

VECTORS = json.loads((Path(__file__).parent / "vectors" / "bch.json").read_text())
#: Lengths whose kernels are compiled for the slow suite only.
RARE = {7, 31, 127}
Bits = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.uint64]


def code(n: int, k: int) -> Any:
    """A Bch whose word functions, which are not under test here, may be missing."""
    kind = type("RowsOnly", (Bch,), {name: None for name in Bch.__abstractmethods__})
    return kind(n, k)


def shapes(*chosen: tuple[int, int, int]) -> list[Any]:
    """Parameters n, k, message_bits."""
    return [pytest.param(*shape, marks=[pytest.mark.slow] * (shape[0] in RARE)) for shape in chosen]


def galois_words() -> list[Any]:
    words = VECTORS["galois"]["words"]
    return [
        pytest.param(
            vector,
            marks=[pytest.mark.slow] * (vector["n"] in RARE),
            id=f"{vector['n']},{vector['k']},{vector['message_bits']}",
        )
        for vector in words
    ]


def to_rows(words: Bits) -> Rows:
    """(bits, lane_words) rows of (lanes, bits) words, padded with zero lanes to a multiple of 512."""
    lanes = -(-len(words) // 512) * 512
    padded = np.zeros((words.shape[1], lanes), np.uint8)
    padded[:, : len(words)] = words.T
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint64)


def to_words(rows: Rows, lanes: int) -> Bits:
    """The inverse of to_rows for `lanes` lanes."""
    return np.ascontiguousarray(np.unpackbits(rows.view(np.uint8), axis=1, bitorder="little")[:, :lanes].T)


def lanes_of(bitmap: Rows, lanes: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(bitmap.view(np.uint8), bitorder="little")[:lanes].astype(np.bool_)


def bits_of(text: str) -> list[int]:
    return [int(bit) for bit in text]


def encoded(bch: Any, messages: Bits) -> Bits:
    """(lanes, message_bits + n - k) codewords."""
    return np.concatenate([messages, to_words(bch.encode_rows(to_rows(messages)), len(messages))], axis=1)


def decoded(bch: Any, received: Bits, message_bits: int) -> tuple[Bits, npt.NDArray[np.int32]]:
    """Words after decoding, and the flips."""
    message, parity = to_rows(received[:, :message_bits]), to_rows(received[:, message_bits:])
    flips = bch.decode_rows(message, parity)
    lanes = len(received)
    assert not flips[lanes:].any()
    return np.concatenate([to_words(message, lanes), to_words(parity, lanes)], axis=1), flips[:lanes]


def dirty(bch: Any, words: Bits, message_bits: int) -> npt.NDArray[np.bool_]:
    bitmap = bch.check_rows(to_rows(words[:, :message_bits]), to_rows(words[:, message_bits:]))
    return lanes_of(bitmap, len(words))


def random_errors(random: np.random.Generator, lanes: int, length: int, flips: npt.NDArray[np.int64]) -> Bits:
    """(lanes, length) with that many ones per lane, at most `length`."""
    errors = np.zeros((lanes, length), np.uint8)
    for lane, count in enumerate(np.minimum(flips, length)):
        errors[lane, random.choice(length, count, replace=False)] = 1
    return errors


def all_errors(length: int, most: int) -> Bits:
    """Every pattern of up to `most` flips."""
    patterns = [flips for count in range(most + 1) for flips in itertools.combinations(range(length), count)]
    errors = np.zeros((len(patterns), length), np.uint8)
    for lane, flips in enumerate(patterns):
        errors[lane, list(flips)] = 1
    return errors


def divide(message: list[int], generator: int) -> list[int]:
    """Slow twin of the encoder: remainder of message * x^r by the generator, highest power first."""
    degree = generator.bit_length() - 1
    value = int("0" + "".join(map(str, message)), 2) << degree
    while value.bit_length() > degree:
        value ^= generator << (value.bit_length() - 1 - degree)
    return [value >> i & 1 for i in range(degree - 1, -1, -1)]


# The codes that exist.


def test_fields_are_those_of_galois() -> None:
    assert {str(m): polynomial for m, polynomial in algebra.PRIMITIVE_POLYNOMIALS.items()} == VECTORS["galois"][
        "polynomials"
    ]
    for m, polynomial in VECTORS["galois"]["field_of_code"].items():
        assert algebra.PRIMITIVE_POLYNOMIALS[int(m)] == polynomial


@pytest.mark.parametrize("m", range(3, 17))
def test_the_polynomial_behind_a_field_is_primitive(m: int) -> None:
    gf = algebra.field(m)
    assert len(set(gf.exp[: gf.order].tolist())) == gf.order


@pytest.mark.parametrize("n", sorted(map(int, VECTORS["galois"]["codes"])))
def test_code_table_is_that_of_galois(n: int) -> None:
    table = [[k, 2 * t + 1] for k, t in algebra.codes(n.bit_length()).items()]
    assert table == VECTORS["galois"]["codes"][str(n)]


@pytest.mark.parametrize("n", sorted(map(int, VECTORS["galois"]["some_codes"])))
def test_designed_distances_are_those_of_galois(n: int) -> None:
    table = algebra.codes(n.bit_length())
    for k, distance in VECTORS["galois"]["some_codes"][str(n)]:
        assert 2 * table[k] + 1 == distance


@pytest.mark.parametrize("m", sorted(map(int, VECTORS["bchlib"]["parity_bits"])))
def test_code_for_every_t_is_that_of_bchlib(m: int) -> None:
    table = algebra.codes(m)
    for t, parity_bits in enumerate(VECTORS["bchlib"]["parity_bits"][str(m)], start=1):
        assert max(k for k in table if table[k] >= t) == (1 << m) - 1 - parity_bits


@pytest.mark.parametrize(
    ("n", "k", "t"),
    [
        (8191, 6722, 115),
        (8191, 6787, 110),
        (8191, 6748, 113),
        (8191, 6800, 109),
        (1023, 513, 57),
        (15, 1, 7),
        (7, 4, 1),
    ],
)
def test_known_codes_have_their_true_distance(n: int, k: int, t: int) -> None:
    bch = code(n, k)
    assert (bch.n, bch.k, bch.t, bch.spec) == (n, k, t, f"bch:{n},{k}")


@pytest.mark.parametrize("m", range(3, 15))
def test_generator_polynomial_divides_the_code_length(m: int) -> None:
    n = (1 << m) - 1
    table = algebra.codes(m)
    for k in [*table][:: max(1, len(table) // 3)]:
        generator = algebra.generator_polynomial(m, table[k])
        assert generator.bit_length() - 1 == n - k
        assert algebra.powers_modulo(generator, k + 1)[k] == 1  # x^n = 1


# Encoding.


@pytest.mark.parametrize("vector", galois_words())
def test_parity_is_that_of_galois(vector: dict[str, Any]) -> None:
    words = np.array([bits_of(word) for word in vector["codewords"]], np.uint8)
    np.testing.assert_array_equal(encoded(code(vector["n"], vector["k"]), words[:, : vector["message_bits"]]), words)


@pytest.mark.parametrize("vector", VECTORS["bchlib"]["words"], ids=lambda v: f"m={v['m']},t={v['t']}")
def test_parity_is_that_of_bchlib(vector: dict[str, Any]) -> None:
    n = (1 << vector["m"]) - 1
    bch = code(n, n - vector["parity_bits"])
    assert algebra.PRIMITIVE_POLYNOMIALS[vector["m"]] == vector["polynomial"]
    assert bch.t in (vector["t"], vector["t"] + 1)  # the exponent 129 lies in the coset of 65
    messages = np.array([[*bytes.fromhex(message)] for message, _ in vector["words"]], np.uint8)
    parity = np.array([[*bytes.fromhex(parity)] for _, parity in vector["words"]], np.uint8)
    expected = np.unpackbits(parity, axis=1)[:, : vector["parity_bits"]]
    messages = np.unpackbits(messages, axis=1)
    np.testing.assert_array_equal(encoded(bch, messages)[:, messages.shape[1] :], expected)


@pytest.mark.parametrize(
    ("n", "k", "message_bits"),
    shapes(
        (15, 7, 7),
        (15, 1, 1),
        (63, 45, 0),
        (63, 45, 1),
        (1023, 513, 47),
        (1023, 513, 48),
        (1023, 513, 49),
        (8191, 6722, 6722),
    ),
)
def test_parity_is_the_remainder_by_the_generator_polynomial(n: int, k: int, message_bits: int) -> None:
    bch = code(n, k)
    messages = np.random.default_rng(n).integers(0, 2, (3, message_bits), dtype=np.uint8)
    generator = algebra.generator_polynomial(n.bit_length(), bch.t)
    parity = encoded(bch, messages)[:, message_bits:]
    assert parity.tolist() == [divide(message.tolist(), generator) for message in messages]


def test_encoding_leaves_the_message_as_it_is() -> None:
    message = np.random.default_rng(0).integers(0, 2**64, (45, 8), dtype=np.uint64)
    before = message.copy()
    message.flags.writeable = False
    code(63, 45).encode_rows(message)
    np.testing.assert_array_equal(message, before)


# Decoding up to t flips.


@pytest.mark.parametrize(
    ("n", "k", "message_bits"),
    shapes(
        (7, 4, 4),
        (15, 11, 11),
        (15, 7, 7),
        (15, 5, 5),
        (15, 1, 1),
        (31, 21, 21),
        (31, 16, 7),
        (63, 51, 51),
        (63, 45, 45),
    ),
)
def test_bch_corrects_every_pattern_of_up_to_t_flips(n: int, k: int, message_bits: int) -> None:
    bch = code(n, k)
    errors = all_errors(n - k + message_bits, bch.t)
    words = encoded(bch, np.random.default_rng(k).integers(0, 2, (len(errors), message_bits), dtype=np.uint8))
    corrected, flips = decoded(bch, words ^ errors, message_bits)
    np.testing.assert_array_equal(corrected, words)
    np.testing.assert_array_equal(flips, errors.sum(axis=1))
    np.testing.assert_array_equal(dirty(bch, words ^ errors, message_bits), errors.any(axis=1))


@pytest.mark.parametrize(
    ("n", "k", "message_bits"),
    shapes(
        (31, 6, 6),
        (63, 7, 7),
        (63, 24, 9),
        (255, 239, 239),
        (255, 131, 131),
        (1023, 513, 513),
        (1023, 618, 512),
        (1023, 11, 11),
        (8191, 8178, 4096),
        (8191, 6722, 6722),
        (8191, 6722, 1000),
        (8191, 6787, 6784),
    ),
)
def test_bch_corrects_random_patterns_of_up_to_t_flips(n: int, k: int, message_bits: int) -> None:
    bch, random = code(n, k), np.random.default_rng(n * k)
    length = n - k + message_bits
    counts = random.integers(0, bch.t + 1, 600)
    counts[:2] = 0, bch.t
    errors = random_errors(random, 600, length, counts)
    words = encoded(bch, random.integers(0, 2, (600, message_bits), dtype=np.uint8))
    corrected, flips = decoded(bch, words ^ errors, message_bits)
    np.testing.assert_array_equal(corrected, words)
    np.testing.assert_array_equal(flips, errors.sum(axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("m", range(3, 14))
def test_bch_corrects_t_flips_for_codes_of_every_length(m: int) -> None:
    n, table = (1 << m) - 1, algebra.codes(m)
    for k in [*table][:: max(1, len(table) // 12)]:
        if table[k] > 500:
            continue
        bch, random = code(n, k), np.random.default_rng(k)
        errors = random_errors(random, 64, n, random.integers(0, bch.t + 1, 64))
        words = encoded(bch, random.integers(0, 2, (64, k), dtype=np.uint8))
        corrected, flips = decoded(bch, words ^ errors, k)
        np.testing.assert_array_equal(corrected, words)
        np.testing.assert_array_equal(flips, errors.sum(axis=1))


# Decoding past t flips.


@pytest.mark.parametrize("vector", galois_words())
def test_decoder_agrees_with_galois_within_and_past_t(vector: dict[str, Any]) -> None:
    received = np.array([bits_of(word) for word in vector["received"]], np.uint8)
    expected = np.array([bits_of(word) for word in vector["decoded"]], np.uint8)
    corrected, flips = decoded(code(vector["n"], vector["k"]), received, vector["message_bits"])
    np.testing.assert_array_equal(flips, vector["flips"])
    np.testing.assert_array_equal(corrected[flips >= 0], expected[flips >= 0])
    np.testing.assert_array_equal(corrected[flips < 0], received[flips < 0])


@pytest.mark.parametrize(
    ("n", "k", "message_bits"), shapes((15, 11, 11), (15, 7, 7), (15, 5, 5), (15, 7, 4), (15, 1, 1), (7, 4, 2))
)
def test_every_word_goes_to_the_codeword_within_t_or_is_uncorrectable(n: int, k: int, message_bits: int) -> None:
    bch, length = code(n, k), n - k + message_bits
    codewords = encoded(bch, np.array([*itertools.product((0, 1), repeat=message_bits)], np.uint8))
    received = np.array([*itertools.product((0, 1), repeat=length)], np.uint8)
    distances = (received[:, None, :] ^ codewords[None, :, :]).sum(axis=2, dtype=np.int32)
    nearest = distances.argmin(axis=1)
    within = distances.min(axis=1) <= bch.t
    corrected, flips = decoded(bch, received, message_bits)
    np.testing.assert_array_equal(flips, np.where(within, distances.min(axis=1), -1))
    np.testing.assert_array_equal(corrected, np.where(within[:, None], codewords[nearest], received))


@pytest.mark.parametrize(
    ("n", "k", "message_bits"),
    shapes(
        (31, 26, 20),
        (63, 51, 51),
        (127, 113, 100),
        (255, 239, 239),
        (255, 131, 131),
        (1023, 513, 513),
        (8191, 6722, 6722),
    ),
)
def test_decoder_claims_no_correction_that_is_not_a_codeword(n: int, k: int, message_bits: int) -> None:
    bch, random = code(n, k), np.random.default_rng(k)
    length = n - k + message_bits
    words = encoded(bch, random.integers(0, 2, (512, message_bits), dtype=np.uint8))
    received = words ^ random_errors(random, 512, length, bch.t + 1 + random.integers(0, bch.t + 3, 512))
    corrected, flips = decoded(bch, received, message_bits)
    claimed = flips >= 0
    assert not dirty(bch, corrected, message_bits)[claimed].any()
    np.testing.assert_array_equal((corrected ^ received).sum(axis=1), np.maximum(flips, 0))
    assert (flips <= bch.t).all()
    assert (~claimed).any()


def test_lanes_do_not_disturb_each_other() -> None:
    bch, random = code(255, 131), np.random.default_rng(7)
    words = encoded(bch, random.integers(0, 2, (1100, 131), dtype=np.uint8))
    counts = random.choice([0, 0, 1, 5, bch.t, bch.t + 1, 60, 255], 1100)
    received = words ^ random_errors(random, 1100, 255, counts)
    together, flips = decoded(bch, received, 131)
    for lane in (*range(12), 511, 512, 1023, 1024, 1099):
        alone, alone_flips = decoded(bch, received[lane : lane + 1], 131)
        np.testing.assert_array_equal(alone[0], together[lane])
        assert alone_flips[0] == flips[lane]
    np.testing.assert_array_equal(together[counts <= bch.t], words[counts <= bch.t])


@pytest.mark.parametrize("damaged", [1, 3, 64, 65, 130, 300])
def test_few_damaged_lanes_among_many_are_corrected(damaged: int) -> None:
    bch, random = code(1023, 618), np.random.default_rng(damaged)
    words = encoded(bch, random.integers(0, 2, (512, 500), dtype=np.uint8))
    counts = np.zeros(512, np.int64)
    counts[random.choice(512, damaged, replace=False)] = random.integers(1, bch.t + 2, damaged)
    received = words ^ random_errors(random, 512, 905, counts)
    corrected, flips = decoded(bch, received, 500)
    within = counts <= bch.t
    np.testing.assert_array_equal(flips, np.where(within, counts, -1))
    np.testing.assert_array_equal(corrected, np.where(within[:, None], words, received))


def test_decoder_accepts_rows_that_are_not_contiguous() -> None:
    bch, random = code(63, 45), np.random.default_rng(8)
    words = encoded(bch, random.integers(0, 2, (512, 45), dtype=np.uint8))
    received = words ^ random_errors(random, 512, 63, np.full(512, 3))
    space = np.zeros((63, 24), np.uint64)
    space[:, 8:16] = to_rows(received)
    flips = bch.decode_rows(space[:45, 8:16], space[45:, 8:16])
    assert (flips == 3).all()
    np.testing.assert_array_equal(space[:, 8:16], to_rows(words))
    assert not space[:, :8].any()
    assert not space[:, 16:].any()
    assert not bch.check_rows(space[:45, 8:16], space[45:, 8:16]).any()


# Probabilities.


@pytest.mark.parametrize(
    ("n", "k", "rate", "expected"),
    [
        (8191, 6722, 0.01, 2.0759e-4),
        (8191, 6722, 0.009, 2.93e-6),
        (8191, 6722, 0.001, 3.8e-89),
        (8191, 6787, 0.01, 1.2159e-3),
        (8191, 6787, 0.005, 1.0e-19),
    ],
)
def test_failure_probability_has_the_known_values(n: int, k: int, rate: float, expected: float) -> None:
    assert code(n, k).failure_probability(rate, n) == pytest.approx(expected, rel=3e-2)


@pytest.mark.parametrize(
    ("trials", "most", "rate"),
    [
        (15, 2, 0.5),
        (15, 2, 1e-6),
        (1023, 57, 0.05),
        (1023, 57, 0.9),
        (8191, 115, 0.01),
        (8191, 115, 2e-5),
        (40, 39, 0.7),
    ],
)
def test_binomial_tail_is_exact_to_eleven_digits(trials: int, most: int, rate: float) -> None:
    p = Fraction(rate).limit_denominator(10**7)
    terms = (
        math.comb(trials, i) * p.numerator**i * (p.denominator - p.numerator) ** (trials - i) for i in range(most + 1)
    )
    exact = 1 - Fraction(sum(terms), p.denominator**trials)
    assert binomial_tail(trials, float(p), most) == pytest.approx(float(exact), rel=1e-11)


def test_binomial_tail_at_the_ends() -> None:
    assert binomial_tail(15, 0.0, 2) == 0.0
    assert binomial_tail(15, 1.0, 2) == 1.0
    assert binomial_tail(2, 0.5, 2) == 0.0
    assert binomial_tail(8191, 1e-9, 115) == 0.0


def clopper_pearson(hits: int, trials: int, confidence: float) -> tuple[float, float]:
    """Exact interval for a rate, by bisection of the binomial tails."""

    def bisect(rises: Any) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if rises(middle) else (middle, high)
        return low

    side = (1 - confidence) / 2
    lower = bisect(lambda p: binomial_tail(trials, p, hits - 1) > side) if hits else 0.0
    upper = bisect(lambda p: 1 - binomial_tail(trials, p, hits) < side) if hits < trials else 1.0
    return lower, upper


def failures(bch: Any, rate: float, words: int, seed: int) -> int:
    random = np.random.default_rng(seed)
    sent = encoded(bch, random.integers(0, 2, (512, bch.k), dtype=np.uint8))
    failed = 0
    for _ in range(words // 512):
        errors = (random.random((512, bch.n)) < rate).astype(np.uint8)
        corrected, _ = decoded(bch, sent ^ errors, bch.k)
        failed += int((corrected != sent).any(axis=1).sum())
    return failed


@pytest.mark.parametrize(
    ("n", "k", "rate", "words"), [(63, 45, 0.03, 30_720), (255, 239, 0.005, 20_480), (1023, 513, 0.048, 5_120)]
)
def test_failure_rate_lies_in_the_exact_binomial_interval(n: int, k: int, rate: float, words: int) -> None:
    bch = code(n, k)
    lower, upper = clopper_pearson(failures(bch, rate, words, seed=n), words, 0.999)
    assert 0.0 < lower <= bch.failure_probability(rate, n) <= upper


@pytest.mark.slow
@pytest.mark.parametrize(("n", "k", "rate"), [(8191, 6722, 0.0115), (8191, 6787, 0.011)])
def test_failure_rate_of_long_codes_lies_in_the_exact_binomial_interval(n: int, k: int, rate: float) -> None:
    bch = code(n, k)
    lower, upper = clopper_pearson(failures(bch, rate, 20_480, seed=k), 20_480, 0.999)
    assert 0.0 < lower <= bch.failure_probability(rate, n) <= upper


# Requests that cannot be met.


@pytest.mark.parametrize(
    "settings", [(), ("8191",), ("8191", "6722", "1"), ("8191", "x"), ("8191", "-1"), ("1e3", "5")]
)
def test_settings_other_than_two_whole_numbers_are_refused(settings: tuple[str, ...]) -> None:
    with pytest.raises(SpecError, match="bch takes two whole numbers"):
        Bch.from_settings(settings)


def test_settings_name_the_code() -> None:
    kind = type("RowsOnly", (Bch,), {name: None for name in Bch.__abstractmethods__})
    assert kind.from_settings(("1023", "513")) == code(1023, 513)


def test_a_code_that_does_not_exist_names_its_neighbours() -> None:
    with pytest.raises(SpecError) as caught:
        code(8191, 6723)
    for neighbour in ("bch:8191,6735 (t = 114)", "bch:8191,6722 (t = 115)", "bch:8191,6709 (t = 116)"):
        assert neighbour in str(caught.value)


@pytest.mark.parametrize("n", [0, 3, 8190, 8192, 32767])
def test_a_length_that_is_no_power_of_two_less_one_names_neighbours(n: int) -> None:
    with pytest.raises(SpecError, match=r"n must be 2\^m - 1, one of 7, 15.*16383; .* bch:\d+,\d+ \(t = "):
        code(n, 2)


@pytest.mark.parametrize(
    ("message", "parity"),
    [
        (np.zeros((45, 7), np.uint64), np.zeros((18, 7), np.uint64)),
        (np.zeros((46, 8), np.uint64), np.zeros((18, 8), np.uint64)),
        (np.zeros((45, 8), np.uint64), np.zeros((17, 8), np.uint64)),
        (np.zeros((45, 8), np.uint64), np.zeros((18, 16), np.uint64)),
        (np.zeros((45, 8), np.uint32), np.zeros((18, 8), np.uint32)),
    ],
)
def test_rows_that_do_not_fit_the_code_are_refused(message: Rows, parity: Rows) -> None:
    for call in (code(63, 45).check_rows, code(63, 45).decode_rows):
        with pytest.raises(UsageError, match=r"rows of .* do not fit .* 45 message bits, exactly 18 parity bits"):
            call(message, parity)


def test_a_message_that_does_not_fit_the_code_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\(46, 8\).* do not fit"):
        code(63, 45).encode_rows(np.zeros((46, 8), np.uint64))


@pytest.mark.parametrize("rate", [-0.1, 1.5, math.nan])
def test_a_rate_that_is_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(UsageError, match="is a probability"):
        code(15, 7).failure_probability(rate, 15)


def test_importing_the_code_does_not_import_numba() -> None:
    program = "import sys, ckptguard.codes.bch; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# The kernels alone.


def test_method_of_four_russians_is_a_matrix_product() -> None:
    from ckptguard.kernels import bch, bitsliced

    random = np.random.default_rng(3)
    matrix = random.integers(0, 2, (37, 61), dtype=np.uint8)
    rows = np.zeros((96, 8), np.uint64)
    rows[:61] = random.integers(0, 2**64, (61, 8), dtype=np.uint64)
    out, sums = np.zeros((37, 8), np.uint64), np.zeros((bitsliced.TABLES << bitsliced.BITS, 8), np.uint64)
    bitsliced.combine(rows, bch.picks_of(matrix), out, sums)
    expected = [np.bitwise_xor.reduce(rows[:61][row == 1], axis=0) for row in matrix]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("m", "t", "bits"), [(4, 2, 7), (6, 31, 1), (8, 8, 191), (8, 8, 0), (10, 57, 500), (13, 115, 6722), (13, 110, 64)]
)
def test_remainder_by_carryless_multiplication_is_the_portable_one(m: int, t: int, bits: int) -> None:
    from ckptguard.kernels import bch, clmul

    if not clmul.available():
        pytest.skip("the processor has no VPCLMULQDQ")
    tables = bch.bch_tables(m, t)
    message = np.random.default_rng(bits).integers(0, 2**64, (bits, 16), dtype=np.uint64)
    portable, fast = bch.PortableRemainder(tables), bch.CarrylessRemainder(tables)
    for column in (0, 8, 0):
        np.testing.assert_array_equal(fast.of(message, column), portable.of(message, column))


def test_portable_remainder_serves_where_carryless_multiplication_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptguard.kernels import bch, clmul

    monkeypatch.setattr(clmul, "available", lambda: False)
    monkeypatch.setattr(bch, "_local", threading.local())
    tables = bch.bch_tables(8, 18)
    message = np.random.default_rng(4).integers(0, 2**64, (131, 8), dtype=np.uint64)
    parity = bch.encode(tables, message)
    damaged = message.copy()
    damaged[[3, 77, 130]] ^= np.uint64(5)
    assert bch.check(tables, damaged, parity).tolist() == [5] * 8
    assert (bch.decode(tables, damaged, parity).reshape(8, 64)[:, [0, 1, 2]] == [3, 0, 3]).all()
    np.testing.assert_array_equal(damaged, message)


@pytest.mark.parametrize(("m", "depth", "octets"), [(9, 3, 64), (10, 4, 9), (10, 5, 64), (13, 6, 3), (13, 7, 64)])
def test_roots_by_affine_instructions_are_the_portable_ones(m: int, depth: int, octets: int) -> None:
    from ckptguard.kernels import affine, bch

    if not affine.available():
        pytest.skip("the processor has no GFNI")
    tables, transform = bch.bch_tables(m, 7), bch.transform_tables(m, depth)
    locator = np.random.default_rng(depth).integers(0, 2**64, (1 << depth, m, 8), dtype=np.uint64)
    found = []
    for kind in (bch.PortableRoots, bch.AffineRoots):
        roots = np.zeros((len(transform.positions), 8), np.uint64)
        kind(tables, 7, len(roots)).find(locator.copy(), transform, octets, roots)
        found.append(roots[transform.points].view(np.uint8)[:, :octets])
    np.testing.assert_array_equal(found[1], found[0])
    assert found[0].any()


def test_portable_roots_serve_where_affine_instructions_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptguard.kernels import affine, bch

    bch_code, random = code(1023, 618), np.random.default_rng(5)
    words = encoded(bch_code, random.integers(0, 2, (512, 500), dtype=np.uint8))
    monkeypatch.setattr(affine, "available", lambda: False)
    monkeypatch.setattr(bch, "_local", threading.local())
    counts = random.integers(0, bch_code.t + 1, 512)
    corrected, flips = decoded(bch_code, words ^ random_errors(random, 512, 905, counts), 500)
    np.testing.assert_array_equal(corrected, words)
    np.testing.assert_array_equal(flips, counts)


@pytest.mark.parametrize(("n", "k", "message_bits"), [(1023, 618, 618), (1023, 618, 100), (8191, 6722, 6722)])
def test_trying_for_few_errors_first_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, n: int, k: int, message_bits: int
) -> None:
    from ckptguard.kernels import bch

    bch_code, random = code(n, k), np.random.default_rng(6)
    length = n - k + message_bits
    words = encoded(bch_code, random.integers(0, 2, (512, message_bits), dtype=np.uint8))
    counts = random.choice([0, 1, 2, 3, 7, 8, 9, bch_code.t, bch_code.t + 1, 300], 512)
    received = words ^ random_errors(random, 512, length, counts)
    # A multiple of the generator for 8 errors looks like no error at all to the syndromes for 8.
    generator = algebra.generator_polynomial(n.bit_length(), 8)
    deceit = np.array([generator >> i & 1 for i in range(length - 1, -1, -1)], np.uint8)
    received[:40] = words[:40] ^ deceit ^ random_errors(random, 40, length, np.arange(40) % 9)
    tables = bch.bch_tables(n.bit_length(), bch_code.t)
    assert tables.few is not None
    corrected, flips = decoded(bch_code, received, message_bits)
    monkeypatch.setitem(tables.__dict__, "few", None)
    slow, slow_flips = decoded(bch_code, received, message_bits)
    np.testing.assert_array_equal(flips, slow_flips)
    np.testing.assert_array_equal(corrected, slow)
    within = (counts <= bch_code.t) & (np.arange(512) >= 40)
    np.testing.assert_array_equal(corrected[within], words[within])


def test_threads_decode_independently() -> None:
    bch, random = code(255, 131), np.random.default_rng(9)
    words = encoded(bch, random.integers(0, 2, (512, 131), dtype=np.uint8))
    received = [words ^ random_errors(random, 512, 255, np.full(512, count)) for count in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for count, (corrected, flips) in enumerate(pool.map(lambda read: decoded(bch, read, 131), received * 3)):
            np.testing.assert_array_equal(corrected, words)
            assert (flips == count % 8).all()
