"""The same results however a campaign is run.

    python -m reproductions.same_results RUNS > docs/results/campaign-robustness.md

ResNet-20 with and without a code at three error rates: one worker, several, other backends, one that is killed in the
middle and resumed, and parts that are merged. RUNS receives a folder per run; those that are there already are removed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import describe
from reproductions import data

ROOT = Path(__file__).resolve().parents[1]
CODE = "SEC-DED of exponent and sign"
TRIALS, RATES = 16, "1e-6,1e-5,1e-4"
ASKED = (
    "--ber", RATES, "--trials", str(TRIALS), "--limit", "accuracy=-1", "--no-report", "-q",
    "--variant", "name=none", "--variant", f"name={CODE};masks=top:9;code=secded:72,64",
    "--eval", "classification:model=reproductions/networks.py:resnet20,strip=module.,"
    "data=reproductions/data.py:resnet20_images,limit=200",
)  # fmt: skip
WAYS = (
    ("1 process", ("--jobs", "1")),
    ("2 processes", ("--jobs", "2")),
    ("4 processes", ("--jobs", "4")),
    ("2 threads", ("--jobs", "2", "--backend", "threading")),
    ("Ray, 2 workers", ("--jobs", "2", "--backend", "ray")),
    ("Dask, 2 workers", ("--jobs", "2", "--backend", "dask")),
)
FILES = ("results.jsonl", "summary.csv")


class Runs:
    """Runs of the campaign, each in its folder, and a row of the table for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[str] = []
        self.digests: set[tuple[str, ...]] = set()

    def place(self, name: str) -> Path:
        """An unused folder."""
        found = self.folder / f"same-{''.join(c if c.isalnum() else '-' for c in name.lower())}"
        shutil.rmtree(found, ignore_errors=True)
        return found

    def command(self, folder: Path, options: Sequence[str]) -> list[str]:
        """`ckptguard sweep` into a folder."""
        model = data.folder() / "resnet20-12fca82f.th"
        return [sys.executable, "-m", "ckptguard", "sweep", str(model), "-o", str(folder), *ASKED, *options]

    def run(self, folder: Path, options: Sequence[str]) -> None:
        """To its end; 14 is the exit status of a limit that is not kept."""
        _finish(subprocess.run(self.command(folder, options), cwd=ROOT, env=_environment(), check=False).returncode)

    def kill(self, folder: Path, options: Sequence[str], after: int) -> int:
        """SIGKILL to the run and its workers after so many lines of the journal. Returns how many there are."""
        process = subprocess.Popen(self.command(folder, options), cwd=ROOT, env=_environment(), start_new_session=True)
        journal = folder / "journal.jsonl"
        while not (journal.exists() and journal.read_bytes().count(b"\n") >= after):
            if process.poll() is not None:
                raise RuntimeError(f"the run ended with status {process.returncode} before it could be killed")
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if any((folder / name).exists() for name in FILES):
            raise RuntimeError(f"{folder}: the run was finished before it could be killed")
        return journal.read_bytes().count(b"\n")

    def record(self, how: str, folder: Path, seconds: float) -> None:
        """Add a row."""
        digests = tuple(hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES)
        self.digests.add(digests)
        self.rows.append(f"| {how} | {' | '.join(f'`{digest[:16]}`' for digest in digests)} | {seconds:.0f} |")


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CKPTGUARD_DATA": str(data.folder().resolve())}


def _finish(status: int) -> None:
    if status not in (0, 14):
        raise RuntimeError(f"a run ended with status {status}")


def main() -> None:
    """Run all and print the page."""
    runs = Runs(Path(sys.argv[1]))
    runs.folder.mkdir(parents=True, exist_ok=True)
    for how, options in WAYS:
        folder, begin = runs.place(how), time.perf_counter()
        runs.run(folder, options)
        runs.record(how, folder, time.perf_counter() - begin)
    for jobs, after in (("1", 20), ("2", 50)):
        folder, begin = runs.place(f"killed {jobs}"), time.perf_counter()
        kept = runs.kill(folder, ("--jobs", jobs), after)
        runs.run(folder, ("--jobs", jobs, "--resume"))
        how = f"killed (SIGKILL) with {kept} rows, resumed; {jobs} process{'es' if jobs > '1' else ''}"
        runs.record(how, folder, time.perf_counter() - begin)
    begin = time.perf_counter()
    parts = [runs.place(f"part {i}") for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        runs.run(part, ("--jobs", "1", "--part", f"{i}/2"))
    merged = runs.place("merged")
    command = [sys.executable, "-m", "ckptguard", "merge", *map(str, parts), "-o", str(merged), "--no-report", "-q"]
    _finish(subprocess.run(command, cwd=ROOT, env=_environment(), check=False).returncode)
    runs.record("two parts, merged", merged, time.perf_counter() - begin)
    _page(runs)
    if len(runs.digests) != 1:
        raise SystemExit("the results differ")


def _page(runs: Runs) -> None:
    facts = describe()
    load, rates = facts["load_average"][0], len(RATES.split(","))
    count = len(next(iter(runs.folder.glob("same-1-process/results.jsonl"))).read_bytes().splitlines())
    same = "All are the same bytes" if len(runs.digests) == 1 else "THEY DIFFER"
    options = " ".join(f"'{one}'" if {" ", ";"} & set(one) else one for one in ASKED)
    print(f"""# However a campaign is run, its results are the same

`python -m reproductions.same_results RUNS`, commit {facts["commit"]}, {facts["processor"]},
{facts["threads"]} cores shared with other work (load average {load} at the end): seconds are upper bounds.
ResNet-20 (published weights), 200 test images, two variants, {rates} error rates, {TRIALS} trials each: {count} rows,
every time by

    ckptguard sweep resnet20-12fca82f.th {options}

{same}: the first 16 digits of SHA-256.

| how | results.jsonl | summary.csv | seconds |
|---|---|---|---|""")
    print("\n".join(runs.rows))
    print("""
Killed runs had written neither file; the journal's last line may be torn and is then dropped. Metrics are sums of
floating-point numbers, whose rounding depends on how many threads share them: every worker has one (`--threads 1`)
whatever the number of workers. Another number of threads is another campaign, and `--resume` refuses it.""")


if __name__ == "__main__":
    main()
