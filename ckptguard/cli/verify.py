"""verify: what a damaged container's model is worth."""

from __future__ import annotations

from pathlib import Path

import click

from ckptguard.cli import options
from ckptguard.cli.output import Output


@click.command(short_help="Compare a container with the original.")
@click.argument("container", type=options.FILE)
@click.option("--against", type=options.FILE, required=True, help="The checkpoint that the container was made from.")
@click.option(
    "--eval",
    "evaluator",
    metavar="SPEC",
    help="What scores the model: FILE.py:FUNCTION of the state dict, or classification:..., logits:..., perplexity:...",
)
@options.framework
@options.policy
@options.guard
@options.estimate
@options.select
@options.jobs
@options.prints
def verify(
    output: Output,
    *,
    container: Path,
    against: Path,
    evaluator: str | None,
    framework: str,
    policy: str,
    guard: str,
    estimate: str,
    select: str | None,
    jobs: int | None,
) -> int:
    """Compare CONTAINER with the original: bits and values per tensor, and metrics if asked.

    Metrics are taken of the original (clean), of the stored bytes without any decoding (unprotected), after decoding
    (decoded), and, where the container has range guards, after these too (guarded), and, where it has posterior
    restorers, after these (estimated).

    Exit status: 0 if every protected bit is exact, 11 if some are lost, 13 if the original is of another model.
    """
    from ckptguard.pipeline.verify import verify as run
    from ckptguard.report import verification

    result = run(
        container,
        against,
        evaluator=evaluator,
        framework=framework,
        policy=policy,
        guard=guard == "on",
        estimate=estimate == "on",
        select=select,
        jobs=jobs,
        progress=output.progress,
    )
    status = verification.status(result)
    record = {"command": "verify", "exit_status": status, "container": str(container), "against": str(against)}
    record |= {"verdict": verification.verdict(result)}
    output.result(record | result.to_json(), lambda: verification.text(container, against, result))
    return status
