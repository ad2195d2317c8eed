"""Campaign folders with invented trials of realistic shape, for tests of reports."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

Record = dict[str, Any]

CLEAN = {"accuracy": 0.8763, "loss": 0.412}
RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
BITS = 456_640_000
MASKS = {"format": "ckptguard-masks", "version": 1, "rules": [{"tensors": "*", "mask": "0-8"}]}
VARIANTS: list[Record] = [
    {"name": "none", "masks": None, "code": "none", "policy": "raw", "guard": False},
    {"name": "fisher-0.5%", "masks": MASKS, "code": "bch:8191,6722", "policy": "null", "guard": True},
    {"name": "ideal", "masks": {**MASKS, "rules": [{"tensors": "*", "mask": "all"}]}, "code": "ideal", "policy": "raw"},
]
CLIFFS = {"none": 4e-5, "fisher-0.5%": 6e-3, "ideal": math.inf}
COSTS = {"none": 0.0, "fisher-0.5%": 0.0011, "ideal": 0.0879}
LAYERS = (
    "embedding.weight",
    "conv0.weight",
    "conv0.bias",
    *(f"blocks.{i}.conv{j}.weight" for i in range(4) for j in (1, 2)),
    *(f"blocks.{i}.norm.weight" for i in range(4)),
    *(f"head.{i}.weight" for i in (0, 2, 4)),
)
KINDS = ("sweep", "device", "layers", "layer", "bits", "bit", "layerbits")


def _groups(kind: str) -> list[str]:
    layers, bits = [f"layer:{name}" for name in LAYERS], [f"bit:{j}" for j in range(32)]
    return {
        "sweep": ["all"],
        "layers": layers,
        "layer": layers,
        "bits": bits,
        "bit": bits,
        "layerbits": [f"{layer} {bit}" for layer in layers[:6] for bit in bits],
    }[kind]


def _points(kind: str) -> list[Record]:
    if kind == "device":
        places = [(0, 2.3e-5), (1000, 2e-4), (3000, 6.8e-3)]
        return [
            _point(i, f"pe={pe},days=90", rate, rate, "all", _device(pe, rate)) for i, (pe, rate) in enumerate(places)
        ]
    rates = {"layer": (1e-3,), "bit": (1e-3,), "layerbits": (1e-3,), "bits": (1e-4, 1e-3, 1e-2)}.get(kind, RATES)
    pairs = [(rate, group) for rate in rates for group in _groups(kind)]
    return [_point(i, f"{rate:.0e}", rate, rate, group, None) for i, (rate, group) in enumerate(pairs)]


def _device(cycles: int, rate: float) -> Record:
    return {
        "name": "nand.mlc",
        "profile": "nand.mlc",
        "operating_point": {"pe": cycles, "days": 90},
        "channel": f"bsc:{rate}",
        "source": "Cai et al., DATE 2012, table 2",
        "confidence": "B",
    }


def _point(i: int, label: str, ber: float | None, rate: float, group: str, device: Record | None) -> Record:
    return {
        "id": f"p{i:03d}",
        "label": label,
        "ber": ber,
        "faults": {"*": f"bsc:{rate:g}"},
        "device": device,
        "scope": {"tensors": ["*"], "bits": None, "fields": None},
        "group": group,
    }


def _weakness(group: str) -> float:
    weak = 1.0
    for part in group.split(" ") if group != "all" else ():
        name, _, what = part.partition(":")
        if name == "layer":
            weak *= 10.0 ** (-0.25 * LAYERS.index(what) % 2.5 - 1.5)
        else:
            weak *= {0: 0.03, 1: 1.0}.get(int(what), 0.2 * 10.0 ** (-0.45 * (int(what) - 2)))
    return weak


def make(folder: Path, kind: str = "sweep", trials: int = 12) -> Path:
    """Write campaign.json, results.jsonl and summary.csv of a run; kinds are those of KINDS."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.Generator(np.random.Philox(key=7))
    points, count = _points(kind), {"sweep": 3, "device": 3, "bit": 2}.get(kind, 1)
    variants = [{"representation": "native", "guard": False, **variant} for variant in VARIANTS[:count]]
    names = [variant["name"] for variant in variants]
    rows = [_row(point, name, trial, generator) for point in points for name in names for trial in range(trials)]
    cells = [cell for point in points for name in names for cell in _cells(point, name, rows)]
    campaign = _campaign(points, variants, trials) | {"analysis": {"summary": cells, "confidence": 0.95}}
    if kind in ("sweep", "device"):
        campaign |= {
            "limit": {"metric": "accuracy", "change": -0.005, "claim": "share", "share": 0.95, "confidence": 0.95}
        }
        campaign["analysis"] |= _analysis(kind, points, rows, trials)
    write(folder, campaign, rows, cells)
    return folder


def write(folder: Path, campaign: Record, rows: list[Record], cells: list[Record]) -> None:
    """Write the three files of a run."""
    (folder / "campaign.json").write_text(json.dumps(campaign, indent=1), "utf-8")
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with (folder / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(cells[0]))
        writer.writeheader()
        writer.writerows(cells)


def load(folder: Path) -> tuple[Record, list[Record]]:
    """campaign.json and results.jsonl of a folder."""
    lines = (folder / "results.jsonl").read_text("utf-8").splitlines()
    return json.loads((folder / "campaign.json").read_text("utf-8")), [json.loads(line) for line in lines]


def _campaign(points: list[Record], variants: list[Record], trials: int) -> Record:
    names = [variant["name"] for variant in variants]
    return {
        "format": "ckptguard-campaign",
        "version": 1,
        "tool": "ckptguard 0.1.0",
        "identity": {"digest": "5d0c6b4f", "python": "3.12.4", "versions": {"numpy": "2.4.6", "torch": "2.13.0"}},
        "subject": {
            "name": "vdcnn-agnews.safetensors",
            "digest": "9c1f0a7be2d45531",
            "bits": BITS,
            "tensors": {name: {"dtype": "F32", "shape": [8]} for name in LAYERS},
        },
        "points": points,
        "variants": variants,
        "redundancy": {name: COSTS[name] for name in names},
        "judged": names[1:2],
        "evaluator": "classification:factory=vdcnn.py:build,inputs=agnews-test.npz",
        "seed": 7,
        "trials": trials,
        "confidence": 0.95,
        "metric": "accuracy",
        "metrics": {"accuracy": {"direction": "higher", "low": 0.0, "high": 1.0}, "loss": {"direction": "lower"}},
        "clean": {name: CLEAN for name in names},
        "checks": {
            "null": "passed",
            "golden": {
                name: "skipped: an ideal code has no container" if name == "ideal" else "passed" for name in names
            },
            "planes": {},
            "flips": {"counts": 864, "smallest_tail": 0.00041, "allowed_tail": 1e-6},
        },
        "run": {"jobs": 2, "backend": "loky", "evaluations": 1593, "seconds": 812.4},
        "command": ["ckptguard", "sweep", "vdcnn-agnews.safetensors", "--ber", "1e-6:1e-2", "-o", "run/"],
    }


def _row(point: Record, variant: str, trial: int, generator: np.random.Generator) -> Record:
    rate = float(point["faults"]["*"].partition(":")[2])
    hit = rate * _weakness(point["group"])
    kept = 1 / (1 + (hit / CLIFFS[variant]) ** 1.3)
    wide = 0.5 * kept * (1 - kept) * generator.standard_normal()
    accuracy = float(np.clip(0.25 + (CLEAN["accuracy"] - 0.25) * kept + wide, 0.2, CLEAN["accuracy"] + 0.001))
    accuracy = CLEAN["accuracy"] if variant == "ideal" else accuracy
    failed = variant == "none" and hit >= 1e-3 and generator.random() < 0.3
    flips, coded = int(generator.poisson(BITS * rate)), variant != "none"
    loss = CLEAN["loss"] + 3 * (CLEAN["accuracy"] - accuracy)
    return {
        "point": point["id"],
        "variant": variant,
        "trial": trial,
        "metrics": {"accuracy": "nan", "loss": "inf"} if failed else {"accuracy": accuracy, "loss": loss},
        "raised": False,
        "expected_flips": BITS * rate,
        "stored_bits": BITS,
        "flips": flips,
        "parity_flips": flips // 900 if coded else 0,
        "codewords": 3356 if coded else 0,
        "corrected": 3350 if coded else 0,
        "uncorrectable": trial % 7 if coded else 0,
        "miscorrected": 0,
        "residual_bits": flips,
        "changed_elements": int(flips * 0.98),
        "nulled": 0,
        "guarded": 3 if variant.startswith("fisher") else 0,
        "non_finite": flips // 400,
    }


def _cells(point: Record, variant: str, rows: list[Record]) -> list[Record]:
    mine = [row for row in rows if row["point"] == point["id"] and row["variant"] == variant]
    cells = []
    for metric, sign, worst in (("accuracy", 1, 0.0), ("loss", -1, math.inf)):
        values = np.array([float(row["metrics"][metric]) for row in mine])
        failures = int((~np.isfinite(values)).sum())
        ordered = sign * np.sort(sign * np.where(np.isfinite(values), values, worst))
        used = ordered[np.isfinite(ordered)]
        half = 2.2 * float(used.std()) / math.sqrt(max(1, used.size)) if used.size else math.nan
        mean = float(used.mean()) if used.size else math.nan
        cells.append(
            {
                "point": point["id"],
                "label": point["label"],
                "ber": point["ber"],
                "group": point["group"],
                "variant": variant,
                "metric": metric,
                "redundancy": COSTS[variant],
                "clean": CLEAN[metric],
                "trials": len(values),
                "failures": failures,
                "mean": mean,
                "mean_low": mean - half,
                "mean_high": mean + half,
                "worst": float(ordered[0]),
                "q05": float(ordered[max(0, math.ceil(0.05 * len(values)) - 1)]),
                "median": float(ordered[len(values) // 2]),
                "best": float(ordered[-1]),
                "tolerance": f"95 % of devices keep {metric} {ordered[0]:.4f} or better, with 95 % confidence",
            }
        )
    return cells


def _paired(point: str, first: str, second: str, rows: list[Record]) -> Record:
    a, b = (
        np.array([float(r["metrics"]["accuracy"]) for r in rows if r["point"] == point and r["variant"] == name])
        for name in (first, second)
    )
    difference = a - np.nan_to_num(b)
    half = 2.2 * difference.std() / math.sqrt(len(difference))
    mean = float(difference.mean())
    return {
        "point": point,
        "metric": "accuracy",
        "first": first,
        "second": second,
        "trials": len(a),
        "mean": mean,
        "interval": {"low": float(mean - half), "high": float(mean + half), "confidence": 0.95, "method": "t"},
        "better": int((difference > 0).sum()),
        "equal": int((difference == 0).sum()),
        "worse": int((difference < 0).sum()),
        "sign_test": 0.0005,
        "variance_ratio": 0.4,
    }


def _verdict(point: str, variant: str, rows: list[Record], trials: int) -> Record:
    values = [float(r["metrics"]["accuracy"]) for r in rows if r["point"] == point and r["variant"] == variant]
    within = sum(value >= CLEAN["accuracy"] - 0.005 for value in values)
    outcome = "FAIL" if within < 0.6 * trials else "PASS" if within == trials and trials >= 59 else "INCONCLUSIVE"
    return {
        "point": point,
        "variant": variant,
        "metric": "accuracy",
        "outcome": outcome,
        "trials": trials,
        "within": within,
        "low": 0.9 * within / trials,
        "high": 1.0,
        "trials_needed": 47 if outcome == "INCONCLUSIVE" else 0,
        "text": f"{within} of {trials} trials keep accuracy within -0.005 of clean",
    }


def _analysis(kind: str, points: list[Record], rows: list[Record], trials: int) -> Record:
    names = [point["id"] for point in points]
    verdicts = [_verdict(name, variant["name"], rows, trials) for name in names for variant in VARIANTS]
    judged = [verdict["outcome"] for verdict in verdicts if verdict["variant"] == "fisher-0.5%"]
    shares = [
        {"name": name, "loss_per_flip": 1e-4 / (i + 1), "flips": 12.0, "share": 0.4 / (i + 1)}
        for i, name in enumerate(LAYERS)
    ]
    bits = [{"name": str(j), "loss": 0.6 / (j + 1) ** 2} for j in (1, 2, 3, 0)]
    found: Record = {
        "judged": ["fisher-0.5%"],
        "verdicts": verdicts,
        "verdict": next(outcome for outcome in ("FAIL", "INCONCLUSIVE", "PASS") if outcome in judged),
        "paired": [_paired(name, variant["name"], "none", rows) for name in names for variant in VARIANTS[1:]],
        "notes": ["loss: 5 failed trials are left out of its means, which therefore look better than they are"],
        "attribution": {
            "none": {
                "tensors": {"method": "regressed", "trials": 59, "explained": 0.83, "entries": shares},
                "bits": {"method": "measured", "entries": bits},
            }
        },
        "thresholds": [
            _threshold(variant["name"], increase, rate)
            for variant, rate in zip(VARIANTS, (1e-5, 1e-3, None), strict=True)
            for increase in (0.005, 0.01, 0.05, 0.1)
        ],
    }
    if kind == "device":
        found |= {"in_time": [_in_time(names[1], trials)], "lasting": [_lasting()]}
    return found


def _threshold(variant: str, increase: float, rate: float | None) -> Record:
    low, following = (rate * increase * 10, 3 * rate * increase * 10) if rate else (1e-2, None)
    crossing = 1.7 * low if following else None
    record = {"group": "all", "variant": variant, "metric": "accuracy", "increase": increase, "limit": 0.13}
    return record | {"rate": low, "next_rate": following, "crossing": crossing}


def _in_time(point: str, trials: int) -> Record:
    return {
        "point": point,
        "variant": "fisher-0.5%",
        "failures": 0,
        "trials": trials,
        "hours": 2160.0,
        "devices": 100,
        "confidence": 0.95,
        "fit": 0.0,
        "fit_low": 0.0,
        "fit_high": 142000.0,
        "mean_hours": "inf",
        "mean_hours_low": 70400.0,
        "fleet_hours": 704.0,
        "assumptions": ["nand.mlc behaves as its profile says", "stretches and devices fail independently"],
    }


def _lasting() -> Record:
    device = "nand.mlc {'days': 90}"
    return {
        "variant": "fisher-0.5%",
        "device": device,
        "parameter": "pe",
        "unit": "cycles",
        "last_pass": 1000.0,
        "first_fail": 3000.0,
    }
