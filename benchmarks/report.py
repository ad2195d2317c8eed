"""The table as text, Markdown, JSON and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import Peer, Row


def number(value: float) -> str:
    """Three figures, never in powers of ten."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.095 else f"{value:.2g}"


def _goal(row: Row) -> str:
    parts = []
    if row.goal is not None:
        parts.append(f"{'at most' if row.at_most else 'at least'} {row.goal:g} {row.unit}")
    parts += [f"{_times(peer.goal)} {peer.name}" for peer in row.peers if peer.goal is not None]
    return "; ".join(parts) or "-"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} x" if ratio >= 10 else f"{ratio:.2f} x"


def _peer(peer: Peer, unit: str) -> str:
    return f"{peer.name} {number(peer.rate)} {unit}: {number(peer.ratio)} x"


def _reached(row: Row) -> str:
    return {True: "yes", False: "**no**", None: "-"}[row.reached]


def markdown(rows: Sequence[Row]) -> str:
    """One table per group."""
    lines = []
    group = None
    for row in rows:
        if row.group != group:
            group = row.group
            lines += [
                "",
                f"## {group}",
                "",
                "| operation | goal | median (best) | reached | peers in the same rounds | bounded by | threads |",
                "|---|---|---|---|---|---|---|",
            ]
        shown = "; ".join(_peer(peer, row.unit) for peer in row.peers) or "-"
        operation = row.operation + (f" ({row.note})" if row.note else "")
        measured = f"{number(row.median)} ({number(row.best)}) {row.unit}"
        cells = (operation, _goal(row), measured, _reached(row), shown, row.bound or "-", str(row.threads))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def text(row: Row) -> str:
    """One line for the terminal."""
    reached = {True: "reached", False: "MISSED", None: ""}[row.reached]
    shown = "".join(f"\n      {_peer(peer, row.unit)}" for peer in row.peers)
    note = f"\n      {row.note}" if row.note else ""
    return (
        f"  {row.operation}: {number(row.median)} {row.unit} (best {number(row.best)}), goal {_goal(row)} {reached}"
        f"{shown}{note}\n      bound: {row.bound or '-'}"
    )


def record(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows for JSON."""
    return [asdict(row) | {"reached": row.reached} for row in rows]


def load(path: Path) -> list[Row]:
    """Rows of a JSON file written earlier."""
    return [
        Row(
            **{k: v for k, v in row.items() if k not in ("reached", "peers")},
            peers=tuple(Peer(**peer) for peer in row["peers"]),
        )
        for row in json.loads(path.read_text())["rows"]
    ]


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Every row with a goal: what was measured over what was wanted, on a logarithmic axis; the line is the goal."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars: list[tuple[str, float, bool]] = []
    for row in rows:
        if row.goal is not None:
            share = row.goal / row.median if row.at_most else row.median / row.goal
            bars.append((f"{row.operation}: {number(row.median)} {row.unit}", share, share >= 1))
        bars += [
            (f"{row.operation}: {number(peer.ratio)} x {peer.name}", peer.ratio / peer.goal, peer.reached)
            for peer in row.peers
            if peer.goal is not None
        ]
    bars.reverse()
    figure, axes = pyplot.subplots(figsize=(11, 0.23 * len(bars) + 1.2))
    colours = ["#2a7f62" if reached else "#c1502e" for _, _, reached in bars]
    shares = [share for _, share, _ in bars]
    axes.hlines(range(len(bars)), 1, shares, color=colours, linewidth=2.5)
    axes.scatter(shares, range(len(bars)), color=colours, s=26, zorder=3)
    axes.set_yticks(range(len(bars)), [bar[0] for bar in bars], fontsize=7.5)
    axes.set_ylim(-0.8, len(bars) - 0.2)
    axes.set_xscale("log")
    ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if min(shares) / 3 < tick]
    ticks = [tick for tick in ticks if tick < 3 * max(shares)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("measured over goal (right of the line: reached)")
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", linewidth=0.4)
    axes.set_axisbelow(True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    pyplot.close(figure)
