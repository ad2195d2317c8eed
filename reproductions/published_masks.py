"""Redundancies of the published masks: `python -m reproductions.published_masks > docs/results/published-masks.md`.

Every mask becomes a mask file, and `ckptguard masks show` says what it costs on tensors of the published sizes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ckptguard.masks import MaskSet, Rule
from reproductions import data

PAPER = {
    ("bitmask", "float", "ideal"): (0.0218, 0.0218), ("bitmask", "float", "bch"): (0.0518, 0.0547),
    ("bitmask", "fixed", "ideal"): (0.0029, 0.0036), ("bitmask", "fixed", "bch"): (0.0082, 0.0096),
    ("topbits", "float", "ideal"): (0.0205, 0.0206), ("topbits", "float", "bch"): (0.0545, 0.0537),
    ("topbits", "fixed", "ideal"): (0.0190, 0.0202), ("topbits", "fixed", "bch"): (0.0265, 0.0492),
}  # fmt: skip
"""Redundancies of Table I of Peng et al., for AG News and Sogou."""

CODES = {"float": "bch:8191,6722", "fixed": "bch:8191,6787"}
ROUNDED_CAPACITY = 0.08 / 0.92
"""Parity per protected bit of an ideal code at 1e-2, with the capacity rounded to 0.92, as the table has it."""


def command(*arguments: object) -> dict[str, object]:
    """What `ckptguard ... --json` says."""
    line = [sys.executable, "-m", "ckptguard", *map(str, arguments), "--json"]
    found: dict[str, object] = json.loads(subprocess.run(line, capture_output=True, check=True, text=True).stdout)
    return found


def model(folder: Path, layers: list[list[object]], last: int) -> Path:
    """A checkpoint of zeros with the published layers; `last` weights in the last one."""
    sizes = {str(name): int(str(size)) for name, size in layers}
    sizes[str(layers[-1][0])] = last
    path = folder / f"model-{last}.safetensors"
    save_file({name: np.zeros(size, np.float32) for name, size in sizes.items()}, path)
    return path


def mask_file(folder: Path, name: str, layers: list[list[object]], masks: list[str]) -> Path:
    """A mask file with one rule per layer."""
    rules = tuple(Rule((str(layer),), mask) for (layer, _), mask in zip(layers, masks, strict=True))
    path = folder / f"{name.replace('/', '-')}.json"
    path.write_text(MaskSet(rules).to_json(), encoding="utf-8")
    return path


def main() -> None:
    """Print the page."""
    published = json.loads((data.folder() / "seed-sp-masks.json").read_text(encoding="utf-8"))
    layers = published["layers"]
    rows, misfits = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = {"ag": model(folder, layers, 8192), "sogou": model(folder, layers, 10240)}
        for column, name in enumerate(models):
            for (method, kind, code), expected in PAPER.items():
                masks = mask_file(
                    folder,
                    f"{name}/{method}/{kind}/{code}",
                    layers,
                    published["masks"][name][f"{method}/{kind}/{code}"],
                )
                native = "native" if kind == "float" else "fixed:8"
                shown = command(
                    "masks", "show", masks, "--model", models[name], "--representation", native, "--code", CODES[kind]
                )
                share = float(str(shown["protected_fraction"]))
                found = float(str(shown["redundancy"])) if code == "bch" else share * ROUNDED_CAPACITY
                # The table is rounded to four digits, so half a digit is no difference.
                agrees = abs(found - expected[column]) <= 1.5e-4
                rows.append((name, method, kind, code, share, found, expected[column], agrees))
                if not agrees:
                    misfits.append(f"{name} {method} {kind} {code}: {found:.4f} instead of {expected[column]:.4f}")
        old = mask_file(folder, "old", layers, published["masks"]["sogou_old_commented"]["bitmask/float/ideal"])
        ag = mask_file(folder, "ag", layers, published["masks"]["ag"]["bitmask/float/ideal"])
        used = mask_file(folder, "used", layers, published["masks"]["sogou"]["bitmask/float/ideal"])
        similar = []
        for other in (old, used):
            shown = command("masks", "diff", ag, other, "--model", models["ag"])
            values = [row["similarity"] for row in shown["tensors"]]  # type: ignore[attr-defined]
            similar.append(f"least {min(values):.5f}, greatest {max(values):.5f}, mean {float(str(shown['mean'])):.4f}")
    print(PAGE_TOP)
    print("| data | method | weights | code | protected share | redundancy here | Table I | |")
    print("|---|---|---|---|---|---|---|---|")
    for name, method, kind, code, share, found, paper, agrees in rows:
        note = "" if agrees else "differs"
        print(f"| {name} | {method} | {kind} | {code} | {share:.4f} | {found:.4f} | {paper:.4f} | {note} |")
    print(f"\n{len(rows) - len(misfits)} of {len(rows)} rows agree. Those that do not: {'; '.join(misfits)}.\n")
    print(PAGE_END.format(old=similar[0], used=similar[1]))


PAGE_TOP = """# Redundancies of the published masks

`python -m reproductions.published_masks` turns the masks that Peng et al. published for VDCNN into mask files and lets
`ckptguard masks show` price them on tensors of the published sizes (15 tensors, 14,339,072 weights for AG News).
BCH is BCH(8191,6722) for float32 and BCH(8191,6787) for 8-bit fixed point. For the ideal code the table is met with the
capacity at 1e-2 rounded to 0.92, that is 0.08 / 0.92 = 0.0870 parity bits per protected bit; unrounded it is 0.0879.
"Agrees" is: within 1.5e-4 of the four printed digits.
"""

PAGE_END = """The paper gives a distance of the float32 masks for AG News and Sogou between .53125 and .8125 with
mean .6917. That is their similarity, and of an older Sogou mask: {old}.
With the mask in use it is {used}.
"""


if __name__ == "__main__":
    main()
