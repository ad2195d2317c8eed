"""Campaign folders with invented trials of realistic shape, for tests of reports."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

CLEAN = 0.8763
RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
VARIANTS: list[dict[str, Any]] = [
    {"name": "none", "representation": "native", "masks": None, "code": "none", "policy": "raw", "guard": False},
    {"name": "fisher-0.5%", "representation": "native", "masks": "sp-31c0", "code": "bch:8191,6722", "policy": "null", "guard": True},
    {"name": "ideal", "representation": "native", "masks": "all", "code": "ideal", "policy": "raw", "guard": False},
]  # fmt: skip
CLIFFS = {"none": 4e-5, "fisher-0.5%": 6e-3, "ideal": math.inf}
COSTS = {"none": 0.0, "fisher-0.5%": 0.0011, "ideal": 0.0879}
LAYERS = (
    "embedding.weight", "conv0.weight", "conv0.bias",
    *(f"blocks.{i}.conv{j}.weight" for i in range(4) for j in (1, 2)), *(f"blocks.{i}.norm.weight" for i in range(4)),
    "head.0.weight", "head.2.weight", "head.4.weight",
)  # fmt: skip


def _points(kind: str) -> list[dict[str, Any]]:
    scope: dict[str, Any] = {"tensors": ["*"], "bits": None, "fields": None}
    if kind == "device":
        places = [
            ({"name": "nand.mlc", "operating_point": {"pe": pe, "days": 90}, "channel": f"bsc:{rate}", "confidence": "B",
              "source": "Cai et al., DATE 2012, table 2"}, f"pe={pe},days=90", rate)
            for pe, rate in ((0, 2.3e-5), (1000, 2e-4), (3000, 6.8e-3))
        ]  # fmt: skip
        return [
            {"id": f"p{i:02d}", "label": label, "ber": None, "faults": {"*": f"bsc:{rate}"}, "device": device, "scope": scope, "group": "all"}
            for i, (device, label, rate) in enumerate(places)
        ]
    groups = {
        "sweep": ["all"],
        "layers": [f"layer:{name}" for name in LAYERS],
        "layer": [f"layer:{name}" for name in LAYERS],
        "bits": [f"bit:{j}" for j in range(32)],
        "bit": [f"bit:{j}" for j in range(32)],
        "layerbits": [f"layer:{name} bit:{j}" for name in LAYERS for j in range(32)],
    }[kind]
    rates = {"layer": (1e-3,), "bit": (1e-3,), "layerbits": (1e-3,), "bits": (1e-4, 1e-3, 1e-2)}.get(kind, RATES)
    pairs = [(rate, group) for rate in rates for group in groups]
    return [
        {"id": f"p{i:03d}", "label": f"{rate:.0e}", "ber": rate, "faults": {"*": f"bsc:{rate:g}"}, "device": None, "scope": scope, "group": group}
        for i, (rate, group) in enumerate(pairs)
    ]  # fmt: skip


def _weakness(group: str) -> float:
    if group == "all":
        return 1.0
    weak = 1.0
    for part in group.split(" "):
        name, _, what = part.partition(":")
        if name == "layer":
            weak *= 10.0 ** (-0.25 * LAYERS.index(what) % 2.5 - 1.5)
        else:
            weak *= {0: 0.03, 1: 1.0}.get(int(what), 0.2 * 10.0 ** (-0.45 * (int(what) - 2)))
    return weak


def make(folder: Path, kind: str = "sweep", trials: int = 12, limit: bool = True) -> Path:
    """Write campaign.json, results.jsonl and summary.csv of a `sweep`, `device`, `layers`, `layer`, `bits`, `bit` or
    `layerbits` run."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.Generator(np.random.Philox(key=7))
    points = _points(kind)
    variants = VARIANTS if kind in ("sweep", "device") else VARIANTS[:1] if kind != "bit" else VARIANTS[:2]
    rows: list[dict[str, Any]] = []
    for point in points:
        rate = float(point["faults"]["*"].partition(":")[2]) * _weakness(point["group"])
        for variant in variants:
            name = variant["name"]
            for trial in range(trials):
                rows.append(_row(point, name, trial, rate, generator))
    cells = [cell for point in points for variant in variants for cell in _cells(point["id"], variant["name"], rows)]
    campaign = {
        "format": "ckptguard-campaign", "version": 1, "tool": "ckptguard 0.1.0",
        "subject": {"name": "vdcnn-agnews.safetensors", "digest": "xxh3:9c1f0a7be2d45531", "elements": 14270000, "tensors": {name: {"dtype": "F32", "shape": [8]} for name in LAYERS}},
        "points": points, "variants": variants, "evaluator": "classification:factory=vdcnn.py:build,inputs=agnews-test.npz", "seed": 7,
        "trials": trials, "metric": "accuracy", "metrics": {"accuracy": {"direction": "higher", "low": 0.0, "high": 1.0, "known": True}, "loss": {"direction": "lower", "low": 0.0, "high": None, "known": True}},
        "clean": {v["name"]: {"accuracy": CLEAN, "loss": 0.412} for v in variants},
        "limit": {"metric": "accuracy", "change": -0.005} if limit and kind == "sweep" else None,
        "checks": {"null trial": {"passed": True, "text": "no flips: every weight bit-exact, every metric equal"}, "flip counts": {"passed": True, "text": "within the exact binomial interval at 1e-6"}, "golden through the container": {"passed": True, "text": "digest of the weights equal"}},
        "identity": {"mask digest": "xxh3:11aa", "data digest": "sha256:77ab01", "coverage": "100 % of the bits hit, 0.5 % protected"},
        "command": "ckptguard sweep vdcnn-agnews.safetensors --ber 1e-6:1e-2 --trials 12 --eval classification:... -o run/",
        "analysis": {"summary": cells, **_analysis(kind, points, rows)},
    }  # fmt: skip
    (folder / "campaign.json").write_text(json.dumps(campaign, indent=1), "utf-8")
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with (folder / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(cells[0]))
        writer.writeheader()
        writer.writerows(cells)
    return folder


def _row(point: dict[str, Any], variant: str, trial: int, rate: float, generator: np.random.Generator) -> dict[str, Any]:
    cliff = CLIFFS[variant]
    kept = 1 / (1 + (rate / cliff) ** 1.3)
    spread = 0.18 * kept * (1 - kept) * 4
    accuracy = float(np.clip(0.25 + (CLEAN - 0.25) * kept + spread * generator.standard_normal() * 0.7, 0.2, CLEAN + 0.001))
    if cliff == math.inf:
        accuracy = CLEAN
    failed = variant == "none" and rate >= 1e-3 and generator.random() < 0.3
    flips = int(generator.poisson(456_640_000 * rate))
    return {
        "point": point["id"], "variant": variant, "trial": trial,
        "metrics": {"accuracy": "nan" if failed else accuracy, "loss": "nan" if failed else 0.412 + 3 * (CLEAN - accuracy)},
        "raised": False, "stored_bits": 456_640_000, "flips": flips, "parity_flips": flips // 50 if variant != "none" else 0,
        "expected_flips": 456_640_000 * rate, "codewords": 0 if variant == "none" else 3356, "corrected": 0 if variant == "none" else 3350,
        "uncorrectable": 0 if variant == "none" else 6 * trial % 7, "miscorrected": 0, "residual_bits": flips, "changed_elements": int(flips * 0.98),
        "nulled": 0, "guarded": 3 if variant.startswith("fisher") else 0, "non_finite": flips // 400,
        "flips_by_bit": {}, "residual_by_bit": {}, "residual_by_tensor": {},
    }  # fmt: skip


def _cells(point: str, variant: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    mine = [row for row in rows if row["point"] == point and row["variant"] == variant]
    cells = []
    for metric, clean, sign in (("accuracy", CLEAN, 1), ("loss", 0.412, -1)):
        values = np.array([float(row["metrics"][metric]) for row in mine])
        finite = np.sort(values[np.isfinite(values)] * sign) * sign
        failures = len(values) - len(finite)
        half = 2.2 * finite.std() / math.sqrt(max(1, len(finite))) if len(finite) else math.nan
        mean = finite.mean() if len(finite) else math.nan
        cells.append(
            {
                "point": point, "variant": variant, "metric": metric, "clean": clean, "trials": len(values), "failures": failures,
                "mean": mean, "mean_low": mean - half, "mean_high": mean + half, "worst": finite[0] if len(finite) else math.nan,
                "q05": np.quantile(finite, 0.05) if len(finite) else math.nan, "median": np.median(finite) if len(finite) else math.nan,
                "best": finite[-1] if len(finite) else math.nan, "redundancy": COSTS[variant],
                "tolerance": f"at least 95 % of devices keep {finite[0]:.4f} or more, with 95 % confidence" if len(finite) and not failures else "",
            }
        )  # fmt: skip
    return [{key: value.item() if isinstance(value, np.generic) else value for key, value in cell.items()} for cell in cells]


def _analysis(kind: str, points: list[dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, Any]:
    if kind not in ("sweep", "device"):
        return {}
    paired = []
    for point in points:
        a, b = (
            np.array([float(row["metrics"]["accuracy"]) for row in rows if row["point"] == point["id"] and row["variant"] == name])
            for name in ("fisher-0.5%", "none")
        )
        difference = np.where(np.isfinite(b), a - b, a - 0.2)
        half = 2.2 * difference.std() / math.sqrt(len(difference))
        paired.append({
            "point": point["id"], "metric": "accuracy", "first": "fisher-0.5%", "second": "none", "trials": len(a),
            "mean": difference.mean().item(), "interval": {"low": (difference.mean() - half).item(), "high": (difference.mean() + half).item(), "confidence": 0.95, "method": "t"},
            "better": int((difference > 0).sum()), "equal": int((difference == 0).sum()), "worse": int((difference < 0).sum()), "sign_test": 0.0005, "variance_ratio": 0.4,
        })  # fmt: skip
    extra: dict[str, Any] = {
        "paired": paired,
        "attribution": {
            "text": "Regression of the loss in accuracy on the wrong bits left in each tensor, over all trials.",
            "tensors": [{"tensor": name, "share": 0.4 / (i + 1), "loss_per_bit": 1e-4 / (i + 1)} for i, name in enumerate(LAYERS[:6])],
            "bits": [{"bit": j, "share": 0.8 / (j + 1) ** 2} for j in (1, 2, 3, 0)],
        },
    }
    if kind == "sweep":
        extra["thresholds"] = [
            {"variant": "none", "metric": "accuracy", "increase": 0.05, "rate": 1e-5, "next_rate": 3e-5, "crossing": 1.23e-5, "limit": 0.13},
            {"variant": "fisher-0.5%", "metric": "accuracy", "increase": 0.05, "rate": 1e-3, "next_rate": 3e-3, "crossing": 1.51e-3, "limit": 0.13},
            {"variant": "ideal", "metric": "accuracy", "increase": 0.05, "rate": 1e-2, "next_rate": None, "crossing": None, "limit": 0.13},
        ]  # fmt: skip
        extra["verdict"] = {
            "outcome": "INCONCLUSIVE", "point": "p006", "variant": "fisher-0.5%", "trials": 12, "within": 12, "low": 0.78, "high": 1.0, "trials_needed": 47,
            "text": "not decided: 12 of 12 trials keep accuracy within -0.005 of clean; 47 more without a loss beyond it would pass",
        }  # fmt: skip
    else:
        extra["rates"] = {
            "variant": "fisher-0.5%", "label": "pe=1000,days=90", "failures": 0, "trials": 12, "hours": 2160, "devices": 100, "confidence": 0.95, "fit": 0.0, "fit_low": 0.0,
            "fit_high": 142000.0, "mean_hours": "inf", "mean_hours_low": 7040.0, "fleet_hours": 70.4,
            "assumptions": ["nand.mlc behaves as its profile at the stated operating point says", "stretches and devices fail independently"],
        }  # fmt: skip
    return extra
