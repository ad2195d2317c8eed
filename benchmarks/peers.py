"""Other programs that do the same work. Those that are not there are named and left out."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BCHLIB_FOLDER = "CKPTGUARD_BCHLIB"
"""Environment variable: a folder with a bchlib that was built for t up to 160 (docs/benchmarks.md says how)."""

MCELIECE_FOLDER = "CKPTGUARD_MCELIECE"
"""Environment variable: the folder crypto_kem/mceliece8192128/avx2 of PQClean's sources (docs/benchmarks.md)."""

missing: dict[str, str] = {}
"""Peers that were looked for in vain, and what they would have been needed for."""


def module(name: str, purpose: str) -> Any:
    """A Python module, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        missing[name] = f"{purpose}; not installed"
        return None


def program(name: str, purpose: str) -> str | None:
    """The path of a program, or None."""
    path = shutil.which(name)
    if path is None:
        missing[name] = f"{purpose}; not installed"
    return path


def bchlib(m: int, t: int) -> tuple[str, Any] | None:
    """(name, codec) of bchlib: as released where its limit of t = 64 allows, else rebuilt."""
    folder = os.environ.get(BCHLIB_FOLDER)
    if folder:
        libraries = sorted(Path(folder).glob("bchlib*.so"))
        if not libraries:
            raise SystemExit(f"{BCHLIB_FOLDER}={folder}: there is no bchlib*.so in it")
        spec = importlib.util.spec_from_file_location("bchlib", libraries[0])
        assert spec is not None
        assert spec.loader is not None
        rebuilt = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(rebuilt)
        return "bchlib rebuilt", rebuilt.BCH(t, m=m)
    if t > 64:
        missing["bchlib rebuilt"] = f"BCH with t > 64; {BCHLIB_FOLDER} names no folder with one"
        return None
    stock = module("bchlib", f"BCH, m = {m}, t = {t}")
    return ("bchlib", stock.BCH(t, m=m)) if stock else None


def mceliece() -> Callable[[int], None] | None:
    """Decoding so many words by the kernels of Classic McEliece (m = 13, t = 128), compiled here; or None."""
    folder, compiler = os.environ.get(MCELIECE_FOLDER), shutil.which("cc")
    if not folder or compiler is None:
        missing["Classic McEliece"] = f"decoding; {MCELIECE_FOLDER} names no folder of its sources, or there is no cc"
        return None
    sources = Path(folder)
    wanted = [*sources.glob("*_asm.S"), *(sources / name for name in _MCELIECE if (sources / name).exists())]
    options = ["-O3", "-march=native", "-fwrapv", "-fPIC", "-shared", f"-I{sources}", f"-I{sources}/../../../common"]
    driver = Path(__file__).with_name("mceliece.c")
    with tempfile.TemporaryDirectory(prefix="ckptguard-benchmark-") as builds:
        library = Path(builds, "mceliece.so")
        command = [compiler, *options, "-w", "-o", library, driver, *wanted]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        decode: Callable[[int], None] = ctypes.CDLL(str(library)).decode
    return decode


_MCELIECE = ("bm.c", "fft.c", "fft_tr.c", "gf.c", "vec128.c", "vec256.c", "consts.S")


class BchlibWords:
    """Codewords for bchlib, one call per codeword: messages of whole bytes, damaged at a rate."""

    def __init__(self, codec: Any, message_bytes: int, count: int, seed: int = 5) -> None:
        self.codec = codec
        rng = np.random.default_rng(seed)
        self.clean = [
            (message, bytes(codec.encode(message))) for message in (rng.bytes(message_bytes) for _ in range(count))
        ]
        self.message_bytes = message_bytes * count
        self._rng = rng

    def damaged(self, p: float) -> Callable[[], list[tuple[bytearray, bytearray]]]:
        """Fresh copies with bits flipped at rate p, the same ones at each call."""
        words = []
        for message, parity in self.clean:
            whole = np.frombuffer(message + parity, np.uint8).copy()
            bits = np.unpackbits(whole)
            used = 8 * len(message) + self.codec.ecc_bits
            bits[:used] ^= self._rng.random(used) < p
            whole = np.packbits(bits).tobytes()
            words.append((whole[: len(message)], whole[len(message) :]))
        return lambda: [(bytearray(message), bytearray(parity)) for message, parity in words]

    def encode(self, _: None) -> None:
        """Encode every message."""
        for message, _parity in self.clean:
            self.codec.encode(message)

    def check(self, _: None) -> None:
        """Decode words without errors."""
        for message, parity in self.clean:
            self.codec.decode(message, parity)

    def decode(self, words: list[tuple[bytearray, bytearray]]) -> None:
        """Decode and correct, in place."""
        for message, parity in words:
            if self.codec.decode(message, parity) > 0:
                self.codec.correct(message, parity)

    def corrected(self, words: list[tuple[bytearray, bytearray]]) -> int:
        """How many messages are what they were."""
        return sum(bytes(message) == clean for (message, _), (clean, _) in zip(words, self.clean, strict=True))
