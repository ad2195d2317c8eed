"""Write the golden containers of the format's current version: `python tests/vectors/make_golden.py`.

They were made once and are kept: a version that was ever released must read them for ever. The script replaces none.
Each folder of golden/vN is one case: `original` (what was protected), `container`, and, where the representation
rounds, `restored` (what the independent reader in tests/reference_reader.py makes of it).
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from containers import safetensors_bytes, tensors  # noqa: E402
from reference_reader import read_set  # noqa: E402

from ckptguard.container.superblock import VERSION  # noqa: E402
from ckptguard.pipeline.protect import protect  # noqa: E402

LAYOUT = {
    "weight": ("F32", (9, 23)),
    "half": ("F16", (33,)),
    "brain": ("BF16", (5, 7)),
    "eighth": ("F8_E4M3", (21,)),
    "double": ("F64", (5,)),
    "complex": ("C64", (3,)),
    "steps": ("I64", ()),
    "flags": ("BOOL", (13,)),
    "nothing": ("F32", (0, 4)),
    "packed": ("F4", (6,)),
    "名": ("U8", (9,)),
}
RULES = [
    {"tensors": "weight", "mask": "top:9", "code": "bch:63,45"},
    {"tensors": "half", "mask": "1010000000000001", "code": "bch:255,131"},
    {"tensors": "brain", "mask": "all", "code": "secded:39,32"},
    {"tensors": "d*", "mask": "top:12"},
    {"tensors": "*", "mask": "none"},
]
RESTORER = {"restorer": {"kind": "posterior", "rates": [{"tensors": ["*"], "of_0": 0.01, "of_1": 0.02}]}}
DEVICES = """
[[device]]
name = "worn"
tensors = ["w*", "h*"]
channel = "bsc:1e-2"

[[device]]
name = "fresh"
tensors = ["*"]
channel = "bsc:1e-6"
"""
SINGLE = {
    "none": {"code": "none", "bits": 3},
    "crc": {"code": "crc"},
    "secded-72-64": {"code": "secded:72,64"},
    "secded-64-57": {"code": "secded:64,57", "bits": 2},
    "secded-39-32": {"code": "secded:39,32", "bits": 5},
    "secded-32-26": {"code": "secded:32,26", "bits": 8},
    "bch-15-7": {"code": "bch:15,7", "bits": 1},
    "bch-63-45": {"code": "bch:63,45", "bits": 8},
    "bch-1023-513": {"code": "bch:1023,513", "bits": 8},
    "bch-8191-6722": {"code": "bch:8191,6722", "bits": 8},
    "bch-16383-14010": {"code": "bch:16383,14010", "bits": 4},
    "bch-255-191-outer-6": {"code": "bch:255,191,outer=6"},
    "bch-8191-6722-outer-10": {"code": "bch:8191,6722,outer=10", "bits": 9},
    "rules": {"code": "crc", "masks": RULES},
    "fixed-8": {"code": "secded:72,64", "representation": "fixed:8", "bits": 3},
    "fixed-5-sign-magnitude": {"code": "bch:63,45", "representation": "fixed:5,sign-magnitude"},
    "fixed-16": {"code": "crc", "representation": "fixed:16", "bits": 8},
    "fixed-2-c": {"code": "secded:39,32", "representation": "fixed:2,c=0.1"},
    "guard-tensor": {"code": "bch:63,45", "bits": 4, "guard": "tensor"},
    "guard-channel": {"code": "secded:72,64", "bits": 2, "guard": "channel"},
    "guard-group": {"code": "none", "guard": "group:8"},
    "guard-fixed": {"code": "crc", "representation": "fixed:6,sign-magnitude", "guard": "group:16"},
    "restorer": {"code": "bch:63,45", "masks": RULES, "provenance": RESTORER | {"row_sums": ["weight"]}, "far": True},
    "sidecar": {"code": "secded:72,64", "bits": 8, "sidecar": True},
    "devices": {"code": "secded:72,64", "bits": 8, "devices": True},
    "folder": {"code": "bch:1023,513", "bits": 2, "folder": True},
    "folder-sidecar": {"code": "secded:72,64", "folder": True, "sidecar": True},
}


def write_original(place: Path, folder: bool, far: bool) -> Path:
    place.mkdir(parents=True)
    if not folder:
        content = tensors(1, **LAYOUT)
        if far:  # one weight far above the others
            dtype, shape, data = content["weight"]
            content["weight"] = dtype, shape, data[:400] + np.float32(-1.9).tobytes() + data[404:]
        (place / "m.safetensors").write_bytes(safetensors_bytes(content, format="pt", note="é"))
        return place / "m.safetensors"
    weight_map = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        content = {f"{key}.{number}": value for key, value in tensors(number, **LAYOUT).items()}
        (place / name).write_bytes(safetensors_bytes(content))
        weight_map |= dict.fromkeys(content, name)
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (place / "config.json").write_text('{"architectures": ["Any"]}')
    (place / "vocabulary").mkdir()
    (place / "vocabulary" / "tokens.txt").write_text("the\nof\nand\n名\n")
    return place


def make(case: Path, settings: dict[str, object]) -> None:
    settings.setdefault("guard", "none")
    folder, sidecar = bool(settings.pop("folder", False)), bool(settings.pop("sidecar", False))
    source = write_original(case / "original", folder, bool(settings.pop("far", False)))
    container = case / "container"
    extra = case / "extra"
    extra.mkdir()
    if rules := settings.pop("masks", None):
        masks = {
            "format": "ckptguard-masks",
            "version": 1,
            "rules": rules,
            "provenance": settings.pop("provenance", {}),
        }
        (extra / "sp.json").write_text(json.dumps(masks))
        settings["masks"] = extra / "sp.json"
    if settings.pop("devices", False):
        (extra / "devices.toml").write_text(DEVICES)
        settings["devices"] = extra / "devices.toml"
    if sidecar:
        shutil.copytree(case / "original", container)
        protect(container if folder else container / "m.safetensors", sidecar=True, **settings)
    elif folder or "devices" in settings:
        protect(source, container, **settings)
    else:
        container.mkdir()
        protect(source, container / "m.ckg", **settings)
    shutil.rmtree(extra)
    if "representation" in settings:
        data = {file.name: file.read_bytes() for file in container.iterdir()}
        (case / "restored").mkdir()
        for name, content in read_set(data, {}).items():
            (case / "restored" / name).write_bytes(content)


def main() -> None:
    for name, settings in SINGLE.items():
        case = HERE / "golden" / f"v{VERSION}" / name
        if not case.exists():
            make(case, dict(settings))


if __name__ == "__main__":
    main()
