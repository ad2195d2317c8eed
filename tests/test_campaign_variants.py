"""Decoding in memory against the real pipeline, encodings, guards, and what variants cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from containers import MIXED, read_safetensors, safetensors_bytes, tensors

from ckptguard import codes
from ckptguard.campaign import faults
from ckptguard.campaign.drawing import Flips
from ckptguard.campaign.subject import Subject
from ckptguard.campaign.variants import Damage, Prepared, Variant
from ckptguard.errors import UncorrectableError
from ckptguard.masks import MaskSet, Rule
from ckptguard.pipeline.protect import protect
from ckptguard.pipeline.restore import restore
from ckptguard.pipeline.shard import open_set

CASES = {
    "short words of a code with many failures": ("bch:255,131", "native", "top:9", 0.06),
    "the same over fixed-point planes": ("bch:255,131", "fixed:8", "top:3", 0.06),
    "sign and magnitude": ("bch:511,259", "fixed:6,sign-magnitude", "110100", 0.055),
    "every bit": ("bch:255,191", "native", "all", 0.03),
    "one error in a memory word": ("secded:72,64", "native", "top:5", 0.02),
    "one error in a short word": ("secded:32,26", "fixed:8", "top:2", 0.03),
    "one error in a tile": ("crc", "native", "top:2", 1e-3),
    "lost codewords that outer words bring back": ("bch:511,259,outer=8", "native", "top:4", 0.047),
    "lost codewords too many for outer words": ("bch:255,131,outer=4", "native", "top:4", 0.055),
}
"""code, representation, mask, bit error rate."""


def checkpoint(folder: Path) -> Path:
    """Tensors of every width, of which one fills more than a unit."""
    path = folder / "model.safetensors"
    layout = {"large": ("F32", (263, 300)), **MIXED, "codes": ("I8", (40_001,))}
    layout["codes"] = ("U8", (40_001,))
    path.write_bytes(safetensors_bytes(tensors(5, **layout)))
    return path


def rules(mask: str, representation: str) -> MaskSet:
    """A mask for floats; bits of other words only as far as they have them."""
    if not set(mask) <= {"0", "1"}:
        return MaskSet((Rule(("*",), mask + (",or-all" if mask.startswith("top") else "")),))
    floats = ("large", "weight", "half", "brain", "double", "nothing")
    return MaskSet((Rule(floats, mask), Rule(("*",), "none")))


def damage_container(container: Path, prepared: Prepared, flips: Flips) -> bytes:
    """The bytes of a container with the same flips in its payload and parity."""
    with open_set(container) as (shard,):
        data = np.frombuffer(container.read_bytes(), np.uint8).copy()
        block = shard.file.superblock
        for part in shard.plan.parts:
            if part.name in flips.tensors:
                encoding, drawn = prepared.encodings[part.name], flips.tensors[part.name]
                words = np.zeros_like(encoding.words)
                words[drawn.elements] = drawn.flips.astype(words.dtype)
                image = encoding.image(words)
                begin = block.payload_offset + part.stored_offset
                data[begin : begin + part.stored_bytes] ^= image
        coded = [stream for stream in shard.plan.streams if stream.planes and stream.code.spec != "none"]
        for stream, (key, coder) in zip(coded, sorted(prepared.coders.items()), strict=True):
            assert (stream.code.spec, stream.words) == (coder.code.spec, coder.stream.words)
            bits = np.zeros(8 * stream.parity_bytes, np.uint8)
            bits[flips.parity.get(key, np.zeros(0, np.int64))] = 1
            begin = block.parity_offset + stream.parity_offset
            data[begin : begin + stream.parity_bytes] ^= np.packbits(bits, bitorder="little")
    return data.tobytes()


def patched(prepared: Prepared, damage: Damage) -> dict[str, bytes]:
    """Tensors with the patches of a trial."""
    result = {}
    for name, base in prepared.base.items():
        data = base.copy()
        if name in damage.patches:
            patch = damage.patches[name]
            data.view(patch.words.dtype)[patch.elements] = patch.words
        result[name] = data.tobytes()
    return result


@pytest.mark.parametrize("case", CASES)
def test_decoding_in_memory_gives_the_tensors_that_restore_gives(case: str, tmp_path: Path) -> None:
    code, representation, mask, rate = CASES[case]
    source, container, worn = checkpoint(tmp_path), tmp_path / "model.ckg", tmp_path / "worn.ckg"
    masks = rules(mask, representation)
    protect(source, container, masks=masks, code=code, representation=representation)
    subject = Subject.open(source)
    variants = {policy: Variant(policy, representation, masks, code, policy) for policy in ("raw", "null", "raise")}
    prepared = {policy: Prepared(subject, variant) for policy, variant in variants.items()}
    seen: set[str] = set()
    for seed, share in ((1, 1.0), (2, 0.9), (3, 0.6), (4, 0.05)):
        fault = faults.make(f"bsc:{rate * share}")
        flips = prepared["raw"].draw(fault, seed, 0)
        worn.write_bytes(damage_container(container, prepared["raw"], flips))
        for policy in ("raw", "null"):
            restore(worn, tmp_path / "out.safetensors", policy=policy, overwrite=True)
            expected = read_safetensors((tmp_path / "out.safetensors").read_bytes())
            damage = prepared[policy].trial(fault, seed, 0)
            found = patched(prepared[policy], damage)
            assert found.keys() == expected.keys()
            assert [name for name in found if found[name] != expected[name]] == []
            seen |= {word for word in ("corrected", "uncorrectable", "miscorrected") if getattr(damage, word)}
        raised = False
        try:
            restore(worn, tmp_path / "out.safetensors", strict=True, overwrite=True)
        except UncorrectableError:
            raised = True
        refused = prepared["raise"].trial(fault, seed, 0)
        assert refused.raised == raised
        assert not (raised and refused.patches)
    assert {"corrected", "uncorrectable"} <= seen
    assert "miscorrected" in seen or codes.make(code).t > 1 or code == "crc"
