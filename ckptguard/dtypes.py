"""The element types of the safetensors format and what their bits mean."""

from __future__ import annotations

from dataclasses import dataclass

SIGN_MAGNITUDE, TWOS_COMPLEMENT, UNSIGNED, UNORDERED = "sign-magnitude", "twos-complement", "unsigned", "unordered"
"""How the values of words are ordered: floats as sign and magnitude; packed small floats, as bytes, not at all."""


@dataclass(frozen=True)
class DType:
    """One element type.

    Attributes:
        name: as written in a safetensors header.
        bits: of one element; 4 and 6 for the packed small floats.
        word_bits: of the word a mask speaks of. It is the element, except that C64 has one word per component and the
            4- and 6-bit floats are taken as opaque bytes.
        numpy: little-endian numpy type string, or None where numpy has none.
    """

    name: str
    bits: int
    word_bits: int
    numpy: str | None

    def words(self, size: int) -> int:
        """How many mask words `size` bytes hold."""
        return size * 8 // self.word_bits

    @property
    def order(self) -> str:
        """How the values of its words are ordered."""
        if self.name in ("F4", "F6_E2M3", "F6_E3M2"):
            return UNORDERED
        if self.name[0] == "I":
            return TWOS_COMPLEMENT
        return UNSIGNED if (self.name[0] in "UB" and self.name != "BF16") or self.name == "F8_E8M0" else SIGN_MAGNITUDE


_ALL = (
    DType("BOOL", 8, 8, "|b1"),
    DType("F4", 4, 8, None),
    DType("F6_E2M3", 6, 8, None),
    DType("F6_E3M2", 6, 8, None),
    DType("U8", 8, 8, "|u1"),
    DType("I8", 8, 8, "|i1"),
    DType("F8_E5M2", 8, 8, None),
    DType("F8_E4M3", 8, 8, None),
    DType("F8_E8M0", 8, 8, None),
    DType("F8_E4M3FNUZ", 8, 8, None),
    DType("F8_E5M2FNUZ", 8, 8, None),
    DType("I16", 16, 16, "<i2"),
    DType("U16", 16, 16, "<u2"),
    DType("F16", 16, 16, "<f2"),
    DType("BF16", 16, 16, None),
    DType("I32", 32, 32, "<i4"),
    DType("U32", 32, 32, "<u4"),
    DType("F32", 32, 32, "<f4"),
    DType("C64", 64, 32, "<c8"),
    DType("F64", 64, 64, "<f8"),
    DType("I64", 64, 64, "<i8"),
    DType("U64", 64, 64, "<u8"),
)

DTYPES: dict[str, DType] = {dtype.name: dtype for dtype in _ALL}
"""Every dtype of the safetensors format, by its name there."""
