"""Where every bit goes: sizes, places and codes of a container, worked out from metadata alone.

A *source* is a file of the checkpoint. A *part* is a contiguous piece of a source that is stored together: a tensor, a
safetensors header, an auxiliary file, or what is extra, row sums and outliers. The parts of a shard, one after the
other, are its payload. Parts whose words have the same protected bits and the same code form a *stream*: their 64-bit
words in payload order. A stream is cut into *units* (see `codes.base`), and the run of a part's bytes that falls into
one unit is a *piece*: the grain of digests and of reports.
"""

from __future__ import annotations

from ckptguard.plan.layout import FILES_CODE, lay_out
from ckptguard.plan.model import EXTRA, FILE, HEADER, TENSOR, Part, Piece, Pieces, ShardPlan, Source, Stream, Unit
from ckptguard.plan.record import check_source_names, check_whole, from_json

__all__ = [
    "EXTRA",
    "FILE",
    "FILES_CODE",
    "HEADER",
    "TENSOR",
    "Part",
    "Piece",
    "Pieces",
    "ShardPlan",
    "Source",
    "Stream",
    "Unit",
    "check_source_names",
    "check_whole",
    "from_json",
    "lay_out",
]
