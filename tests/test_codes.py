"""The contract of codes, run over the table of specs, and what is particular to the small ones."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

import numpy as np
import pytest

from ckptguard import codes
from ckptguard.codes.lanes import LaneCode
from ckptguard.codes.probability import binomial_tail
from ckptguard.codes.secded import SIZES, SecDed
from ckptguard.errors import SpecError, UsageError

SPECS = [
    "none",
    "crc",
    "secded:72,64",
    "secded:64,57",
    "secded:39,32",
    "secded:32,26",
    "bch:15,7",
    "bch:63,45",
    "bch:255,131",
    "bch:1023,513",
    "bch:8191,6722",
]
CODED = [spec for spec in SPECS if spec != "none"]
FLOAT32 = 0xFF80_0000_FF80_0000  # sign and exponent of two float32
SCATTERED = 0x9F0A_1005_0000_0300
ALL = 2**64 - 1
FULL = -1


def cases(specs):
    """(spec, mask, words): tiny, partial and full units of several masks, as far as they fit in a unit."""
    found = []
    for spec in specs:
        for mask, words in itertools.product((FLOAT32, SCATTERED, ALL, 1 << 63), (1, 5, 300, 512, 513, 1500, FULL)):
            full = 512 * codes.make(spec).unit_tiles(mask.bit_count())
            if words <= full and not (words == FULL and mask == 1 << 63):
                found.append(pytest.param(spec, mask, full if words == FULL else words, id=f"{spec}-{mask:x}-{words}"))
    return found


@lru_cache(maxsize=8)
def flat_places(words: int, mask: int) -> np.ndarray:
    """64 * word + bit of every protected bit of a unit, in flat order, straight from the definition."""
    places = []
    for tile in range(0, words, 512):
        for bit in range(64):
            if mask >> bit & 1:
                for word in range(tile, min(tile + 512, words)):
                    places.append(64 * word + bit)
    return np.array(places)


class Unit:
    """A random unit with its parity, and flips by codeword and index (message first, then parity)."""

    def __init__(self, spec: str, mask: int, words: int, seed: int = 0):
        self.code, self.mask = codes.make(spec), mask
        self.rng = np.random.default_rng([seed, words, mask])
        self.words = self.rng.integers(0, 2**64, words, dtype=np.uint64)
        self.parity = self.code.encode(self.words, mask)
        self.layout = self.code.unit_layout(words, mask.bit_count())
        places = flat_places(words, mask)
        if isinstance(self.code, LaneCode):
            self.owners = np.arange(places.size) % self.layout.codewords
        else:
            self.owners = places // (64 * 512)
        order = np.argsort(self.owners, kind="stable")
        self.places = places[order]
        self.starts = np.searchsorted(self.owners[order], np.arange(self.layout.codewords + 1))
        self.original = self.words.copy(), self.parity.copy()

    def message_bits(self, codeword: int) -> int:
        return int(self.starts[codeword + 1] - self.starts[codeword])

    def bits(self, codeword: int) -> int:
        return self.message_bits(codeword) + self.layout.parity_bits

    def parity_bit(self, codeword: int, i: int) -> int:
        return codeword + self.layout.codewords * i if isinstance(self.code, LaneCode) else 32 * codeword + i

    def flip(self, codeword: int, index: int) -> None:
        if index < self.message_bits(codeword):
            place = int(self.places[self.starts[codeword] + index])
            self.words[place // 64] ^= np.uint64(1 << place % 64)
        else:
            bit = self.parity_bit(codeword, index - self.message_bits(codeword))
            self.parity[bit // 8] ^= np.uint8(1 << bit % 8)

    def decode(self) -> np.ndarray:
        return self.code.decode(self.words, self.mask, self.parity).flips

    def is_original(self) -> bool:
        return np.array_equal(self.words, self.original[0]) and np.array_equal(self.parity, self.original[1])


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_makes_an_equal_code_again(spec):
    code = codes.make(spec)
    again = codes.make(f" {code.spec.replace(',', ' , ')} ")
    assert code.spec == spec
    assert again == code
    assert hash(again) == hash(code)
    assert spec in repr(code)


@pytest.mark.parametrize(("spec", "mask", "words"), cases(SPECS))
def test_layout_holds_every_protected_bit_and_the_parity(spec, mask, words):
    code = codes.make(spec)
    planes = mask.bit_count()
    layout = code.unit_layout(words, planes)
    if isinstance(code, LaneCode):
        tiles, bits = code.unit_tiles(planes), words * planes
        full = words == 512 * tiles
        expected = 512 * math.ceil(Fraction(planes * tiles, code.k)) if full else math.ceil(Fraction(bits, code.k))
        assert layout.codewords == expected
        assert layout.message_bits == math.ceil(Fraction(bits, expected)) <= code.k
        assert layout.parity_bits == code.n - code.k
        assert layout.parity_bytes == 8 * math.ceil(Fraction(expected * (code.n - code.k), 64))
    elif spec == "crc":
        tiles = math.ceil(words / 512)
        assert (layout.codewords, layout.message_bits, layout.parity_bits) == (tiles, min(words, 512) * planes, 32)
        assert layout.parity_bytes == 8 * math.ceil(tiles / 2)
    else:
        assert (layout.codewords, layout.message_bits, layout.parity_bits, layout.parity_bytes) == (0, 0, 0, 0)


@pytest.mark.parametrize(("spec", "mask", "words"), cases(SPECS))
def test_what_was_encoded_is_clean_and_left_alone(spec, mask, words):
    unit = Unit(spec, mask, words)
    unit.words.setflags(write=False)
    assert unit.parity.dtype == np.uint8
    assert unit.parity.shape == (unit.layout.parity_bytes,)
    assert np.array_equal(unit.code.encode(unit.words, mask), unit.parity)
    clean = unit.code.check(unit.words, mask, unit.parity)
    assert clean.dtype == np.bool_
    assert clean.shape == (unit.layout.codewords,)
    assert not clean.any()
    unit.words = unit.words.copy()
    flips = unit.decode()
    assert flips.dtype == np.int32
    assert flips.shape == (unit.layout.codewords,)
    assert not flips.any()
    assert unit.is_original()


@pytest.mark.parametrize(("spec", "mask", "words"), cases(SPECS))
def test_parity_does_not_depend_on_unprotected_bits(spec, mask, words):
    unit = Unit(spec, mask, words)
    noise = unit.rng.integers(0, 2**64, words, dtype=np.uint64) & np.uint64(~mask & ALL)
    assert np.array_equal(unit.code.encode(unit.words ^ noise, mask), unit.parity)


@pytest.mark.parametrize(("spec", "mask", "words"), cases(SPECS))
def test_cover_marks_the_bits_of_the_chosen_codewords_and_no_others(spec, mask, words):
    unit = Unit(spec, mask, words)
    chosen = unit.rng.random(unit.layout.codewords) < 0.3
    expected = np.zeros(64 * words, np.uint8)
    for codeword in np.flatnonzero(chosen):
        expected[unit.places[unit.starts[codeword] : unit.starts[codeword + 1]]] = 1
    cover = unit.code.cover(chosen, words, mask)
    assert cover.dtype == np.uint64
    assert np.array_equal(cover, np.packbits(expected, bitorder="little").view(np.uint64))
    if unit.layout.codewords:
        everything = unit.code.cover(np.ones(unit.layout.codewords, np.bool_), words, mask)
        assert np.array_equal(everything, np.full(words, mask, np.uint64))


@pytest.mark.parametrize(("spec", "mask", "words"), cases(CODED))
def test_one_flip_at_any_index_of_every_codeword_is_corrected(spec, mask, words):
    unit = Unit(spec, mask, words)
    longest = unit.layout.message_bits + unit.layout.parity_bits
    indices = range(longest) if longest <= 80 else [0, longest - 1, *unit.rng.integers(0, longest, 12).tolist()]
    for index in indices:
        hit = np.array([index < unit.bits(c) for c in range(unit.layout.codewords)])
        for codeword in np.flatnonzero(hit):
            unit.flip(codeword, index)
        assert np.array_equal(unit.code.check(unit.words, mask, unit.parity), hit)
        assert np.array_equal(unit.decode(), hit.astype(np.int32))
        assert unit.is_original()


@pytest.mark.parametrize(("spec", "mask", "words"), cases(CODED))
def test_up_to_t_flips_anywhere_in_each_codeword_are_corrected(spec, mask, words):
    unit = Unit(spec, mask, words)
    counts = unit.rng.integers(0, unit.code.t + 1, unit.layout.codewords)
    for codeword, count in enumerate(counts):
        counts[codeword] = min(count, unit.bits(codeword))
        for index in unit.rng.choice(unit.bits(codeword), counts[codeword], replace=False):
            unit.flip(codeword, int(index))
    assert np.array_equal(unit.code.check(unit.words, mask, unit.parity), counts > 0)
    assert np.array_equal(unit.decode(), counts)
    assert unit.is_original()


@pytest.mark.parametrize(("spec", "mask", "words"), cases(CODED))
def test_heavy_damage_leaves_unprotected_bits_and_uncorrectable_codewords_as_read(spec, mask, words):
    unit = Unit(spec, mask, words)
    damage = unit.rng.integers(0, 2**64, words, dtype=np.uint64)
    unit.words ^= damage
    read, parity_read = unit.words.copy(), unit.parity.copy()
    decoded = unit.code.decode(unit.words, mask, unit.parity)
    assert np.all(decoded.flips <= unit.code.t)
    assert np.array_equal(decoded.uncorrectable, decoded.flips == -1)
    given_up = unit.code.cover(decoded.uncorrectable, words, mask)
    assert not ((unit.words ^ read) & (given_up | np.uint64(~mask & ALL))).any()
    changes = int(np.bitwise_count(unit.words ^ read).sum() + np.bitwise_count(unit.parity ^ parity_read).sum())
    assert changes == int(decoded.flips[decoded.flips > 0].sum())
    assert np.array_equal(unit.code.check(unit.words, mask, unit.parity), decoded.uncorrectable)
    again_words, again_parity = read.copy(), parity_read.copy()
    assert np.array_equal(unit.code.decode(again_words, mask, again_parity).flips, decoded.flips)
    assert np.array_equal(again_words, unit.words)
    assert np.array_equal(again_parity, unit.parity)


@pytest.mark.parametrize(("spec", "mask", "words"), cases(CODED))
def test_parity_bytes_behind_the_last_codeword_are_made_zero(spec, mask, words):
    unit = Unit(spec, mask, words)
    used = unit.layout.codewords * unit.layout.parity_bits
    bits = np.unpackbits(unit.parity, bitorder="little")
    bits[used:] ^= 1
    unit.parity[:] = np.packbits(bits, bitorder="little")
    assert not unit.code.check(unit.words, mask, unit.parity).any()
    assert not unit.decode().any()
    assert unit.is_original()


@pytest.mark.parametrize("spec", SPECS)
def test_an_empty_unit_has_no_codewords_and_no_parity(spec):
    unit = Unit(spec, FLOAT32, 0)
    assert unit.layout.codewords == 0
    assert unit.parity.size == 0
    assert unit.decode().size == 0


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("planes", [1, 9, 18, 36, 64])
def test_unit_tiles_follow_the_stated_rule(spec, planes):
    code = codes.make(spec)
    if not isinstance(code, LaneCode):
        assert code.unit_tiles(planes) == 64
        return
    sizes = range(1, max(64, code.k // planes) + 1)
    waste = {T: Fraction(-(-planes * T // code.k) * code.k - planes * T, planes * T) for T in sizes}
    good = [T for T in sizes if waste[T] <= Fraction(1, 256)]
    best = good[0] if good else min(sizes, key=lambda T: (waste[T], T))
    assert code.unit_tiles(planes) == best * math.ceil(64 / best)


@pytest.mark.parametrize("spec", SPECS)
def test_failure_probability_is_the_chance_of_more_than_t_flips(spec):
    code = codes.make(spec)
    bits = max(code.n, 30)
    assert code.failure_probability(0.0, bits) == 0.0
    assert code.failure_probability(1.0, bits) == pytest.approx(1.0)
    few = [math.comb(bits, j) * 0.01**j * 0.99 ** (bits - j) for j in range(code.t + 1)]
    assert code.failure_probability(0.01, bits) == pytest.approx(1 - sum(few), rel=1e-9)


@pytest.mark.parametrize("spec", CODED)
def test_a_wrong_unit_is_refused(spec):
    code = codes.make(spec)
    words = np.zeros(64, np.uint64)
    parity = code.encode(words, FLOAT32)
    for mask in (0, -1, 1 << 64):
        with pytest.raises(UsageError, match="mask"):
            code.encode(words, mask)
    with pytest.raises(UsageError, match="uint64"):
        code.encode(words.astype(np.int64), FLOAT32)
    with pytest.raises(UsageError, match="contiguous"):
        code.encode(words[::2], FLOAT32)
    with pytest.raises(UsageError, match="bytes of parity"):
        code.check(words, FLOAT32, parity[:-1])
    with pytest.raises(UsageError, match="words"):
        code.encode(np.zeros(512 * code.unit_tiles(18) + 1, np.uint64), FLOAT32)
    with pytest.raises(UsageError, match="choice"):
        code.cover(np.zeros(10_000, np.bool_), 64, FLOAT32)
    with pytest.raises(UsageError, match="protected bits"):
        code.unit_tiles(0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "not of the form"),
        ("secdet:72,64", "did you mean 'secded'"),
        ("hamming", "known: bch, crc, none, secded"),
        ("none:1", "takes no settings"),
        ("crc:32", "takes no settings"),
        ("secded", "secded:n,k"),
        ("secded:72", "secded:n,k"),
        ("secded:72,x", "secded:n,k"),
        ("secded:71,64", "known: 72,64, 64,57, 39,32, 32,26"),
    ],
)
def test_a_wrong_spec_is_refused_with_what_is_known(spec, message):
    with pytest.raises(SpecError, match=message):
        codes.make(spec)


def test_making_a_code_does_not_import_numba():
    program = "import sys; from ckptguard import codes; [codes.make(spec) for spec in sys.argv[1:]]"
    program += "; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program, *SPECS], check=False).returncode == 0


# SEC-DED


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_secded_columns_are_different_and_odd_so_that_two_flips_never_look_like_one(n, k):
    columns = SecDed(n, k).columns.tolist() + [1 << r for r in range(n - k)]
    assert len(set(columns)) == n
    assert all(column.bit_count() % 2 for column in columns)
    assert [column.bit_count() for column in columns[:k]] == sorted(column.bit_count() for column in columns[:k])


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("shorter", [0, 1, 20])
def test_secded_parity_is_the_sum_of_the_columns_of_the_message_bits_that_are_set(n, k, shorter):
    code = SecDed(n, k)
    message = np.random.default_rng(n).integers(0, 2**64, (k - shorter, 8), dtype=np.uint64)
    bits = np.unpackbits(message.view(np.uint8), bitorder="little").reshape(-1, 512)
    expected = np.bitwise_xor.reduce(bits * code.columns[shorter:, None], axis=0)
    parity = np.unpackbits(code.encode_rows(message).copy().view(np.uint8), bitorder="little").reshape(n - k, 512)
    assert np.array_equal((parity << np.arange(n - k, dtype=np.uint8)[:, None]).sum(axis=0), expected)


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_secded_corrects_every_single_and_detects_every_double_flip(n, k):
    """All patterns at once, one per lane."""
    patterns = [(i,) for i in range(n)] + list(itertools.combinations(range(n), 2))
    lanes = 512 * math.ceil(len(patterns) / 512)
    code = SecDed(n, k)
    message = np.random.default_rng(n).integers(0, 2**64, (k, lanes // 64), dtype=np.uint64)
    parity = code.encode_rows(message).copy()
    both = np.vstack([message, parity])
    read = np.unpackbits(both.view(np.uint8), bitorder="little").reshape(n, lanes)
    for lane, pattern in enumerate(patterns):
        read[list(pattern), lane] ^= 1
    rows = np.packbits(read, bitorder="little").view(np.uint64).reshape(n, lanes // 64)
    received, received_parity = rows[:k].copy(), rows[k:].copy()
    flips = code.decode_rows(received, received_parity)
    expected = np.zeros(lanes, np.int32)
    expected[: len(patterns)] = [1 if len(pattern) == 1 else -1 for pattern in patterns]
    assert np.array_equal(flips, expected)
    decoded = np.unpackbits(np.vstack([received, received_parity]).view(np.uint8), bitorder="little").reshape(n, lanes)
    original = np.unpackbits(both.view(np.uint8), bitorder="little").reshape(n, lanes)
    assert np.array_equal(decoded[:, expected == 1], original[:, expected == 1])
    assert np.array_equal(decoded[:, expected == -1], read[:, expected == -1])


def test_secded_gives_up_when_the_syndrome_points_at_a_bit_that_a_shortened_word_lacks():
    code = SecDed(72, 64)
    message = np.zeros((3, 8), np.uint64)
    lacking = code.columns[:61]
    parity = np.zeros((8, 8), np.uint64)
    for r in range(8):
        parity[r, 0] = sum(1 << lane for lane in range(61) if int(lacking[lane]) >> r & 1)
    flips = code.decode_rows(message, parity)
    assert np.array_equal(flips[:61], np.full(61, -1))
    assert not flips[61:].any()
    assert not message.any()


def test_a_correction_in_the_padding_of_a_unit_is_refused():
    unit = Unit("secded:72,64", 1 << 63, 100)
    assert (unit.layout.codewords, unit.layout.message_bits) == (2, 50)
    unit = Unit("secded:72,64", 1 << 63, 99)
    assert [unit.message_bits(c) for c in (0, 1)] == [50, 49]
    column = int(unit.code.columns[-1])  # of the last message bit, which codeword 1 lacks
    for r in range(8):
        if column >> r & 1:
            unit.flip(1, 49 + r)
    words, parity = unit.words.copy(), unit.parity.copy()
    assert unit.decode().tolist() == [0, -1]
    assert np.array_equal(unit.words, words)
    assert np.array_equal(unit.parity, parity)


# CRC


def slow_crc32c(data: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def test_the_slow_twin_gives_the_published_check_value():
    assert slow_crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("words", [1, 2, 17, 511, 512])
@pytest.mark.parametrize("mask", [FLOAT32, ALL])
def test_crc_is_crc32c_of_the_masked_words(words, mask):
    unit = Unit("crc", mask, words)
    data = (unit.words & np.uint64(mask)).astype("<u8").tobytes()
    assert unit.parity.tobytes() == slow_crc32c(data).to_bytes(4, "little") + bytes(4)


def test_crc_gives_up_when_the_syndrome_points_at_an_unprotected_bit():
    unit = Unit("crc", ALL, 512)
    unit.words[77] ^= np.uint64(1 << 12)
    mask = ALL & ~(1 << 12)
    unit.parity = unit.code.encode(unit.words, mask)
    crc = int.from_bytes(unit.parity[:4].tobytes(), "little")
    one = np.zeros(512, np.uint64)
    one[77] = 1 << 12
    zero = unit.code.encode(np.zeros(512, np.uint64), ALL)
    syndrome = np.array(unit.code.encode(one, ALL) ^ zero)
    unit.parity ^= syndrome
    assert unit.code.decode(unit.words, mask, unit.parity).flips.tolist() == [-1]
    assert int.from_bytes((unit.parity ^ syndrome)[:4].tobytes(), "little") == crc


@pytest.mark.slow
def test_crc_syndromes_of_single_flips_are_all_different():
    from ckptguard.kernels import crc32c

    known, places = crc32c.syndromes()
    everything = np.concatenate([known, np.uint32(1) << np.arange(32, dtype=np.uint32)])
    assert np.unique(everything).size == 32768 + 32
    assert np.array_equal(np.sort(places), np.arange(32768))


@pytest.mark.slow
def test_crc_detects_doubles_of_a_tile():
    unit = Unit("crc", ALL, 512)
    for _ in range(20_000):
        a, b = unit.rng.choice(32768 + 32, 2, replace=False)
        unit.flip(0, int(a))
        unit.flip(0, int(b))
        assert unit.decode().tolist() == [-1]
        unit.flip(0, int(a))
        unit.flip(0, int(b))
        assert unit.is_original()


# probability


@pytest.mark.parametrize(
    ("count", "p", "above"),
    [
        (10, 0.3, 2),
        (72, 1e-2, 1),
        (8191, 1e-2, 115),
        (8191, 1e-2, 50),
        (8191, 1e-3, 115),
        (8191, 0.5, 4000),
        (5, 0.5, 4),
    ],
)
def test_binomial_tail_agrees_with_decimals_of_60_digits(count, p, above):
    with localcontext() as context:
        context.prec = 60
        hit, miss = Decimal(p), 1 - Decimal(p)
        term = Decimal(math.comb(count, above + 1)) * hit ** (above + 1) * miss ** (count - above - 1)
        total = Decimal(0)
        for j in range(above + 1, count + 1):
            total += term
            term *= hit / miss * (count - j) / (j + 1)
    assert binomial_tail(count, p, above) == pytest.approx(float(total), rel=1e-11)


def test_binomial_tail_reaches_1e_minus_300_and_knows_its_limits():
    assert binomial_tail(100, 1e-30, 9) == pytest.approx(math.comb(100, 10) * 1e-300, rel=1e-11)
    assert binomial_tail(100, 0.5, -1) == 1.0
    assert binomial_tail(100, 0.5, 100) == 0.0
    assert binomial_tail(100, 0.0, 0) == 0.0
    assert binomial_tail(100, 1.0, 99) == 1.0
