"""Write bch.json: what galois and bchlib say of binary BCH codes.

Run from the root of the repository, with galois 0.4.11 and bchlib 2.1.3 (some minutes):

    python tests/vectors/make_bch_vectors.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bchlib
import galois
import numpy as np

COMMAND = "python tests/vectors/make_bch_vectors.py"


def bits(array: Any) -> str:
    return "".join(str(int(bit)) for bit in np.ravel(array))


def code_table(n: int) -> list[list[int]]:
    """[k, designed distance] of every code galois can make."""
    table, distance = [], 3
    while distance <= n:
        code = galois.BCH(n, d=distance)
        code = galois.BCH(n, code.k)
        table.append([code.k, code.d])
        distance = code.d + 2
    return table


def some_codes(n: int, messages: list[int]) -> list[list[int]]:
    """[k, designed distance] of a few codes."""
    return [[k, galois.BCH(n, k).d] for k in messages]


def galois_words(n: int, k: int, message_bits: int, count: int, random: np.random.Generator) -> dict[str, Any]:
    """Shortened words with 0 .. t + 3 flips, and what galois makes of them."""
    code = galois.BCH(n, k)
    length = n - k + message_bits
    message = random.integers(0, 2, (count, message_bits), dtype=np.uint8)
    codewords = np.array(code.encode(message))
    received = codewords.copy()
    for i in range(count):
        flips = random.choice(length, min(i % (code.t + 4), length), replace=False)
        received[i, flips] ^= 1
    decoded, errors = code.decode(received, output="codeword", errors=True)
    return {
        "n": n,
        "k": k,
        "message_bits": message_bits,
        "codewords": [bits(word) for word in codewords],
        "received": [bits(word) for word in received],
        "decoded": [bits(word) for word in np.array(decoded)],
        "flips": [int(count) for count in errors],
    }


def bchlib_words(m: int, t: int, message_bytes: int, count: int, random: np.random.Generator) -> dict[str, Any]:
    code = bchlib.BCH(t, m=m)
    messages = [random.bytes(message_bytes) for _ in range(count)]
    return {
        "m": m,
        "t": t,
        "polynomial": code.prim_poly,
        "parity_bits": code.ecc_bits,
        "words": [[message.hex(), bytes(code.encode(message)).hex()] for message in messages],
    }


def most(m: int) -> int:
    """bchlib wants m * t < 2^m and t <= 64."""
    return min(64, ((1 << m) - 1) // m) + 1


def main() -> None:
    random = np.random.default_rng(1959)
    shapes = [(15, 11, 11), (15, 7, 7), (15, 5, 5), (15, 5, 3), (31, 16, 16), (31, 11, 6), (63, 45, 45), (63, 24, 24)]
    shapes += [(127, 92, 92), (127, 64, 20), (255, 239, 239), (255, 131, 131)]
    vectors = {
        "galois": {
            "source": f"galois {galois.__version__}, galois.BCH with its default field",
            "command": COMMAND,
            "polynomials": {m: int(galois.matlab_primitive_poly(2, m)) for m in range(3, 17)},
            "field_of_code": {
                m: int(galois.BCH((1 << m) - 1, d=3).extension_field.irreducible_poly) for m in range(3, 11)
            },
            "codes": {(1 << m) - 1: code_table((1 << m) - 1) for m in range(3, 9)},
            "some_codes": {511: some_codes(511, [493, 250, 28]), 1023: some_codes(1023, [838, 513, 11])},
            "words": [galois_words(*shape, count=40, random=random) for shape in shapes],
        },
        "bchlib": {
            "source": "bchlib 2.1.3 (the Linux kernel's lib/bch.c), default polynomial, most significant bit first",
            "command": COMMAND,
            "parity_bits": {m: [bchlib.BCH(t, m=m).ecc_bits for t in range(1, most(m))] for m in range(5, 15)},
            "words": [
                bchlib_words(13, 8, 512, 2, random),
                bchlib_words(13, 64, 840, 2, random),
                bchlib_words(13, 5, 1, 2, random),
                bchlib_words(10, 8, 64, 3, random),
                bchlib_words(10, 57, 64, 3, random),
                bchlib_words(8, 2, 29, 3, random),
            ],
        },
    }
    Path(__file__).with_name("bch.json").write_text(json.dumps(vectors, indent=1) + "\n")


if __name__ == "__main__":
    main()
