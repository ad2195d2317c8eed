"""The contract of channels, run over a table of specs, and the distribution of every kind."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from ckptguard import channels
from ckptguard.channels import BLOCK_BYTES, NoiseKey
from ckptguard.channels.noise import binomial, geometric, of_2_to_63, stream_key
from ckptguard.codes.probability import binomial_tail
from ckptguard.errors import SpecError, UsageError

SPECS = [
    "bsc:0.01",
    "bsc:0.0001",
    "bsc:0.7",
    "asymmetric:0.01,0.001",
    "asymmetric:0.0001,0.8",
    "asymmetric:0.0,0.02",
    "burst:0.0001,0.01,0.5",
    "burst:0.001,0.1,1.0,1e-05",
    "erasure:4096,0.3",
    "erasure:1460,0.1,zeros",
    "erasure:1,0.01",
    "erasure:200000,0.6,ones",
    "erasure:512,0.1,zeros,8.0",
    "erasure:3000,0.3,random,3.0",
    "levelmap:0/1/2/3,0.3/0.25/0.2/0.3,ml,gray,bits",
    "levelmap:-110/66/129/192/255/318/381/444,45.9/18/9/9/9/9/9/9,23/97/161/225/282/353/413,7/3/1/5/4/0/2/6,pages",
    "levelmap:0/1/2/3/4/5/6/7,0.3/0.3/0.3/0.3/0.3/0.3/0.3/0.3,ml,binary,bits",
    "levelmap:0/1,1/20,2,binary,bits",
    "stuck:0.01",
    "stuck:0.3,0.25",
    "stuck:0.01,0.5,0.5",
    "cluster:0.001,2,8",
    "cluster:0.7,3,40,64",
    "bsc:0.001+cluster:0.001,1,4,2+stuck:0.002",
    "bsc:0.001+bsc:0.001",
]
NEVER = ["erasure:4096,0,ones,4", "levelmap:0/1,1e-3/1e-3", "stuck:0", "cluster:0,1,2", "bsc:0+stuck:0,1"]
ALWAYS = ["levelmap:1/-1,0.001/0.001,0", "cluster:1,8,8", "cluster:1,64,64,8"]
LENGTH = 5 * BLOCK_BYTES + 20_001
UNLIKELY = 1e-6  # each bound below is missed so often by a right sampler with another seed


def stored(length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, length, dtype=np.uint8)


def corrupted(spec: str, data: np.ndarray, key: NoiseKey = NoiseKey(1, "a")) -> np.ndarray:  # noqa: B008
    result = data.copy()
    channels.make(spec).corrupt(result, 0, key)
    return result


def bits_of(data: np.ndarray) -> np.ndarray:
    return np.unpackbits(data, bitorder="little")


def assert_binomial(hits: int, count: int, p: float) -> None:
    """Neither tail of Bin(count, p) from `hits` on is unlikely."""
    assert binomial_tail(count, p, hits - 1) > UNLIKELY, f"{hits} of {count} are too many at {p}"
    assert 1.0 - binomial_tail(count, p, hits) > UNLIKELY, f"{hits} of {count} are too few at {p}"


def assert_uniform(counts: np.ndarray) -> None:
    """Chi-square of equally likely classes within 5 standard deviations (normal approximation)."""
    expected = counts.sum() / counts.size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = counts.size - 1
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_makes_an_equal_channel_again(spec):
    channel = channels.make(spec)
    assert channel.spec == spec
    assert channels.make(spec.replace(",", " , ")).spec == spec
    assert channel.name == ("composite" if "+" in spec else spec.partition(":")[0])


@pytest.mark.parametrize("spec", SPECS)
def test_any_partition_into_blocks_in_any_order_gives_the_same_bytes(spec):
    data = stored()
    whole = corrupted(spec, data)
    channel = channels.make(spec)
    for borders in ([0, 1, 2, 3, 4, 5], [0, 2], [0, 4, 5]):
        pieces = data.copy()
        for begin, end in reversed(list(zip(borders, [*borders[1:], None], strict=True))):
            stop = None if end is None else end * BLOCK_BYTES
            channel.corrupt(pieces[begin * BLOCK_BYTES : stop], begin, NoiseKey(1, "a"))
        assert np.array_equal(pieces, whole)


@pytest.mark.parametrize("spec", SPECS)
def test_seed_and_shard_both_change_what_is_drawn(spec):
    data = stored()
    first = corrupted(spec, data)
    assert np.array_equal(first, corrupted(spec, data))
    assert any(not np.array_equal(first, corrupted(spec, data, NoiseKey(seed, "a"))) for seed in range(2, 20))
    assert any(not np.array_equal(first, corrupted(spec, data, NoiseKey(1, shard))) for shard in "bcdefghijklmnopqrs")


@pytest.mark.parametrize(
    "spec", ["bsc:0", "asymmetric:0,0", "burst:0,1,1", "burst:0.5,0.5,0", "erasure:4096,0", *NEVER]
)
def test_a_rate_of_zero_changes_nothing(spec):
    data = stored()
    assert np.array_equal(corrupted(spec, data), data)
    assert channels.make(spec).bit_error_rate == 0.0


@pytest.mark.parametrize("spec", ["bsc:1", "asymmetric:1,1", "burst:1,0,1", "burst:0.3,0.4,1,1", *ALWAYS])
def test_a_rate_of_one_flips_every_bit(spec):
    data = stored()
    assert np.array_equal(corrupted(spec, data), ~data)
    assert channels.make(spec).bit_error_rate == 1.0


@pytest.mark.parametrize("spec", SPECS)
def test_an_empty_file_stays_empty(spec):
    assert corrupted(spec, np.zeros(0, np.uint8)).size == 0


@pytest.mark.parametrize("spec", SPECS)
def test_what_cannot_be_changed_in_place_is_refused(spec):
    channel = channels.make(spec)
    fixed = np.zeros(10, np.uint8)
    fixed.setflags(write=False)
    for data in (np.zeros(10, np.int8), np.zeros((2, 5), np.uint8), np.zeros(20, np.uint8)[::2], fixed):
        with pytest.raises(UsageError, match="uint8"):
            channel.corrupt(data, 0, NoiseKey(0))
    with pytest.raises(UsageError, match="index"):
        channel.corrupt(np.zeros(10, np.uint8), -1, NoiseKey(0))
    with pytest.raises(UsageError, match="seed"):
        channel.corrupt(np.zeros(10, np.uint8), 0, NoiseKey(1 << 64))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "not of the form"),
        ("bcs:1e-3", "did you mean 'bsc'"),
        ("awgn:1", "known: asymmetric, bsc, burst, cluster, erasure, levelmap, stuck"),
        ("bsc", "bsc:p"),
        ("bsc:1e-3,1e-3", "bsc:p"),
        ("bsc:1.5", "probability in 0 .. 1, not '1.5'"),
        ("bsc:-0.1", "probability"),
        ("bsc:nan", "probability"),
        ("bsc:often", "probability"),
        ("asymmetric:0.1", "asymmetric:p01,p10"),
        ("asymmetric:0.1,2", "p10 of channel 'asymmetric'"),
        ("burst:0.1,0.1", "burst:p_enter"),
        ("burst:0.1,0.1,0.5,0,0", "burst:p_enter"),
        ("burst:0.1,0.1,7", "p_bad of channel 'burst'"),
        ("burst:0,0,1", "cannot both be 0"),
        ("erasure:4096", "erasure:bytes,p"),
        ("erasure:x,0.1", "erasure:bytes,p"),
        ("erasure:0,0.1", "1 to 2\\*\\*40 bytes"),
        ("erasure:4096,2", "p of channel 'erasure'"),
        ("erasure:4096,0.1,zeroes", "did you mean 'zeros'"),
        ("erasure:4096,0.1,zeros,long", "a number of units, not 'long'"),
        ("erasure:4096,0.1,zeros,0.5", "1 to 4096 units"),
        ("erasure:4096,0.9,zeros,2", "at least p / \\(1 - p\\)"),
        ("erasure:4096,0.1,zeros,2,3", "erasure:bytes,p"),
        ("levelmap:0/1", "levelmap:means,sigmas"),
        ("levelmap:0/x,1/1", "is not a list of numbers"),
        ("levelmap:0/1/2,1/1/1", "2, 4, 8 ... 256 levels, not 3"),
        ("levelmap:0/1,1/1/1", "for each of its 2 levels, not 3"),
        ("levelmap:0/1,1/0", "above 0, not 1/0"),
        ("levelmap:1/0,1/1", "rise from level to level; 1 is followed by 0"),
        ("levelmap:0/0.1,1/10", "do not cross between their means 0 and 0.1; give the thresholds"),
        ("levelmap:0/1,1/1,0/1", "has 1 thresholds, each above the one before, not 0/1"),
        ("levelmap:0/1/2/3,1/1/1/1,0/2/1", "has 3 thresholds, each above the one before"),
        ("levelmap:0/1,1/1,ml,grey", "did you mean 'gray'"),
        ("levelmap:0/1,1/1,ml,0/2", "numbers 0 .. 1, each once, not 0/2"),
        ("levelmap:0/1,1/1,ml,gray,page", "did you mean 'pages'"),
        ("stuck", "stuck:p"),
        ("stuck:0.1,2", "the share stuck at 1 of channel 'stuck'"),
        ("stuck:0.6", "at most 0.5"),
        ("stuck:0.1,0.5,1,x", "die of channel 'stuck' is a whole number"),
        ("stuck:0.1,0.5,1,18446744073709551616", "0 .. 2\\*\\*64 - 1"),
        ("cluster:0.1,2", "cluster:p,least"),
        ("cluster:0.1,2,8.5", "cluster:p,least"),
        ("cluster:0.1,2,9", "1 <= least <= most <= 8 in units of 1 bytes, not 2 and 9"),
        ("cluster:0.1,2,8,3", "1, 2, 4 ... 8192 bytes"),
        ("bsc:0.1+bcs:0.1", "did you mean 'bsc'"),
        ("bsc:0.1+", "probability"),
    ],
)
def test_a_wrong_spec_is_refused_with_what_was_expected(spec, message):
    with pytest.raises(SpecError, match=message):
        channels.make(spec)


def test_making_a_channel_does_not_import_numba():
    program = "import sys; from ckptguard import channels; [channels.make(spec) for spec in sys.argv[1:]]"
    program += "; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program, *SPECS], check=False).returncode == 0


@pytest.mark.parametrize(("count", "p"), [(8, 0.5), (24, 0.3), (300, 1e-3), (65536, 1e-2), (65536, 1e-9), (1, 0.25)])
def test_the_distribution_function_of_counts_is_exact_to_the_last_bit(count, p):
    thresholds, least = binomial(count, p)
    hit, so_far = Fraction(p), Fraction(0)
    if count > 1000:
        for i, threshold in enumerate(thresholds.tolist()):
            assert 1.0 - threshold / 2**64 == pytest.approx(binomial_tail(count, p, least + i), rel=1e-9, abs=1e-15)
        return
    expected = []
    for j in range(count + 1):
        so_far += math.comb(count, j) * hit**j * (1 - hit) ** (count - j)
        expected.append(round(so_far * 2**64))
    expected = [value for value in expected if 0 < value < 2**64]
    assert thresholds.size == len(expected)
    assert all(abs(a - b) <= 1 for a, b in zip(thresholds.tolist(), expected, strict=True))


@pytest.mark.parametrize("p", [1.0, 0.5, 0.1, 1e-3, 1e-6])
def test_the_digits_of_geometric_numbers_have_their_exact_chances(p):
    digits = geometric(p).tolist()
    miss = 1 - p
    assert digits[0] / 2**63 == pytest.approx(miss ** (1 << 19), rel=1e-9, abs=1e-15)
    for j, digit in enumerate(digits[1:]):
        power = miss ** (1 << j)
        assert digit / 2**63 == pytest.approx(power / (1 + power), rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("p", [1e-2, 1e-4, 0.3, 0.7])
def test_bsc_flips_a_binomial_number_of_bits_and_all_places_alike(p):
    data = stored(64 * BLOCK_BYTES if p < 0.1 else 4 * BLOCK_BYTES)
    flips = bits_of(data ^ corrupted(f"bsc:{p}", data))
    assert_binomial(int(flips.sum()), flips.size, p)
    where = np.flatnonzero(flips) if p < 0.5 else np.flatnonzero(flips == 0)
    assert_uniform(np.bincount(where % 65536 // 1024, minlength=64))
    assert_uniform(np.bincount(where % 8, minlength=8))
    assert_uniform(np.bincount(where * 64 // flips.size, minlength=64))


def test_bsc_counts_of_parts_spread_as_a_binomial_does():
    data = stored(128 * BLOCK_BYTES)
    flips = bits_of(data ^ corrupted("bsc:0.001", data)).reshape(-1, 65536).sum(axis=1)
    variance = 65536 * 0.001 * 0.999
    ratio = ((flips - 65.536) ** 2).sum() / variance
    assert abs(ratio - flips.size) < 5 * math.sqrt(2 * flips.size)


def test_flips_of_neighbouring_bits_are_independent():
    data = stored(64 * BLOCK_BYTES)
    flips = bits_of(data ^ corrupted("bsc:0.05", data))
    assert_binomial(int((flips[::2] & flips[1::2]).sum()), flips.size // 2, 0.0025)


@pytest.mark.parametrize("p", [1e-5, 1e-4, 1e-3, 1e-2, 0.3, 0.999])
def test_bsc_flips_the_same_bits_wherever_the_bytes_lie_in_memory(p):
    plain = np.random.default_rng(3).integers(0, 256, 5 * BLOCK_BYTES + 777, np.uint8)
    space = np.empty(plain.size + 8, np.uint8)
    results = []
    for shift in (0, 1):  # words of the machine, and bytes that are none
        begin = -space.ctypes.data % 8 + shift
        moved = space[begin : begin + plain.size]
        moved[:] = plain
        channels.make(f"bsc:{p!r}").corrupt(moved, 3, NoiseKey(7))
        results.append(moved.copy())
    assert (results[0] == results[1]).all()
    assert (results[0] != plain).any()


@pytest.mark.parametrize(("p01", "p10"), [(1e-2, 1e-3), (1e-4, 5e-3), (0.0, 0.01), (0.9, 0.2), (0.6, 0.6), (1.0, 0.0)])
def test_asymmetric_rates_hold_for_zeros_and_for_ones(p01, p10):
    data = stored(16 * BLOCK_BYTES) & stored(16 * BLOCK_BYTES)[::-1]
    before, after = bits_of(data), bits_of(corrupted(f"asymmetric:{p01},{p10}", data))
    assert_binomial(int(after[before == 0].sum()), int((before == 0).sum()), p01)
    assert_binomial(int((after[before == 1] == 0).sum()), int((before == 1).sum()), p10)
    assert channels.make(f"asymmetric:{p01},{p10}").bit_error_rate == max(p01, p10)


def test_bursts_have_the_stationary_rate_in_every_part_of_a_block():
    channel = channels.make("burst:0.001,0.02,1")
    data = stored(64 * BLOCK_BYTES)
    flips = bits_of(data ^ corrupted(channel.spec, data)).reshape(64, -1)
    assert channel.bit_error_rate == pytest.approx(1 / 21)
    for part in np.split(flips, 8, axis=1):
        # neighbours correlate as 0.979**distance, so that the variance is (1 + 0.979) / (1 - 0.979) times a binomial's
        spread = math.sqrt(part.size * (1 / 21) * (20 / 21) * 1.979 / 0.021)
        assert abs(part.sum() - part.size / 21) < 5 * spread
    assert 0 < flips[:, 0].sum() < 20


def test_bursts_are_geometric_runs():
    data = np.zeros(64 * BLOCK_BYTES, np.uint8)
    flips = bits_of(corrupted("burst:0.001,0.25,1", data))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flips, [0]]).astype(np.int8)))
    lengths = Counter((edges[1::2] - edges[::2]).tolist())
    runs = sum(lengths.values())
    for length in range(1, 12):
        assert_binomial(lengths[length], runs, 0.25 * 0.75 ** (length - 1))
    gaps = edges[2::2] - edges[1:-1:2]
    assert_binomial(int((gaps <= 500).sum()), gaps.size, 1 - 0.999**500)


@pytest.mark.parametrize("p_bad", [0.5, 0.01])
def test_bits_of_the_bad_state_flip_at_their_own_rate(p_bad):
    data = stored(8 * BLOCK_BYTES)
    channel = channels.make(f"burst:1,0,{p_bad},1")
    flips = bits_of(data ^ corrupted(channel.spec, data))
    assert channel.bit_error_rate == p_bad
    assert_binomial(int(flips.sum()), flips.size, p_bad)


def test_flips_of_the_good_state_come_besides_bursts():
    data = stored(8 * BLOCK_BYTES)
    flips = bits_of(data ^ corrupted("burst:0,1,1,0.01", data))
    assert_binomial(int(flips.sum()), flips.size, 0.01)


@pytest.mark.parametrize(("unit", "p"), [(512, 0.1), (4096, 0.7), (1460, 0.3), (1, 0.01), (7, 0.5), (100_000, 0.3)])
@pytest.mark.parametrize(("fill", "value"), [("zeros", 0), ("ones", 255)])
def test_erasure_loses_whole_aligned_units_and_a_binomial_number_of_them(unit, p, fill, value):
    data = np.full((64 if unit > 100 else 2) * BLOCK_BYTES + 5000, 0x5A, np.uint8)
    result = corrupted(f"erasure:{unit},{p},{fill}", data)
    lost = [bool((piece == value).all()) for piece in np.array_split(result, range(unit, result.size, unit))]
    kept = np.repeat(np.logical_not(lost), unit)[: result.size]
    assert np.array_equal(result, np.where(kept, 0x5A, value))
    assert_binomial(sum(lost), len(lost), p)
    assert channels.make(f"erasure:{unit},{p},{fill}").bit_error_rate == p


def test_lost_units_read_as_random_bits_by_default():
    data = np.zeros(16 * BLOCK_BYTES, np.uint8)
    channel = channels.make("erasure:4096,1")
    bits = bits_of(corrupted(channel.spec, data))
    assert channel.bit_error_rate == 0.5
    assert_binomial(int(bits.sum()), bits.size, 0.5)
    assert_uniform(np.bincount(np.packbits(bits), minlength=256))


@pytest.mark.parametrize("spec", SPECS)
def test_positions_of_a_word_flip_as_often_as_the_channel_says(spec):
    """Held loosely against what was drawn: clustered flips spread wider than independent ones do."""
    channel = channels.make(spec)
    rates = channel.flip_probability(16)
    data = np.random.default_rng(4).integers(0, 256, 32 * BLOCK_BYTES, dtype=np.uint8)
    before = bits_of_words(data)
    flips = before ^ bits_of_words(corrupted(spec, data))
    assert rates.shape == (16, 2)
    for value in (0, 1):
        found = (flips * (before == value)).sum(axis=0) / (before == value).sum(axis=0)
        assert found == pytest.approx(rates[:, value], rel=0.25, abs=2e-4), value
    assert channel.bit_error_rate == pytest.approx(channel.flip_probability(64).mean(axis=0).max())


def bits_of_words(data: np.ndarray) -> np.ndarray:
    """(words, 16) bits of 16-bit little-endian words, most significant first."""
    return np.unpackbits(data.view("<u2").byteswap().view(np.uint8)).reshape(-1, 16)


@pytest.mark.parametrize("run", [1.0, 8.0])
def test_lost_units_come_in_runs_of_the_stated_mean(run):
    units, p = 200_000, 0.05
    data = np.ones(units, np.uint8)
    lost = corrupted(f"erasure:1,{p},zeros,{run}", data) == 0
    runs = int((np.diff(np.concatenate([[0], lost]).astype(np.int8)) == 1).sum())
    # a run ends with probability 1 / run; 4096-unit groups cut a few short
    assert abs(lost.sum() / runs - run) < 5 * run * math.sqrt(1 / runs) + run * run / 4096
    correlation = max(0.0, 1 - 1 / run / (1 - p))
    spread = math.sqrt(units * p * (1 - p) * (1 + correlation) / (1 - correlation))
    assert abs(lost.sum() - units * p) < 5 * spread


LEVELMAP = "levelmap:0/1/2/3,0.4/0.3/0.2/0.35,ml,gray,bits"


def levels_of(data: np.ndarray, width: int, labels: list[int], *, pages: bool) -> np.ndarray:
    """(blocks, cells) the level of every cell, by the words of `LevelMap`'s description, a block at a time."""
    rows = []
    for begin in range(0, data.size, BLOCK_BYTES):
        bits = np.unpackbits(data[begin : begin + BLOCK_BYTES])
        cells = -(-bits.size // width)
        bits = np.concatenate([bits, np.zeros(cells * width - bits.size, np.uint8)])
        by_cell = bits.reshape(width, cells) if pages else bits.reshape(cells, width).T[::-1]
        label = sum(page.astype(int) << i for i, page in enumerate(by_cell))
        rows.append(np.argsort(labels)[label])
    return np.concatenate(rows)


@pytest.mark.parametrize(("order", "pages"), [("bits", False), ("pages", True)])
@pytest.mark.parametrize(
    ("spec", "labels"),
    [
        ("levelmap:0/1/2/3,0.4/0.3/0.2/0.35,ml,gray,", [0, 1, 3, 2]),
        ("levelmap:0/1/2/3/4/5/6/7,0.4/0.4/0.4/0.3/0.4/0.4/0.4/0.4,ml,binary,", list(range(8))),
        (
            "levelmap:0/10/20/30/40/50/60/70,3/3/3/3/3/3/3/3,5/15/25/35/45/55/90,7/3/1/5/4/0/2/6,",
            [7, 3, 1, 5, 4, 0, 2, 6],
        ),
    ],
)
def test_levels_are_read_as_the_transition_matrix_says(spec, labels, order, pages):
    channel = channels.make(spec + order)
    data = np.random.default_rng(5).integers(0, 256, 4 * BLOCK_BYTES + 1000, dtype=np.uint8)
    written = levels_of(data, channel.cell_bits, labels, pages=pages)
    read = levels_of(corrupted(channel.spec, data), channel.cell_bits, labels, pages=pages)
    for level in range(len(labels)):
        here = written == level
        for other in range(len(labels)):
            p = channel.transitions[level, other]
            if level != other and p > 0:
                # the padding of blocks of 3-bit cells is not stored: five cells at most may lose a move
                hits = int((read[here] == other).sum())
                assert_binomial(hits, int(here.sum()), p)


def test_transition_probabilities_are_those_of_normal_deviates():
    stats = pytest.importorskip("scipy.stats")
    means, sigmas, edges = [0, 1, 2.5, 3], [0.4, 0.3, 0.2, 0.05], [0.5, 1.6, 2.9]
    channel = channels.make("levelmap:0/1/2.5/3,0.4/0.3/0.2/0.05,0.5/1.6/2.9")
    for level, (mean, sigma) in enumerate(zip(means, sigmas, strict=True)):
        normal = stats.norm(mean, sigma)
        upper = np.array([1.0, *normal.sf(edges), 0.0])
        lower = np.array([0.0, *normal.cdf(edges), 1.0])
        expected = np.where(np.arange(4) > level, upper[:-1] - upper[1:], lower[1:] - lower[:-1])
        assert channel.transitions[level] == pytest.approx(expected, rel=1e-9)
    assert channel.moves == pytest.approx(
        (np.triu(channel.transitions, 1).sum() / 4, np.tril(channel.transitions, -1).sum() / 4)
    )
    assert channel.cell_error_rate == pytest.approx(sum(channel.moves))


def test_likelihood_thresholds_lie_where_densities_are_equal():
    stats = pytest.importorskip("scipy.stats")
    channel = channels.make("levelmap:0/1/2.5/3,0.4/0.3/0.2/0.05")
    levels = list(zip((0, 1, 2.5, 3), (0.4, 0.3, 0.2, 0.05), strict=True))
    for at, low, high in zip(channel.thresholds, levels[:-1], levels[1:], strict=True):
        assert low[0] < at < high[0]
        assert stats.norm(*low).pdf(at) == pytest.approx(stats.norm(*high).pdf(at))


def test_positions_of_a_cell_have_rates_of_their_own():
    channel = channels.make(LEVELMAP)
    rates = channel.flip_probability(16)
    assert np.array_equal(rates, np.tile(channel.page_rates[::-1], (8, 1)))
    assert channel.page_error_rates[0] > 1.5 * channel.page_error_rates[1]
    data = np.random.default_rng(6).integers(0, 256, 8 * BLOCK_BYTES, dtype=np.uint8)
    before = bits_of_words(data)
    flips = before ^ bits_of_words(corrupted(LEVELMAP, data))
    for position in range(16):
        for value in (0, 1):
            here = before[:, position] == value
            assert_binomial(int(flips[here, position].sum()), int(here.sum()), rates[position, value])
    in_pages = channels.make(LEVELMAP.replace("bits", "pages")).flip_probability(16)
    assert in_pages == pytest.approx(np.tile(channel.page_rates.mean(axis=0), (16, 1)))


def test_pages_of_a_block_have_the_rates_of_their_label_bits():
    channel = channels.make("levelmap:0/1/2/3/4/5/6/7,0.3/0.3/0.3/0.3/0.3/0.3/0.3/0.3,ml,gray,pages")
    data = np.random.default_rng(7).integers(0, 256, 8 * BLOCK_BYTES, dtype=np.uint8)
    flips = np.unpackbits(data ^ corrupted(channel.spec, data)).reshape(8, -1)
    page = -(-8 * BLOCK_BYTES // 3)
    before = np.unpackbits(data).reshape(8, -1)
    for i in range(3):
        part, stored_bits = flips[:, i * page : (i + 1) * page], before[:, i * page : (i + 1) * page]
        for value in (0, 1):
            here = stored_bits == value
            assert_binomial(int(part[here].sum()), int(here.sum()), channel.page_rates[i, value])


def test_what_is_stuck_at_a_rate_is_stuck_at_every_larger_one():
    zeros, ones = np.zeros(LENGTH, np.uint8), np.full(LENGTH, 255, np.uint8)
    before = (zeros, zeros)
    for p in (1e-6, 1e-5, 5e-5, 1e-3, 1.3e-3, 0.01, 0.025, 0.24, 0.26, 0.5):
        stuck = corrupted(f"stuck:{p}", zeros), ~corrupted(f"stuck:{p}", ones)
        for earlier, later in zip(before, stuck, strict=True):
            assert not (earlier & ~later).any()
        assert not (stuck[0] & stuck[1]).any()
        count = int(bits_of(stuck[0] | stuck[1]).sum())
        assert_binomial(count, 8 * LENGTH, p)
        assert_binomial(int(bits_of(stuck[0]).sum()), count, 0.5)
        before = stuck


def test_places_of_stuck_bits_are_alike():
    zeros = np.zeros(16 * BLOCK_BYTES, np.uint8)
    where = np.flatnonzero(bits_of(corrupted("stuck:0.07,1", zeros)))
    assert_uniform(np.bincount(where % 65536 // 1024, minlength=64))
    assert_uniform(np.bincount(where % 8, minlength=8))
    assert_uniform(np.bincount(where * 64 // (8 * zeros.size), minlength=64))


def test_a_die_is_the_same_for_every_seed_and_errs_anew_at_each_access():
    data = stored()
    whole = corrupted("stuck:0.01,0.5,1.0,7", data)
    assert np.array_equal(whole, corrupted("stuck:0.01,0.5,1.0,7", data, NoiseKey(99, "a")))
    assert not np.array_equal(whole, corrupted("stuck:0.01,0.5,1.0,8", data))
    first, second = (corrupted("stuck:0.01,0.5,0.25,7", data, NoiseKey(seed, "a")) ^ data for seed in (1, 2))
    stuck = whole ^ data
    assert not ((first | second) & ~stuck).any()
    assert_binomial(int(bits_of(first).sum()), int(bits_of(stuck).sum()), 0.25)
    assert_binomial(int(bits_of(first & second).sum()), int(bits_of(stuck).sum()), 0.0625)


@pytest.mark.parametrize(("spec", "unit", "p"), [("cluster:0.02,2,8", 1, 0.02), ("cluster:0.7,3,5,8", 8, 0.7)])
def test_clusters_hit_a_binomial_number_of_units_with_every_number_of_flips_alike(spec, unit, p):
    channel = channels.make(spec)
    data = stored(8 * BLOCK_BYTES)
    flips = bits_of(data ^ corrupted(spec, data)).reshape(-1, 8 * unit)
    per_unit = flips.sum(axis=1)
    assert_binomial(int((per_unit > 0).sum()), per_unit.size, p)
    counts = np.bincount(per_unit[per_unit > 0], minlength=channel.most + 1)
    assert counts[: channel.least].sum() == 0
    assert counts.size == channel.most + 1
    assert_uniform(counts[channel.least :])
    if unit > 1:
        assert_uniform(flips.sum(axis=0))


def test_equal_parts_of_a_composite_draw_anew():
    data = stored()
    once, twice = corrupted("bsc:0.01", data) ^ data, corrupted("bsc:0.01+bsc:0.01", data) ^ data
    assert_binomial(int(bits_of(twice).sum()), 8 * LENGTH, 2 * 0.01 * 0.99)
    assert_binomial(int(bits_of(once & ~twice).sum()), int(bits_of(once).sum()), 0.01)


def test_a_part_of_a_composite_draws_what_it_draws_alone():
    data = stored()
    alone = corrupted("erasure:4096,0.3,ones", corrupted("bsc:0.01", data))
    assert np.array_equal(corrupted("bsc:0.01 + erasure:4096,0.3,ones", data), alone)
    assert channels.make("bsc:1e+0+bsc:0.5").spec == "bsc:1.0+bsc:0.5"


class SlowStream:
    """SplitMix64 with an increment of its own, in Python's integers."""

    WORD = 2**64 - 1

    def __init__(self, key: int, index: int):
        self.state = self.mix(key ^ self.mix((index + 1) * 0x9E3779B97F4A7C15 & self.WORD))
        self.step = self.mix(self.state + 0xD1B54A32D192ED03 & self.WORD) | 1

    def mix(self, z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & self.WORD
        z = (z ^ z >> 27) * 0x94D049BB133111EB & self.WORD
        return z ^ z >> 31

    def draw(self) -> int:
        self.state = self.state + self.step & self.WORD
        return self.mix(self.state)

    def happens(self, of_2_to_63: int) -> bool:
        return self.draw() >> 1 < of_2_to_63

    def binomial(self, count: int, p: float) -> int:
        thresholds, least = binomial(count, p)
        u = self.draw()
        return least + sum(threshold <= u for threshold in thresholds.tolist())

    def geometric(self, p: float) -> int:
        overflow, *digits = geometric(p).tolist()
        if overflow and self.happens(overflow):
            return 1 << 19
        return sum(self.happens(digit) << j for j, digit in enumerate(digits))

    def places(self, count: int, bits: int) -> list[int]:
        found: dict[int, None] = {}  # in order, and quick to look up
        while len(found) < count:
            r = self.draw()
            for place in (r >> shift & 0xFFFF for shift in (0, 16, 32, 48)):
                if place < bits and place not in found and len(found) < count:
                    found[place] = None
        return list(found)


@pytest.mark.parametrize(("p01", "p10"), [(0.02, 0.02), (0.03, 0.01), (0.001, 0.02)])
def test_independent_flips_agree_with_their_slow_twin(p01, p10):
    channel = channels.make(f"asymmetric:{p01},{p10}" if p01 != p10 else f"bsc:{p01}")
    data = stored(8192 + 500)
    bits = bits_of(data)
    key = int(stream_key(NoiseKey(1, "a"), channel.spec))
    rarer, kept = (0 if p01 < p10 else 1), int(of_2_to_63(min(p01, p10) / max(p01, p10)))
    for part, (begin, size) in enumerate([(0, 65536), (65536, 4000)]):
        stream = SlowStream(key, part)
        places = stream.places(stream.binomial(size, max(p01, p10)), size)
        for place in places if len(places) <= 256 else sorted(places):
            if p01 == p10 or bits[begin + place] != rarer or stream.happens(kept):
                bits[begin + place] ^= 1
    assert np.array_equal(bits_of(corrupted(channel.spec, data)), bits)


def test_bursts_agree_with_their_slow_twin():
    channel = channels.make("burst:0.001,0.02,0.4,0.0003")
    data = stored(BLOCK_BYTES + 3000)
    bits = bits_of(data)
    key = int(stream_key(NoiseKey(1, "a"), channel.spec))
    for block, (begin, stop) in enumerate([(0, 8 * BLOCK_BYTES), (8 * BLOCK_BYTES, bits.size)]):
        stream, at = SlowStream(key, block), begin
        is_bad = stream.happens(int(of_2_to_63(channel.bad_share)))
        while at < stop:
            end = min(stop, at + 1 + stream.geometric(channel.p_leave if is_bad else channel.p_enter))
            p = channel.p_bad if is_bad else channel.p_good
            at += stream.geometric(p)
            while at < end:
                bits[at] ^= 1
                at += 1 + stream.geometric(p)
            at, is_bad = end, not is_bad
    assert np.array_equal(bits_of(corrupted(channel.spec, data)), bits)


@pytest.mark.parametrize(
    ("spec", "pages"),
    [
        ("levelmap:0/1/2/3/4/5/6/7,0.2/0.25/0.2/0.2/0.3/0.2/0.2/0.2,ml,gray,pages", True),
        ("levelmap:0/1/2/3,0.2/0.25/0.2/0.3,ml,3/1/0/2,bits", False),
        ("levelmap:0/1,0.1/3,0.5,binary,bits", False),
        ("levelmap:0/1,2/1,-0.7,binary,bits", False),
    ],
)
def test_level_maps_agree_with_their_slow_twin(spec, pages):
    channel = channels.make(spec)
    blocks = [BLOCK_BYTES, 1001] if channel.cell_bits > 1 else [20_001]  # most cells of one bit are candidates here
    data = stored(sum(blocks))
    result = np.unpackbits(data)
    key = int(stream_key(NoiseKey(1, "a"), channel.spec))
    width, labels = channel.cell_bits, list(channel.labels)
    away = channel.transitions * (1 - np.eye(len(labels)))
    most = float(away.sum(axis=1).max())
    block_parts = math.ceil(math.ceil(8 * BLOCK_BYTES / width) / 65536)
    for block, size_here in enumerate(blocks):
        begin, bits = block * 8 * BLOCK_BYTES, 8 * size_here
        cells = (bits + width - 1) // width
        for part, first in enumerate(range(0, cells, 65536)):
            stream, size = SlowStream(key, block * block_parts + part), min(65536, cells - first)
            places = stream.places(stream.binomial(size, min(most, 1 - most)), size)
            if most > 0.5:
                places = sorted(set(range(size)) - set(places))
            for cell in (first + place for place in places):
                at = [i * cells + cell if pages else cell * width + width - 1 - i for i in range(width)]
                label = sum(int(result[begin + q]) << i for i, q in enumerate(at) if q < bits)
                level, u = labels.index(label), stream.draw() >> 1
                bounds = [int(of_2_to_63(min(1.0, float(x)))) for x in np.cumsum(away[level]) / most]
                read = sum(u >= bound for bound in bounds)
                change = label ^ labels[read] if read < len(labels) else 0
                for i, q in enumerate(at):
                    if q < bits:
                        result[begin + q] ^= change >> i & 1
    assert np.array_equal(np.unpackbits(corrupted(spec, data)), result)


@pytest.mark.parametrize(("p", "ones", "access"), [(0.01, 0.5, 1.0), (0.03, 0.8, 0.3), (1e-6, 0.5, 1.0)])
def test_stuck_bits_agree_with_their_slow_twin(p, ones, access):
    spec = channels.make(f"stuck:{p},{ones},{access}").spec
    data = stored(8192 + 500)
    bits = bits_of(data)
    key, reading = (int(stream_key(NoiseKey(1, "a"), name)) for name in ("stuck", "stuck access"))
    edges = [0.0, *(2.0**e for e in range(-20, 0))]
    last = next(i for i, edge in enumerate(edges[1:]) if p <= edge)
    kept = int(of_2_to_63((p - edges[last]) / (edges[last + 1] - edges[last])))
    for part, (begin, size) in enumerate([(0, 65536), (65536, 4000)]):
        seen = set()
        for shell in range(last + 1):
            stream = SlowStream(key, part * 64 + shell)
            share = (edges[shell + 1] - edges[shell]) / (1 - edges[shell])
            for place in stream.places(stream.binomial(size, share), size):
                is_kept, value = stream.happens(kept) or shell < last, stream.happens(int(of_2_to_63(ones)))
                index = ((part << 16) + place + 1) * 0x9E3779B97F4A7C15 & stream.WORD
                errs = stream.mix(reading ^ stream.mix(index)) >> 1 < int(of_2_to_63(access))
                if place not in seen and is_kept and errs:
                    bits[begin + place] = value
                seen.add(place)
    assert np.array_equal(bits_of(corrupted(spec, data)), bits)


@pytest.mark.parametrize(("p", "least", "most", "unit"), [(0.01, 2, 8, 1), (0.8, 3, 7, 512)])
def test_clusters_agree_with_their_slow_twin(p, least, most, unit):
    spec = channels.make(f"cluster:{p},{least},{most},{unit}").spec
    data = stored(BLOCK_BYTES + 3001)
    bits = np.concatenate([bits_of(data), np.zeros(8 * BLOCK_BYTES, np.uint8)])
    key, units = int(stream_key(NoiseKey(1, "a"), spec)), BLOCK_BYTES // unit
    for block in (0, 1):
        stream = SlowStream(key, block)
        places = stream.places(stream.binomial(units, min(p, 1 - p)), units)
        for place in sorted(set(range(units)) - set(places)) if p > 0.5 else places:
            mask = (1 << (most - least).bit_length()) - 1
            while (more := stream.draw() & mask) > most - least:
                pass
            found: list[int] = []
            while len(found) < least + more:
                r = stream.draw()
                for at in (r >> shift & 8 * unit - 1 for shift in (0, 16, 32, 48)):
                    if at not in found and len(found) < least + more:
                        found.append(at)
            for at in found:
                bits[block * 8 * BLOCK_BYTES + place * 8 * unit + at] ^= 1
    assert np.array_equal(bits_of(corrupted(spec, data)), bits[: 8 * data.size])


def test_runs_of_lost_units_agree_with_their_slow_twin():
    spec, p, run = "erasure:16,0.05,zeros,6.0", 0.05, 6.0
    data = np.ones(2 * BLOCK_BYTES + 100, np.uint8)
    expected = data.copy()
    key = int(stream_key(NoiseKey(1, "a"), spec))
    for group in range(math.ceil(data.size / (16 * 4096))):
        stream, at = SlowStream(key, group), 0
        lost = stream.happens(int(of_2_to_63(p)))
        while at < 4096:
            end = at + 1 + stream.geometric(1 / run if lost else p / (1 - p) / run)
            if lost:
                first = group * 4096
                expected[16 * (first + at) : 16 * (first + min(end, 4096))] = 0
            at, lost = end, not lost
    assert np.array_equal(corrupted(spec, data), expected)


@pytest.mark.slow
@pytest.mark.parametrize("p", [1e-2, 1e-3, 1e-6])
def test_bsc_rate_holds_over_a_gigabit(p):
    data = np.zeros(1 << 27, np.uint8)
    channels.make(f"bsc:{p}").corrupt(data, 0, NoiseKey(5))
    assert_binomial(int(np.bitwise_count(data).sum()), 8 * data.size, p)


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.16, 0.13, 0.11])
def test_level_moves_hold_over_half_a_gigabit(sigma):
    """Moves of every pair of neighbouring levels, down to probabilities of 3e-6."""
    channel = channels.make(f"levelmap:0/1/2/3,{sigma}/{sigma}/{sigma}/{sigma},ml,binary,bits")
    data = np.random.default_rng(8).integers(0, 256, 1 << 26, dtype=np.uint8)
    read = data.copy()
    channel.corrupt(read, 0, NoiseKey(6))
    counts = np.bincount(data.astype(np.uint16) << 8 | read, minlength=1 << 16).reshape(256, 256)
    pairs = np.zeros((4, 4), int)
    for shift in (0, 2, 4, 6):
        level = np.arange(256) >> shift & 3
        for a in range(4):
            for b in range(4):
                pairs[a, b] += counts[level == a][:, level == b].sum()
    for a in range(4):
        for b in range(4):
            if a != b and channel.transitions[a, b] > 1e-9:
                assert_binomial(int(pairs[a, b]), int(pairs[a].sum()), channel.transitions[a, b])
