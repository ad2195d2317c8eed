"""Speed of the BCH kernels in thread CPU time, next to bchlib in the same run.

    python benchmarks/bch_speed.py [n,k] [repetitions]

MB/s and GB/s count information bits. bchlib's published wheel stops at t = 64, so it runs (8191, 7358) there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import bchlib
import numpy as np

from ckptguard.kernels import algebra, bch


def best(function: Callable[[], object], repetitions: int) -> tuple[float, float]:
    """(median, least) seconds of CPU time of this thread."""
    times = []
    for _ in range(repetitions):
        start = time.thread_time_ns()
        function()
        times.append((time.thread_time_ns() - start) / 1e9)
    return sorted(times)[len(times) // 2], min(times)


def report(label: str, message_bytes: float, seconds: tuple[float, float]) -> None:
    median, least = (message_bytes / duration / 1e6 for duration in seconds)
    print(f"{label:34s} median {median:8.1f} MB/s   best {least:8.1f}")


def own(n: int, k: int, repetitions: int) -> None:
    m, t = n.bit_length(), algebra.codes(n.bit_length())[k]
    random = np.random.default_rng(1)
    tables = bch.bch_tables(m, t)
    message = random.integers(0, 2**64, (k, 8), dtype=np.uint64)
    parity = bch.encode(tables, message)
    size = 512 * k / 8
    report(f"bch:{n},{k} encode", size, best(lambda: bch.encode(tables, message), repetitions))
    report(f"bch:{n},{k} check", size, best(lambda: bch.check(tables, message, parity), repetitions))
    for rate in (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 5e-3, 1e-2):
        packed = np.packbits(random.random((n, 512)) < rate, axis=1, bitorder="little").view(np.uint64)
        times = []
        for _ in range(repetitions + 1):
            received, check = message ^ packed[:k], parity ^ packed[k:]
            times.append(best(lambda a=received, b=check: bch.decode(tables, a, b), 1)[0])
        times = sorted(times[1:])
        report(f"bch:{n},{k} decode at {rate:g}", size, (times[len(times) // 2], times[0]))


def reference(m: int, t: int, repetitions: int) -> None:
    code = bchlib.BCH(t, m=m)
    random = np.random.default_rng(2)
    size = ((1 << m) - 1 - code.ecc_bits) // 8
    data = [bytearray(random.bytes(size)) for _ in range(8)]
    parity = [bytearray(code.encode(bytes(word))) for word in data]
    report(
        f"bchlib m={m} t={t} encode", 8 * size, best(lambda: [code.encode(bytes(word)) for word in data], repetitions)
    )
    for rate in (1e-4, 1e-3, min(1e-2, 0.6 * t / (1 << m))):
        received = []
        for word, check in zip(data, parity, strict=True):
            both = np.frombuffer(bytes(word + check), np.uint8)
            flips = np.packbits(random.random(8 * len(both)) < rate)
            flips[-1] = 0
            damaged = bytearray((both ^ flips).tobytes())
            received.append((damaged[:size], damaged[size:]))
        seconds = best(lambda words=received: [code.decode(a, b) for a, b in words], repetitions)
        report(f"bchlib m={m} t={t} decode at {rate:.2g}", 8 * size, seconds)


if __name__ == "__main__":
    n, k = map(int, sys.argv[1].split(",")) if len(sys.argv) > 1 else (8191, 6722)
    repetitions = int(sys.argv[2]) if len(sys.argv) > 2 else 15
    own(n, k, repetitions)
    reference(n.bit_length(), min(64, algebra.codes(n.bit_length())[k]), repetitions)
