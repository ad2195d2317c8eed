"""`make benchmark`: measure what is asked for, print it beside the goals, and keep it under docs/results."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import channels, codes, commands, gather, growth, load, machine, peers, report, scaling, secded, startup
from benchmarks.machine import ROOT, Limits
from benchmarks.measure import Row

RESULTS = ROOT / "docs" / "results"

GROUPS: dict[str, Callable[[Limits], Iterable[Row]]] = {
    "codes": codes.rows,
    "secded": secded.rows,
    "gather": gather.rows,
    "channels": channels.rows,
    "load": lambda limits: load.rows(limits, sizes=(512 << 20, 4 << 30)),
    "commands": commands.rows,
    "growth": growth.rows,
    "startup": startup.rows,
    "scaling": scaling.rows,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; 0 whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"any of {', '.join(GROUPS)}; default: all")
    parser.add_argument("--name", help="of the machine, in the names of the files; default: after its processor")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the results go (default: docs/results)")
    parser.add_argument("--keep", action="store_true", help="keep the rows of an earlier run that are not measured now")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.groups) - set(GROUPS))
    if unknown:
        parser.error(f"unknown group {unknown[0]!r}; known: {', '.join(GROUPS)}")
    facts = machine.describe()
    limits = Limits()
    print(json.dumps(facts | {"limits": limits.to_json()}, indent=2))
    started = time.time()
    rows: list[Row] = []
    for name, measure in GROUPS.items():
        if not given.groups or name in given.groups:
            print(f"\n{name}", flush=True)
            for row in measure(limits):
                print(report.text(row), flush=True)
                rows.append(row)
    command = " ".join(["python -m benchmarks.table", *(sys.argv[1:] if arguments is None else arguments)])
    name = given.name or machine.slug(facts)
    about = {
        "command": command,
        "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(started)),
        "machine": facts,
        "limits": limits.to_json(),
        "peers not found": dict(peers.missing),
    }
    _write(given.folder / f"benchmarks-{name}", about, rows, given.keep)
    return 0


def _write(base: Path, about: dict[str, Any], rows: list[Row], keep: bool) -> None:
    """The Markdown, the JSON and the plot of a run."""
    base.parent.mkdir(parents=True, exist_ok=True)
    stored = base.with_suffix(".json")
    if keep and stored.exists():
        fresh = {row.group for row in rows}
        earlier = report.load(stored)
        order = list(dict.fromkeys([row.group for row in earlier] + [row.group for row in rows]))
        rows = sorted([row for row in earlier if row.group not in fresh] + rows, key=lambda row: order.index(row.group))
    stored.write_text(json.dumps(about | {"rows": report.record(rows)}, indent=1) + "\n")
    base.with_suffix(".md").write_text(_document(about, rows, base.name))
    facts = about["machine"]
    report.plot(
        rows, f"{facts['processor']}, {facts['threads']} threads, commit {facts['commit']}", base.with_suffix(".png")
    )
    print(f"\nwritten: {base}.md, .json, .png")


def _document(about: dict[str, Any], rows: list[Row], image: str) -> str:
    facts, limits = about["machine"], about["limits"]
    lines = [
        f"# Speeds on {facts['processor']}, {facts['threads']} threads",
        "",
        f"Command: `{about['command']}`. Commit {facts['commit']}, {about['started']}. "
        f"{facts['system']}, Python {facts['python']}, "
        + ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
        + ".",
        "",
        f"Processor: family {facts['family']}, model {facts['model']}, caches "
        + ", ".join(f"{name} {size}" for name, size in facts["caches"].items())
        + f"; {facts['memory_gib']} GiB of memory; {', '.join(facts['flags'])}. "
        f"Load average when the run began: {facts['load_average'][0]}.",
        "",
        "Measured in this run, one thread: "
        + "; ".join(f"{name}: {value:.2f}" for name, value in limits.items())
        + ".",
        "",
        "Contenders of a row were timed in turn, round after round; ratios are medians of the ratios of a round. "
        "GB/s are 10^9 bytes of information (codes), of data (SEC-DED), of float32 (gather), of the file (channels, "
        "load) per second. Figures on one thread are CPU time of the thread; loads and commands are on the clock.",
        "",
        *[f"Not found: {name} ({purpose})." for name, purpose in about["peers not found"].items()],
        "",
        f"![measured over goal]({image}.png)",
    ]
    return "\n".join(lines) + "\n" + report.markdown(rows)


if __name__ == "__main__":
    sys.exit(main())
