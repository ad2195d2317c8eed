"""The figure of docs/results/mask-search.md, from its first table: `python -m reproductions.mask_figure`."""

from __future__ import annotations

from pathlib import Path

from ckptguard.report import figures, plots

PAGE = Path("docs/results/mask-search.md")
CLEAN = 85.8


def main() -> None:
    """Redundancy (with metadata, where it is charged) against accuracy, method by method."""
    series: dict[str, list[tuple[float, float, float, float]]] = {}
    section = PAGE.read_text(encoding="utf-8").split("\n## ")[1]
    for row in section.splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if not row.startswith("|") or not cells[2].startswith("0."):
            continue
        method, guard, plain, charged, drop, interval = cells[:6]
        name = method.partition(", top")[0] + {"none": "", "tensor": ", range guards"}.get(
            guard, f", {guard} restorers"
        )
        low, high = map(float, interval.split(" to "))
        cost = float(plain if charged == "-" else charged)
        series.setdefault(name, []).append((cost, CLEAN - float(drop), CLEAN - high, CLEAN - low))
    plot = plots.frontier(list(series.items()), y_label="accuracy, %", clean=CLEAN)
    figures.save(plot, PAGE.with_suffix(""), ("png",))


if __name__ == "__main__":
    main()
