"""Outliers: which words they are, how they are stored, and what restorers make of a model that has some."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import plain_reader
import pytest
from containers import Anatomy, flip, read_safetensors, safetensors_bytes
from reference_reader import read_set

from ckptguard.campaign.encodings import NativeWords
from ckptguard.campaign.faults import make
from ckptguard.dtypes import DTYPES
from ckptguard.errors import UsageError
from ckptguard.evaluate.session import Patch
from ckptguard.masks import MaskSet, Rule
from ckptguard.outliers import ENTRY_BYTES, FEW, SHARE, Outliers, misread, most_entries, outlier_fields, without
from ckptguard.pipeline.check import check
from ckptguard.pipeline.inspect import inspect
from ckptguard.pipeline.protect import protect
from ckptguard.pipeline.restore import restore
from ckptguard.posterior import FIELDS, Restorer, Spread, field_counts, means
from ckptguard.report.containers import summary_text
from ckptguard.search.damage import Rates
from ckptguard.search.restoring import Restoring

PLACES = [3, 400, 401, 7999]
FAR = (1.2, -1.5, 1.9, 1.0)
RECORD = {"kind": "posterior", "rates": [{"tensors": ["*"], "of_0": 0.01, "of_1": 0.01}]}


def words_of(values, name="F32"):
    if name == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    return values.astype("<f4" if name == "F32" else "<f2").view("<u4" if name == "F32" else "<u2")


def values_of(words, name="F32"):
    wide = words.astype("<u4") << 16 if name == "BF16" else words
    return wide.view("<f2" if name == "F16" else "<f4").astype(float)


def weights(count=8000, far=FAR, seed=0):
    values = np.random.default_rng(seed).normal(0, 0.05, count)
    values[PLACES[: len(far)]] = far
    return values


def fields_of(words, name="F32", rate=1e-2):
    return outlier_fields(DTYPES[name], field_counts(DTYPES[name], words), rate, rate)


@pytest.mark.parametrize("name", list(FIELDS))
def test_words_of_a_hundred_times_the_rms_are_outliers_and_no_others(name):
    words = words_of(weights(), name)
    found = Outliers.of(DTYPES[name], words, fields_of(words, name))
    assert found.positions.tolist() == PLACES
    assert found.uppers.tolist() == [int(words[place]) >> (16 if name == "F32" else 0) for place in PLACES]
    plain = words_of(weights(far=()), name)
    assert not fields_of(plain, name).any()
    assert not fields_of(words, name, rate=0.0).any()


def test_misread_fields_are_those_that_enumeration_finds():
    words = words_of(np.random.default_rng(2).standard_t(2, 5000) * 0.01, "F16")
    counts = field_counts(DTYPES["F16"], words)
    spread = Spread.of_counts(DTYPES["F16"], counts)
    used, expected = counts.sum(0), []
    magnitudes = [0.0] + [2.0 ** (field - 15) for field in range(1, 31)] + [0.0]
    rms = (sum(n * m * m for n, m in zip(used.tolist(), magnitudes, strict=True)) / 5000) ** 0.5
    for read in range(32):
        chances = [0.01 ** (was ^ read).bit_count() * 0.99 ** (5 - (was ^ read).bit_count()) for was in range(32)]
        total = sum(w * c for w, c in zip(spread.weights.tolist(), chances, strict=True))
        mean = sum(w * c * m for w, c, m in zip(spread.weights.tolist(), chances, magnitudes, strict=True)) / total
        expected.append(bool(used[read]) and mean < 0.7 * magnitudes[read] and magnitudes[read] > 8 * rms)
    found = misread(DTYPES["F16"], used, means(spread, "0" * 16, 0.01, 0.01))
    assert found.tolist() == expected
    assert found.any()


def test_of_too_many_outliers_the_largest_are_carried():
    values = weights(20_000, (), 3)
    values[:30], values[100:110] = 0.6, 1.5
    assert 40 > 20_000 // SHARE > FEW
    assert np.flatnonzero(fields_of(words_of(values))).tolist() == [127]  # of 1.5; those of 0.6 are one too many
    values[:2] = 0.05
    assert np.flatnonzero(fields_of(words_of(values))).tolist() == [126, 127]


def test_without_outliers_an_undamaged_model_is_read_wrong_and_with_them_right():
    words = words_of(weights())
    counts, fields = field_counts(DTYPES["F32"], words), fields_of(words)
    bare = Restorer.of(Spread.of_counts(DTYPES["F32"], counts), "0" * 32, 1e-2, 1e-2).apply(words)
    assert (np.abs(values_of(bare)[PLACES]) < 0.4 * np.abs(values_of(words)[PLACES])).all()
    read = Restorer.of(Spread.of_counts(DTYPES["F32"], without(counts, fields)), "0" * 32, 1e-2, 1e-2).apply(words)
    Outliers.of(DTYPES["F32"], words, fields).put(DTYPES["F32"], read, words)
    assert (read[PLACES] == words[PLACES]).all()


def test_entries_are_gaps_and_upper_bits_and_go_on_over_long_gaps():
    positions, uppers = np.array([0, 5, 70_000, 9_000_000_000]), np.array([0x3F80, 1, 0xC000, 2], "<u2")
    found = Outliers(positions, uppers)
    data = found.pack().tobytes()
    gone = b"\xff\xff\xff\xff\0\0"
    left = (9_000_000_000 - 70_000 - 2 * (2**32 - 1)).to_bytes(4, "little")
    assert data[:18] == b"\0\0\0\0\x80\x3f" + b"\5\0\0\0\1\0" + (69_995).to_bytes(4, "little") + b"\0\xc0"
    assert data[18:] == gone + gone + left + b"\2\0"
    assert found.entries * ENTRY_BYTES == len(data)
    back = Outliers.unpack(DTYPES["F32"], np.frombuffer(data, np.uint8), 1 << 40)
    assert (back.positions.tolist(), back.uppers.tolist()) == (positions.tolist(), uppers.tolist())
    assert not Outliers(positions[:0], uppers[:0]).pack().size
    assert most_entries(10) == 10
    assert most_entries(2**33) == 2**24 + 2


def test_entries_that_make_no_sense_mean_nothing():
    rows = [(1, 0x3F80), (2, 0x7F80), (0, 0xFFFF), (2, 0x4000), (10, 0x3F80)]  # 2: infinity and NaN; 15 is beyond
    data = np.frombuffer(np.array(rows, [("gap", "<u4"), ("upper", "<u2")]).tobytes(), np.uint8)
    found = Outliers.unpack(DTYPES["F32"], data, 15)
    assert found.positions.tolist() == [1, 5]
    for cut in itertools.pairwise((0, 1, 5, 6, 15)):
        words = np.zeros(cut[1] - cut[0], "<u4")
        found.put(DTYPES["F32"], words, words.copy(), cut[0])
        whole = np.array([0, 0x3F800000, 0, 0, 0, 0x40000000] + 9 * [0], "<u4")
        assert (words == whole[slice(*cut)]).all()
    with pytest.raises(UsageError, match="no reading of"):
        found.put(DTYPES["F32"], np.zeros(3, "<u4"), np.zeros(4, "<u4"))


@pytest.mark.parametrize("name", list(FIELDS))
def test_trials_put_outliers_back_and_keep_their_lower_bits_as_read(name):
    dtype, words = DTYPES[name], words_of(weights(), name)
    encoding = NativeWords(dtype, words, dtype.bits, dtype, "native")
    rates = {"w": Rates.of(make("bsc:0.01"))}
    found = Restoring({"w": encoding}, {"w": (8000,)}, {"w": "0" * dtype.bits}, rates)
    elements = np.array([3, 10, 7999])
    flips = np.array([1 << (dtype.bits - 2) | 1, 1, 1 << (dtype.bits - 1) | 2], words.dtype)
    patch = found.restore({"w": Patch(elements, words[elements] ^ flips)})["w"]
    after = words.copy()
    after[patch.elements] = patch.words
    below = flips & words.dtype.type(0xFFFF if name == "F32" else 0)
    assert (after[[3, 7999]] == words[[3, 7999]] ^ below[[0, 2]]).all()
    assert (after[[400, 401]] == words[[400, 401]]).all()


def made(folder: Path, names=tuple(FIELDS), code="bch:1023,513", **more) -> Path:
    content = {name: (name, (80, 100), words_of(weights(seed=1), name).tobytes()) for name in names}
    (folder / "m.safetensors").write_bytes(safetensors_bytes(content))
    masks = MaskSet((Rule(("*",), "top:3"),), {"restorer": RECORD, "row_sums": ["BF16"]})
    return protect(folder / "m.safetensors", folder / "m.ckg", **({"masks": masks, "code": code} | more)).path


def worn(container: Path, rate: float, seed: int, parts=("tensor",)) -> Path:
    anatomy = Anatomy.of(container.read_bytes())
    data, begin = bytearray(container.read_bytes()), anatomy.superblock.payload_offset
    for part in anatomy.record("PLAN")["parts"]:
        if part["kind"] in parts:
            data[begin : begin + part["stored"]] = flip(bytes(data[begin : begin + part["stored"]]), rate, seed)
        begin += part["stored"]
    (container.parent / "worn.ckg").write_bytes(data)
    return container.parent / "worn.ckg"


def test_containers_carry_outliers_and_say_so(tmp_path):
    container = made(tmp_path)
    summary = inspect(container)
    assert {row.name: row.outliers for row in summary.tensors if row.kind == "tensor"} == dict.fromkeys(FIELDS, 4)
    assert (summary.shards[0].sum_bytes, summary.shards[0].outlier_bytes) == (80, 3 * 4 * 6)
    lines = [line.split(maxsplit=2) for line in summary_text(summary).splitlines()]
    assert ["row", "sums", "of 1 tensor, 80 B of the payload"] in lines
    assert ["outliers", "12,", "72 B"] in lines
    report = restore(container, tmp_path / "out")
    assert report.exact
    original = (tmp_path / "m.safetensors").read_bytes()
    assert (tmp_path / "out").read_bytes() == original
    assert read_set({"m.ckg": container.read_bytes()}, {}) == {"m.safetensors": original}
    assert plain_reader.read(container.read_bytes()) == {"m.safetensors": original}


def test_a_reader_written_from_the_format_alone_puts_outliers_where_the_product_does(tmp_path):
    container = made(tmp_path)
    for seed in range(3):
        damaged = worn(container, 1e-2, seed, ("tensor", "extra"))
        restore(damaged, tmp_path / "out", overwrite=True)
        content = (tmp_path / "out").read_bytes()
        assert plain_reader.read(damaged.read_bytes(), estimate=True) == {"m.safetensors": content}
        for name in ("F16", "F32"):
            found = values_of(np.frombuffer(read_safetensors(content)[name], "<u2" if name == "F16" else "<u4"), name)
            np.testing.assert_allclose(found[PLACES], FAR, rtol=2**-7)


def test_outliers_that_are_lost_are_not_used_and_that_is_told(tmp_path):
    container = made(tmp_path, ("F32",), code="secded:72,64")
    damaged = worn(container, 0.2, 1, ("extra",))
    assert check(damaged).verdict == "uncorrectable"
    path = worn(damaged, 1e-3, 2)
    report = restore(path, tmp_path / "out")
    (row,) = (tensor for tensor in report.tensors if tensor.name == "F32")
    assert row.pieces_without_extra == row.damaged_pieces == 1
    found = values_of(np.frombuffer(read_safetensors((tmp_path / "out").read_bytes())["F32"], "<u4"))
    assert (np.abs(found[PLACES]) < 0.5).all()
    whole = restore(worn(container, 1e-3, 2), tmp_path / "out", overwrite=True)
    (row,) = (tensor for tensor in whole.tensors if tensor.name == "F32")
    assert row.pieces_without_extra == 0 < row.damaged_pieces


def test_containers_written_to_mislead_give_finite_numbers(tmp_path, monkeypatch):
    generator = np.random.default_rng(4)

    def lie(self):
        entries = np.zeros(self.entries, [("gap", "<u4"), ("upper", "<u2")])
        entries["gap"] = generator.integers(0, 1 << int(generator.integers(1, 33)), self.entries)
        entries["upper"] = generator.integers(0, 1 << 16, self.entries) | generator.choice([0, 0x7F80, 0xFFFF])
        return entries.view(np.uint8)

    monkeypatch.setattr(Outliers, "pack", lie)
    for _ in range(20):
        restore(worn(made(tmp_path, overwrite=True), 1e-2, 5), tmp_path / "out", overwrite=True)
        for name, data in read_safetensors((tmp_path / "out").read_bytes()).items():
            assert np.isfinite(values_of(np.frombuffer(data, "<u4" if name == "F32" else "<u2"), name)).all()


def test_a_checkpoint_without_outliers_carries_nothing_extra(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(
        safetensors_bytes({"w": ("F32", (80, 100), words_of(weights(far=())).tobytes())})
    )
    masks = MaskSet((Rule(("*",), "top:3"),), {"restorer": json.loads(json.dumps(RECORD))})
    container = protect(tmp_path / "m.safetensors", tmp_path / "m.ckg", masks=masks).path
    kinds = [part["kind"] for part in Anatomy.of(container.read_bytes()).record("PLAN")["parts"]]
    assert kinds == ["header", "tensor"]
