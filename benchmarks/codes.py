"""BCH codes: encoding, the check by remainders, decoding, on rows of lanes, one thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.machine import Limits
from benchmarks.measure import ROUNDS, Contender, Row, Timing, interleaved, speed_row
from ckptguard import codes
from ckptguard.channels import make as make_channel
from ckptguard.channels.base import NoiseKey
from ckptguard.codes.lanes import LaneCode

GROUP = "BCH"
TOP_NINE = 0xFF800000FF800000
LONG = "bch:8191,6722"
SHORT = ("bch:1023,923", "bch:1023,838", "bch:1023,828", "bch:511,421", "bch:511,340")
INFORMATION = 8 << 20  # bytes of information per call
MCELIECE = "Classic McEliece's kernels, t = 128"
DECODE_GOALS = {1e-4: (1.2, 60.0), 1e-3: (0.5, 70.0), 1e-2: (0.2, 60.0)}


class Words:
    """Full codewords as rows of 512 lanes, as a unit has them.

    Attributes:
        information: bytes of it.
    """

    def __init__(self, spec: str, information: int = INFORMATION) -> None:
        code = codes.make(spec)
        assert isinstance(code, LaneCode)
        self.code = code
        batch = 64 * code.k
        rng = np.random.default_rng(3)
        count = max(1, information // batch)
        self.messages = [rng.integers(0, 1 << 64, (code.k, 8), np.uint64) for _ in range(count)]
        self.parities = [np.ascontiguousarray(code.encode_rows(message)) for message in self.messages]
        self.information = batch * count

    def encode(self, _: None) -> None:
        """Encode all of them."""
        for message in self.messages:
            self.code.encode_rows(message)

    def check(self, _: None) -> None:
        """Check all of them."""
        for message, parity in zip(self.messages, self.parities, strict=True):
            self.code.check_rows(message, parity)

    def damaged(self, p: float) -> Any:
        """A function that gives fresh copies, flipped at rate p."""
        channel = make_channel(f"bsc:{p!r}")
        pairs = []
        for number, (message, parity) in enumerate(zip(self.messages, self.parities, strict=True)):
            pair = message.copy(), parity.copy()
            for place, rows in enumerate(pair):
                channel.corrupt(rows.reshape(-1).view(np.uint8), 0, NoiseKey(7, f"{number} {place}"))
            pairs.append(pair)
        return lambda: [(message.copy(), parity.copy()) for message, parity in pairs]

    def decode(self, pairs: Any) -> None:
        """Decode in place."""
        for message, parity in pairs:
            self.code.decode_rows(message, parity)

    def failures(self, p: float) -> int:
        """Codewords that are not what they were after decoding."""
        pairs = self.damaged(p)()
        self.decode(pairs)
        wrong = 0
        for (message, _), clean in zip(pairs, self.messages, strict=True):
            lanes = np.bitwise_or.reduce(message ^ clean, axis=0)
            wrong += int(np.bitwise_count(lanes).sum())
        return wrong


def rows(limits: Limits, rounds: int = ROUNDS) -> Iterator[Row]:
    """All rows of the group."""
    yield from _long(limits, rounds)
    yield from _short(limits, rounds)
    yield from _units(rounds)


def _long(limits: Limits, rounds: int) -> Iterator[Row]:
    words = Words(LONG)
    code = words.code
    peer = peers.bchlib(13, code.t)
    theirs = peers.BchlibWords(peer[1], code.k // 8, 128) if peer else None
    galois = _Galois(code.n, code.k)
    ours = [
        Contender("encode", words.encode, words.information),
        Contender("check", words.check, words.information),
    ]
    if theirs and peer:
        ours.append(Contender("bchlib encode", theirs.encode, theirs.message_bytes))
        ours.append(Contender("bchlib check", theirs.check, theirs.message_bytes))
    ours += galois.contenders("encode", "check")
    timings = interleaved(ours, rounds)
    products = _products(code)
    carryless = f"{products:.0f} carry-less multiplications of 8 lanes, one a cycle"
    limit = limits.cycles(products, code.k / 8)
    for kind, galois_goal in (("encode", 5000.0), ("check", None)):
        yield speed_row(
            GROUP,
            f"BCH({code.n},{code.k}) {kind}",
            timings[kind],
            2.5,
            _peers(timings, kind, peer, 12.0, galois_goal),
            bound=f"{carryless}: {limit}",
        )
    mceliece = peers.mceliece()
    for p, (goal, ratio) in DECODE_GOALS.items():
        one = [Contender("decode", words.decode, words.information, words.damaged(p))]
        if theirs:
            few = theirs.damaged(p)
            one.append(Contender("bchlib decode", theirs.decode, theirs.message_bytes, few))
        if mceliece:
            one.append(Contender(MCELIECE, lambda _: mceliece(200), 200 * code.k / 8))
        if p == 1e-3:
            one += galois.contenders(f"decode {p:g}")
        timings = interleaved(one, rounds)
        named = {key.replace(f"decode {p:g}", "decode"): value for key, value in timings.items()}
        lost = words.failures(p)
        yield speed_row(
            GROUP,
            f"BCH({code.n},{code.k}) decode at {p:g}",
            timings["decode"],
            goal,
            _peers(named, "decode", peer, ratio, None)
            + ([(timings[MCELIECE], 8.0 if p == 1e-2 else None)] if mceliece else []),
            bound=_decode_bound(limits, code, p),
            note=f"{lost} of {len(words.messages) * 512} codewords beyond t = {code.t}" if lost else "",
        )


def _products(code: LaneCode) -> float:
    """Multiplications of 8 lanes in a remainder: twice nine for four words of quotient and for every four they meet."""
    return code.k / 256 * 18 * ((code.n - code.k) // 256 + 2) / 8


_STAGES = (
    (2, 620, "remainder 410, eight syndromes 210"),
    (20, 2480, "remainder 410, syndromes 550, Berlekamp-Massey and short transform 1520"),
    (200, 5380, "remainder 410, syndromes 550, Berlekamp-Massey 2300, additive transform 1800, flips 300"),
)
"""(fewer flips a word than, cycles a word, why): instruction counts with 512-bit vectors, carry-less multiply, GFNI."""


def _decode_bound(limits: Limits, code: LaneCode, p: float) -> str:
    cycles, why = next((cycles, why) for flips, cycles, why in _STAGES if code.n * p < flips)
    return f"{why} cycles a word: {limits.cycles(cycles, code.k / 8)}"


def _peers(
    timings: dict[str, Timing], kind: str, peer: tuple[str, Any] | None, bchlib: float | None, galois: float | None
) -> list[tuple[Timing, float | None]]:
    found = []
    for name, shown, goal in (("bchlib", peer[0] if peer else "", bchlib), ("galois", "galois", galois)):
        key = f"{name} {kind}"
        if key in timings:
            timing = timings[key]
            found.append((Timing(shown, timing.amount, timing.seconds), goal))
    return found


def _short(limits: Limits, rounds: int) -> Iterator[Row]:
    for spec in SHORT:
        words = Words(spec, INFORMATION // 4)
        code = words.code
        contenders = [Contender("decode", words.decode, words.information, words.damaged(1e-3))]
        peer = peers.bchlib(code.n.bit_length(), code.t)
        if peer:
            theirs = peers.BchlibWords(peer[1], code.k // 8, 256)
            contenders.append(Contender("bchlib decode", theirs.decode, theirs.message_bytes, theirs.damaged(1e-3)))
        timings = interleaved(contenders, rounds)
        products = _products(code)
        yield speed_row(
            "short BCH",
            f"BCH({code.n},{code.k}) t = {code.t}, decode at 1e-3",
            timings["decode"],
            0.5,
            _peers(timings, "decode", peer, 10.0, None),
            bound=f"{code.n * 1e-3:.1f} flips a word; remainders alone, {products:.0f} carry-less multiplications "
            f"a word in 8 lanes: {limits.cycles(products, code.k / 8)}",
        )


def _units(rounds: int) -> list[Row]:
    """Whole units: stream words in, parity out; with the gather of the masked planes and the packing of parity."""
    code = codes.make(LONG)
    words = 512 * code.unit_tiles(18)
    rng = np.random.default_rng(4)
    units = [rng.integers(0, 1 << 64, words, np.uint64) for _ in range(8)]
    parities = [code.encode(unit, TOP_NINE) for unit in units]
    amount = len(units) * words * 18 // 8

    def encode(_: None) -> None:
        for unit in units:
            code.encode(unit, TOP_NINE)

    def check(_: None) -> None:
        for unit, parity in zip(units, parities, strict=True):
            code.check(unit, TOP_NINE, parity)

    def decode(_: None) -> None:
        for unit, parity in zip(units, parities, strict=True):
            code.decode(unit, TOP_NINE, parity)

    timings = interleaved(
        [Contender("encode", encode, amount), Contender("check", check, amount), Contender("decode", decode, amount)],
        rounds,
    )
    return [
        speed_row(
            GROUP,
            f"BCH(8191,6722) {kind} of whole units, top 9 bits of float32, gather included"
            + (" (clean)" if kind == "decode" else ""),
            timing,
            bound="the kernel plus the gather of the planes, both in L2",
        )
        for kind, timing in timings.items()
    ]


class _Galois:
    """galois on a batch of codewords; its constructor takes more than ten seconds."""

    def __init__(self, n: int, k: int, batch: int = 4) -> None:
        self.amount = batch * k // 8
        self.code: Any = None
        galois = peers.module("galois", "BCH(8191,6722)")
        if galois:
            self.code = galois.BCH(n, k)
            rng = np.random.default_rng(6)
            self.message = galois.GF2(rng.integers(0, 2, (batch, k), np.uint8))
            self.word = self.code.encode(self.message)
            flips = (rng.random(self.word.shape) < 1e-3).astype(np.uint8)
            self.bad = self.word + galois.GF2(flips)

    def contenders(self, *kinds: str) -> list[Contender]:
        """Those of `encode`, `check`, `decode 0.001` that are asked for."""
        if self.code is None:
            return []
        runs = {
            "encode": lambda _: self.code.encode(self.message),
            "check": lambda _: self.code.detect(self.word),
            "decode 0.001": lambda _: self.code.decode(self.bad),
        }
        return [Contender(f"galois {kind}", runs[kind], self.amount) for kind in kinds]
