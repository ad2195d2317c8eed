"""A campaign from its plan to its results: checks, trials, analysis."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ckptguard import __version__
from ckptguard.campaign import checks, worker
from ckptguard.campaign.backends import Pool, fixed_threads
from ckptguard.campaign.design import (
    DEFAULT_TRIALS,
    MAX_TRIALS,
    Point,
    Stop,
    encodings,
    file_digests,
    name_of,
    refuse_equal_names,
)
from ckptguard.campaign.engine import Engine, Part, Rule
from ckptguard.campaign.journal import Journal
from ckptguard.campaign.metrics import Metric, describe_all, require
from ckptguard.campaign.record import CAMPAIGN, FORMAT, VERSION, Run, as_bytes, digest_of, finish, load_campaign
from ckptguard.campaign.results import Clean, as_json
from ckptguard.campaign.subject import Subject
from ckptguard.campaign.variants import Variant
from ckptguard.campaign.verdict import Limit
from ckptguard.errors import MismatchError, UsageError
from ckptguard.files import atomic_folder
from ckptguard.pipeline import work as progress_of


@dataclass(frozen=True)
class Plan:
    """A campaign, as it was asked for.

    Attributes:
        points: faults, each at a place.
        variants: encodings and protections; the first is what the others are compared with.
        judged: names of the variants that the verdict is about.
        evaluator: as `evaluate.session.open_session` takes it.
        metric: the main one; None for the evaluator's first.
        trials: of every point; with `stop` the most.
        ranges, directions: see `metrics.describe_all`.
        threads: of torch and BLAS in every worker.
        fleet: devices, for the time to the first failure among them.
        decoder: `exact`, or `sampled`: codewords that fail are drawn, not decoded; see `Prepared.trial`.
        golden: whether every variant is written as a container, restored and compared.
    """

    points: tuple[Point, ...]
    variants: tuple[Variant, ...]
    evaluator: str | Callable[..., Any] | object
    judged: tuple[str, ...] = ()
    metric: str | None = None
    trials: int | None = None
    seed: int = 0
    stop: Stop | None = None
    limit: Limit | None = None
    share: float = 0.95
    confidence: float = 0.95
    ranges: tuple[str, ...] = ()
    directions: tuple[str, ...] = ()
    framework: str = "pt"
    threads: int = 1
    fleet: int = 1
    golden: bool = True
    decoder: str = "exact"

    def __post_init__(self) -> None:
        if not self.points:
            raise UsageError("a campaign has at least one point; give error rates, faults or a device")
        if not self.variants:
            raise UsageError("a campaign has at least one variant")
        refuse_equal_names(self.variants)
        for name in self.judged:
            require_variant(name, [variant.name for variant in self.variants])
        if self.trials is not None and self.trials < 1:
            raise UsageError(f"a point has at least one trial, not {self.trials}")
        if self.threads < 1:
            raise UsageError(f"a worker has at least one thread, not {self.threads}")
        if self.stop is not None and self.stop.rule == "verdict" and self.limit is None:
            raise UsageError("--until verdict needs a --limit to judge, such as --limit accuracy=-0.5")

    @property
    def most_trials(self) -> int:
        """Of every point."""
        return self.trials or (DEFAULT_TRIALS if self.stop is None else MAX_TRIALS)

    @property
    def evaluator_name(self) -> str:
        """Its spec, or the name of the object."""
        return name_of(self.evaluator)

    def identity(self, subject: Subject) -> dict[str, Any]:
        """What decides a row. Runs with equal identity may be mixed: resumed, merged."""
        files = file_digests(self.evaluator) if isinstance(self.evaluator, str) else {}
        return {
            "subject": subject.digest,
            "points": [point.to_json() for point in self.points],
            "variants": [variant.to_json() for variant in self.variants],
            "evaluator": self.evaluator_name,
            "evaluator_files": files,
            "framework": self.framework,
            "threads": self.threads,
            "decoder": self.decoder,
            "seed": self.seed,
        }


def run(
    subject: Path | str | Subject,
    output: Path | str,
    plan: Plan,
    *,
    opened: Subject | None = None,
    select: str | None = None,
    jobs: int | None = None,
    backend: str | None = None,
    part: Part | None = None,
    resume: bool = False,
    command: Sequence[str] = (),
    progress: progress_of.Progress = progress_of.silent,
    note: Callable[[str], None] = lambda text: None,
) -> Run:
    """Run a campaign, or what is left of it, and write its folder.

    Args:
        subject: a path that every worker can read, or an open subject, which is sent to the workers.
        opened: the subject of that path, where it is open already.
        output: a folder that does not exist, or with `resume` that of the same campaign.
        jobs, backend: see `backends.Pool`.
        part: do only a share of the trials; `merge` puts the folders of all parts together.
        note: told what a reader should know.

    Raises:
        UsageError: the folder exists, or the request makes no sense.
        MismatchError: the folder is that of another campaign.
        CheckError: the null check, the golden check or the flip-count check failed.
    """
    folder = Path(output)
    _check_folder(folder, resume)
    if part is not None and plan.stop is not None:
        raise UsageError("--part and --until exclude each other: one part does not see the trials that decide")
    if opened is None:
        opened = subject if isinstance(subject, Subject) else Subject.open(subject, select)
    identity = plan.identity(opened)
    work = worker.Work(
        digest_of(identity),
        plan.variants,
        plan.points,
        plan.evaluator,
        plan.framework,
        plan.threads,
        plan.seed,
        plan.decoder,
    )
    if folder.exists():
        _refuse_other(folder, identity, part)
    place = opened if isinstance(subject, Subject) else str(Path(subject).resolve())
    packed = worker.Packed.pack(work, place, select)
    try:
        with fixed_threads(plan.threads), Pool(jobs, backend) as pool:
            return _run(opened, folder, plan, identity, work, packed, pool, part, command, progress, note)
    finally:
        worker.forget()


def _run(
    subject: Subject,
    folder: Path,
    plan: Plan,
    identity: Mapping[str, Any],
    work: worker.Work,
    packed: worker.Packed,
    pool: Pool,
    part: Part | None,
    command: Sequence[str],
    progress: progress_of.Progress,
    note: Callable[[str], None],
) -> Run:
    started = _begin(pool, packed, plan, progress)
    clean: Clean = {
        variant.name: start.clean
        for start, group in zip(started, encodings(plan.variants), strict=True)
        for variant in (plan.variants[index] for index in group)
    }
    metrics = describe_all(clean, plan.ranges, plan.directions)
    rule = _rule(plan, metrics)
    record = _record(subject, plan, identity, clean, metrics, rule, started, part) | {"command": list(command)}
    for name, said in record["checks"]["golden"].items():
        if said.startswith("skipped"):
            note(f"golden check of variant {name!r} {said}")
    if folder.exists():
        _refuse_other_clean(folder, clean)
    else:
        with atomic_folder(folder) as new:
            (new / CAMPAIGN).write_bytes(as_bytes(record))
    with Journal(folder) as journal:
        engine = Engine(packed, work, clean, pool, journal, progress)
        trials = engine.run(rule, part)
        record["run"] = {
            "jobs": pool.jobs,
            "backend": pool.backend,
            "trials": engine.trials_done,
            "evaluations": engine.evaluations,
            "seconds": engine.elapsed,
            "worker_seconds": engine.seconds,
        }
        return finish(folder, record, journal.rows, trials)


def _begin(pool: Pool, packed: worker.Packed, plan: Plan, progress: progress_of.Progress) -> list[checks.Start]:
    """Null and golden checks of every encoding; see `checks.begin`."""
    count = len(encodings(plan.variants))
    found: dict[int, checks.Start] = {}
    for done, (index, start) in enumerate(pool.map(_begin_one, [(packed, i, plan.golden) for i in range(count)]), 1):
        found[index] = start
        progress("checks", done, count)
    return [found[index] for index in range(count)]


def _begin_one(task: tuple[worker.Packed, int, bool]) -> tuple[int, checks.Start]:
    return task[1], checks.begin(task)


def _rule(plan: Plan, metrics: Mapping[str, Metric]) -> Rule:
    main = require(plan.metric, metrics, "--metric") if plan.metric is not None else next(iter(metrics))
    if plan.limit is not None:
        require(plan.limit.metric, metrics, "--limit")
        if (
            plan.limit.higher_is_better != metrics[plan.limit.metric].higher_is_better
            and metrics[plan.limit.metric].known
        ):
            better, sign = ("higher", "-") if metrics[plan.limit.metric].higher_is_better else ("lower", "+")
            raise UsageError(
                f"--limit {plan.limit.metric}={plan.limit.change:+g}: of this metric {better} is better, so a loss is "
                f"{plan.limit.metric}={sign}{abs(plan.limit.change):g}; --direction changes what is better"
            )
    watched = _watched(plan, main)
    if watched is not None and metrics[watched].bounds is None:
        raise UsageError(
            f"--until {plan.stop}: the range of {watched!r} is not known, and a mean that is watched needs it; give "
            f"--range {watched}=LOW:HIGH"
        )
    judged = plan.judged or (plan.variants[0].name,)
    return Rule(plan.most_trials, plan.stop, metrics[main], plan.limit, judged[0], plan.confidence)


def _watched(plan: Plan, main: str) -> str | None:
    """The metric whose mean decides when to stop, if one does."""
    if plan.stop is None:
        return None
    if plan.stop.rule == "halfwidth":
        return main
    return plan.limit.metric if plan.limit is not None and plan.limit.claim == "mean" else None


def _record(
    subject: Subject,
    plan: Plan,
    identity: Mapping[str, Any],
    clean: Clean,
    metrics: Mapping[str, Metric],
    rule: Rule,
    started: Sequence[checks.Start],
    part: Part | None,
) -> dict[str, Any]:
    """campaign.json before there is a trial."""
    versions = {}
    for name in ("numpy", "scipy", "joblib", "torch"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    tensors = {name: {"dtype": t.dtype.name, "shape": list(t.shape)} for name, t in subject.tensors.items()}
    bits = sum(tensor.elements * tensor.dtype.word_bits for tensor in subject.tensors.values())
    return {
        "format": FORMAT,
        "version": VERSION,
        "tool": f"ckptguard {__version__}",
        "identity": {"digest": digest_of(identity), "python": platform.python_version(), "machine": platform.machine()}
        | {"versions": versions, "evaluator_files": identity["evaluator_files"]},
        "subject": {"name": subject.name, "digest": subject.digest, "bits": bits, "tensors": tensors},
        "points": identity["points"],
        "variants": identity["variants"],
        "redundancy": {name: value for start in started for name, value in start.redundancy.items()},
        "judged": list(plan.judged or (plan.variants[0].name,)),
        "evaluator": plan.evaluator_name,
        "framework": plan.framework,
        "threads": plan.threads,
        "decoder": plan.decoder,
        "seed": plan.seed,
        "trials": rule.trials,
        "until": None if plan.stop is None else str(plan.stop),
        "limit": None if plan.limit is None else asdict(plan.limit),
        "share": plan.share,
        "confidence": plan.confidence,
        "fleet": plan.fleet,
        "metric": rule.metric.name,
        "metrics": {name: metric.to_json() for name, metric in metrics.items()},
        "clean": {name: {key: as_json(value) for key, value in found.items()} for name, found in clean.items()},
        "part": None if part is None else str(part),
        "checks": {
            "null": "passed",
            "golden": {name: said for start in started for name, said in start.golden.items()},
            "planes": {name: found for start in started for name, found in start.planes.items()},
        },
        "analysis": {},
    }


def require_variant(name: str, known: Iterable[str]) -> None:
    """Refuse a name that no variant has."""
    names = list(known)
    if name not in names:
        raise UsageError(f"--judge {name!r}: there is no such variant; there are {', '.join(names)}")


def _check_folder(folder: Path, resume: bool) -> None:
    if not folder.parent.is_dir():
        raise UsageError(f"{folder}: the folder {folder.parent} does not exist; create it first")
    if folder.exists() and not resume:
        raise UsageError(f"{folder}: exists already; give --resume to go on with it, or choose another name")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; the run of a campaign is a folder")


def _refuse_other(folder: Path, identity: Mapping[str, Any], part: Part | None) -> None:
    """Refuse to go on with a folder whose rows were made under other conditions; says which."""
    before = load_campaign(folder)
    if before["identity"]["digest"] != digest_of(identity):
        now = {key: value for key, value in identity.items() if key not in ("subject",)}
        was = {key: before.get(key) for key in now} | {"evaluator_files": before["identity"].get("evaluator_files")}
        different = [key.replace("_", " ") for key in now if _plain(now[key]) != was[key]]
        if before["subject"]["digest"] != identity["subject"]:
            different.insert(0, "subject")
        raise MismatchError(
            f"{folder}: is another campaign; different: {', '.join(different) or 'its digest'}. Give the options of "
            "before, or another folder"
        )
    if before["part"] != (None if part is None else str(part)):
        raise MismatchError(f"{folder}: is part {before['part'] or '1/1'} of its campaign, not {part or '1/1'}")


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _refuse_other_clean(folder: Path, clean: Clean) -> None:
    before = load_campaign(folder)["clean"]
    for name, metrics in clean.items():
        was = {key: float(value) for key, value in before[name].items()}
        if not worker.same(metrics, was):
            raise MismatchError(
                f"{folder}: the undamaged model ({name}) scored {was} before and scores {dict(metrics)} now; the data, "
                "a library or the machine changed, so old and new trials cannot be mixed"
            )
