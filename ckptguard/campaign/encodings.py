"""Stored words of a tensor in memory: its own, fixed-point numbers, or a narrower floating-point type."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard import representations
from ckptguard.campaign.subject import SubjectTensor
from ckptguard.dtypes import DTYPES, DType
from ckptguard.errors import CheckpointError, SpecError
from ckptguard.representations import FixedPoint
from ckptguard.representations.fixed import to_bfloat16
from ckptguard.spec import Spec, look_up

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.unsignedinteger[Any]]
Floats = npt.NDArray[np.float64]

CAST = "cast"
CASTS = {"bfloat16": "BF16", "float16": "F16"}
"""What `cast:NAME` stores the words of wider floating-point tensors as; in campaigns only."""

_FLOATS = ("F64", "F32", "F16", "BF16", "C64")
_FIELDS = {
    "F64": (1, 11),
    "F32": (1, 8),
    "C64": (1, 8),
    "F16": (1, 5),
    "BF16": (1, 8),
    "F8_E5M2": (1, 5),
    "F8_E4M3": (1, 4),
    "F8_E5M2FNUZ": (1, 5),
    "F8_E4M3FNUZ": (1, 4),
    "F8_E8M0": (0, 8),
    "I8": (1, 0),
    "I16": (1, 0),
    "I32": (1, 0),
    "I64": (1, 0),
    "U8": (0, 0),
    "U16": (0, 0),
    "U32": (0, 0),
    "U64": (0, 0),
    "BOOL": (0, 0),
}
"""Bits of the sign and of the exponent; the rest is the fraction. Bytes of packed 4- and 6-bit floats have none."""

_INFINITE = {
    "F64": 0x7FF << 52,
    "F32": 0xFF << 23,
    "C64": 0xFF << 23,
    "F16": 0x1F << 10,
    "BF16": 0xFF << 7,
    "F8_E5M2": 0x7C,
}
"""By sign-and-magnitude dtype, the word of infinity: magnitudes from there on are not finite."""

_NOT_A_NUMBER = {"F8_E4M3": (0x7F, 0xFF), "F8_E4M3FNUZ": (0x80,), "F8_E5M2FNUZ": (0x80,), "F8_E8M0": (0xFF,)}
"""By dtype without infinities, the words that are no number."""


@dataclass(frozen=True, eq=False)
class Encoding(ABC):
    """One tensor as it is stored.

    Attributes:
        dtype: of the elements.
        words: (elements,) stored words, in the `bits` least significant bits; read-only.
        bits: of a word that are stored.
        planar: stored are groups of 64 elements, plane by plane (see `FixedPoint`), else the words as they are.
        part_dtype, part_representation: as what a plan lays the tensor out.
    """

    dtype: DType
    words: Words
    bits: int
    part_dtype: DType
    part_representation: str
    planar: ClassVar[bool] = False

    @property
    def elements(self) -> int:
        """Words stored."""
        return int(self.words.size)

    @property
    def stored_bytes(self) -> Bytes:
        """Its words one after the other, little endian, as kernels read single bits of them."""
        return self.words.view(np.uint8)

    @abstractmethod
    def restore(self, words: Words) -> Words:
        """Words of the elements' dtype from stored words."""

    @abstractmethod
    def values(self, words: Words) -> Floats | None:
        """Numbers that stored words stand for; None for what is no floating-point tensor."""

    @abstractmethod
    def encode(self, values: Floats) -> Words:
        """Stored words of numbers; the counterpart of `values`."""

    @abstractmethod
    def image(self, words: Words) -> Bytes:
        """Stored bytes of all the tensor's words, as in the payload of a container."""

    @abstractmethod
    def of_image(self, image: Bytes) -> Words:
        """Inverse of `image`."""

    def ones(self, planes: Sequence[int]) -> int:
        """How many of its bits at these positions (0 = most significant) are 1; counted once."""
        if "_ones" not in self.__dict__:
            from ckptguard.kernels import faults

            counted = np.zeros(self.bits, np.int64)
            shifts = np.arange(self.bits - 1, -1, -1, dtype=np.int64)
            faults.count_planes(self.stored_bytes, self.words.dtype.itemsize, self.elements, shifts, counted)
            object.__setattr__(self, "_ones", counted)
        return int(self.__dict__["_ones"][list(planes)].sum())

    def fields(self) -> tuple[int, int]:
        """Bits of sign and exponent of a stored word; (-1, -1) where it has no fields."""
        return _FIELDS.get(self.part_dtype.name, (-1, -1))


class _Plain(Encoding):
    """Words stored one after the other."""

    def image(self, words: Words) -> Bytes:
        return words.view(np.uint8)

    def of_image(self, image: Bytes) -> Words:
        return image.view(self.words.dtype)


class NativeWords(_Plain):
    """The elements' own words."""

    def restore(self, words: Words) -> Words:
        return words

    def values(self, words: Words) -> Floats | None:
        return floats_of(self.dtype.name, words)

    def encode(self, values: Floats) -> Words:
        return words_from(self.dtype.name, values)


class CastWords(_Plain):
    """Words of a narrower floating-point type, widened again when restored."""

    def restore(self, words: Words) -> Words:
        values = floats_of(self.part_dtype.name, words)
        assert values is not None
        return words_from(self.dtype.name, values)

    def values(self, words: Words) -> Floats | None:
        return floats_of(self.part_dtype.name, words)

    def encode(self, values: Floats) -> Words:
        return words_from(self.part_dtype.name, values)


@dataclass(frozen=True, eq=False)
class FixedWords(Encoding):
    """Fixed-point numbers.

    Attributes:
        format: their bits and encoding.
        magnitude: the tensor's largest, which gives the scale.
    """

    format: FixedPoint
    magnitude: float
    planar: ClassVar[bool] = True

    def restore(self, words: Words) -> Words:
        return self.format.table(self.dtype, self.magnitude)[words]

    def values(self, words: Words) -> Floats | None:
        return floats_of(self.dtype.name, self.restore(words))

    def encode(self, values: Floats) -> Words:
        return self.format.encode(values, self.magnitude)

    def image(self, words: Words) -> Bytes:
        padded = np.zeros(-(-words.size // 64) * 64, np.uint16)
        padded[: words.size] = words
        return self.format.pack(padded)

    def of_image(self, image: Bytes) -> Words:
        return self.format.unpack(image, self.elements)

    def fields(self) -> tuple[int, int]:
        return 1, 0


def check_representation(spec: str) -> str:
    """The canonical spec of a representation or a cast. Raises SpecError."""
    parsed = Spec.parse(spec)
    if parsed.name == CAST:
        if len(parsed.settings) != 1:
            raise SpecError(f"a cast is written cast:{' or cast:'.join(CASTS)}, not {spec!r}")
        look_up(CASTS, parsed.settings[0], "floating-point type of a cast")
        return str(parsed)
    return representations.make(spec).spec


def encode_tensor(name: str, tensor: SubjectTensor, spec: str) -> Encoding:
    """A tensor in a representation; in its own words where the representation is not for its dtype.

    Raises CheckpointError, naming the tensor, where it cannot be represented.
    """
    dtype = tensor.dtype
    native = tensor.data.view(f"<u{dtype.word_bits // 8}")
    if Spec.parse(spec).name == CAST:
        target = DTYPES[CASTS[Spec.parse(spec).settings[0]]]
        if dtype.name in ("F32", "F64"):
            values = floats_of(dtype.name, native)
            assert values is not None
            return CastWords(dtype, _sealed(words_from(target.name, values)), target.bits, target, "native")
    elif isinstance(format := representations.make(spec), FixedPoint) and format.applies(dtype):
        if tensor.stored is not None and tensor.representation == format.spec:
            stored, magnitude = tensor.stored, tensor.magnitude
        else:
            try:
                magnitude = format.magnitude(dtype, tensor.data)
                stored = format.store(dtype, tensor.data, magnitude)[0]
            except CheckpointError as error:
                raise CheckpointError(f"{name}: {error}") from error
        codes = _sealed(format.unpack(stored, dtype.words(tensor.data.size)))
        return FixedWords(dtype, codes, format.bits, dtype, format.spec, format, magnitude)
    elif spec != "native" and format.applies(dtype):
        raise SpecError(f"campaigns know the representations native, fixed, q and cast, not {spec!r}")
    return NativeWords(dtype, native, dtype.word_bits, dtype, "native")


def _sealed(words: Words) -> Words:
    words.setflags(write=False)
    return words


def floats_of(name: str, words: Words) -> Floats | None:
    """Numbers that words of a dtype stand for, as float64; None where it is no floating-point type of numpy."""
    if name not in _FLOATS:
        return None
    with np.errstate(invalid="ignore"):  # signalling NaN
        if name == "BF16":
            return (words.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return words.view(f"<f{words.dtype.itemsize}").astype(np.float64)


def words_from(name: str, values: Floats) -> Words:
    """Words of a dtype, each number rounded once, half to even; too large ones become infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if name == "BF16":
            words = to_bfloat16(np.where(np.isfinite(values), values, 0.0)).astype("<u2")
            special = values.astype("<f4").view("<u4") >> 16
            return np.where(np.isfinite(values), words, np.where(np.isnan(values), special | 0x40, special)).astype(
                "<u2"
            )
        size = DTYPES[name].word_bits // 8
        return values.astype(f"<f{size}").view(f"<u{size}")


def not_finite(dtype: DType, words: Words) -> int:
    """How many words of a dtype are infinite or no number."""
    if dtype.name in _INFINITE:
        magnitude = words & words.dtype.type((1 << (dtype.word_bits - 1)) - 1)
        return int(np.count_nonzero(magnitude >= words.dtype.type(_INFINITE[dtype.name])))
    if dtype.name in _NOT_A_NUMBER:
        return int(np.isin(words, np.array(_NOT_A_NUMBER[dtype.name], words.dtype)).sum())
    return 0
