"""demo: a small real classifier, ruined by bit errors and brought back."""

from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptguard.cli import options
from ckptguard.cli.output import Output, write
from ckptguard.errors import MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ckptguard.pipeline.inspect import Summary
    from ckptguard.pipeline.reports import Report
    from ckptguard.pipeline.verify import Verification

BITS = 9
CODE = "bch:8191,6722"
BIT_ERROR_RATE = "1e-2"
SEED = 7
HIDDEN_LAYERS = (512, 256)
EPOCHS = 12
TEST_SHARE = 3
"""One image in so many is kept for the test."""


@click.command(short_help="Ruin a small classifier and bring it back.")
@click.option(
    "-o", "--output", "folder", type=options.FILE, default=Path("demo"), show_default=True, help="Where the files go."
)
@options.jobs
@options.prints
def demo(output: Output, *, folder: Path, jobs: int | None) -> int:
    """Train a small classifier, protect it, flip 1 % of all stored bits, and bring it back.

    Handwritten digits and training come from scikit-learn (extra `demo`). Every number printed is measured.
    """
    import ckptguard

    model, container, worn = folder / "model.safetensors", folder / "model.ckg", folder / "worn.ckg"
    healed, restored, task = folder / "healed.ckg", folder / "restored.safetensors", folder / "digits.py"
    start = time.perf_counter()
    parameters = _train(folder, model, task)
    _say(output, f"trained on handwritten digits: {parameters:,} parameters, {time.perf_counter() - start:.1f} s")

    _show(output, "protect", model, "-o", container, "--bits", BITS, "--code", CODE)
    ckptguard.protect(model, container, bits=BITS, code=CODE, overwrite=True, jobs=jobs)
    _show(output, "corrupt", container, "-o", worn, "--ber", BIT_ERROR_RATE, "--seed", SEED)
    flips = ckptguard.corrupt(container, worn, channel=f"bsc:{BIT_ERROR_RATE}", seed=SEED, overwrite=True, jobs=jobs)
    _show(output, "repair", worn, "-o", healed)
    report = ckptguard.repair(worn, healed, overwrite=True, jobs=jobs)
    _show(output, "restore", worn, "-o", restored)
    ckptguard.restore(worn, restored, overwrite=True, jobs=jobs)
    _show(output, "verify", worn, "--against", model, "--eval", f"{task}:evaluate", "--framework", "np")
    verification = ckptguard.verify(worn, model, evaluator=f"{task}:evaluate", framework="np", jobs=jobs)

    summary = ckptguard.inspect(container)
    record = _record(summary, flips[0].rises + flips[0].falls, flips[0].bits, report, verification)
    record["accuracy"]["repaired"] = _evaluate(restored, task)["accuracy"]
    head = {"command": "demo", "exit_status": 0, "output": str(folder), "parameters": parameters}
    output.result(head | record, lambda: _text(record))
    return 0


def _train(folder: Path, model: Path, task: Path) -> int:
    """Write model, test images and evaluator; returns the number of parameters."""
    import numpy as np
    from safetensors.numpy import save_file

    images, labels = _digits()
    test = np.arange(len(labels)) % TEST_SHARE == 0
    tensors = _fit(images[~test], labels[~test])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, model)
    np.savez(folder / "digits-test.npz", images=images[test], labels=labels[test])
    shutil.copyfile(Path(__file__).with_name("digits.py"), task)
    return sum(tensor.size for tensor in tensors.values())


def _digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """(1797, 64) images of 8x8 pixels, 0..1, and their digits."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("the demo needs scikit-learn: pip install 'ckptguard[demo]'") from error
    import numpy as np

    digits = load_digits()
    return (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)


def _fit(images: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float32]]:
    """Weights and biases of a trained network, as `digits.forward` takes them."""
    import numpy as np
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier(HIDDEN_LAYERS, random_state=0, max_iter=EPOCHS, learning_rate_init=2e-3)
    for _ in range(EPOCHS):
        network.partial_fit(images, labels, classes=np.arange(10))
    tensors = {}
    for layer, (weight, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        tensors[f"{layer}.weight"] = np.ascontiguousarray(weight.T, np.float32)
        tensors[f"{layer}.bias"] = np.ascontiguousarray(bias, np.float32)
    return tensors


def _evaluate(model: Path, task: Path) -> dict[str, float]:
    """Metrics of a safetensors file, read by the reference library."""
    from safetensors.numpy import load_file

    from ckptguard.evaluate.user import evaluate, load_object

    return evaluate(load_object(f"{task}:evaluate"), load_file(model))


def _record(summary: Summary, flips: int, bits: int, report: Report, verification: Verification) -> dict[str, Any]:
    shard = report.shards[0]
    return {
        "accuracy": {
            "clean": verification.metrics["clean"]["accuracy"],
            "unprotected": verification.metrics["unprotected"]["accuracy"],
        },
        "not_finite": verification.metrics["unprotected"]["not_finite"],
        "flipped_bits": flips,
        "stored_bits": bits,
        "redundancy": summary.redundancy,
        "overhead": summary.overhead,
        "codewords": shard.codewords,
        "corrected_codewords": shard.corrected_codewords,
        "uncorrectable_codewords": shard.uncorrectable_codewords,
        "corrected_bits": shard.corrected_bits,
        "corrected_metadata_bits": shard.metadata.flipped_bits if shard.metadata else 0,
        "lost": [tensor.name for tensor in report.lost],
    }


def _text(record: dict[str, Any]) -> str:
    from ckptguard.report import numbers
    from ckptguard.report.table import pairs, table

    accuracy = record["accuracy"]
    broken = numbers.percent(record["not_finite"], 0)
    rows = [
        ("clean", numbers.percent(accuracy["clean"])),
        ("corrupted, without protection", numbers.percent(accuracy["unprotected"])),
        ("corrupted, after repair", numbers.percent(accuracy["repaired"])),
    ]
    share = numbers.percent(record["flipped_bits"] / record["stored_bits"])
    facts = [
        ("without it", f"{broken} of the images get scores that are NaN or infinite, which count as wrong"),
        ("flipped", f"{record['flipped_bits']:,} of {record['stored_bits']:,} stored bits ({share})"),
        (
            "codewords",
            f"{record['codewords']:,} in all, {record['corrected_codewords']:,} corrected, "
            f"{record['uncorrectable_codewords']:,} uncorrectable",
        ),
        ("corrected", f"{record['corrected_bits']:,} bits, and {record['corrected_metadata_bits']:,} of the metadata"),
        ("redundancy r", f"{record['redundancy']:.4f} ({CODE} over the top {BITS} of 32 bits)"),
        ("overhead", f"{numbers.percent(record['overhead'])} of the file size"),
    ]
    return f"\n{table(('model', 'accuracy'), rows)}\n\n{pairs(facts)}"


def _show(output: Output, *words: object) -> None:
    """Show the shell command that does what comes next."""
    _say(output, f"$ ckptguard {shlex.join(map(str, words))}")


def _say(output: Output, text: str) -> None:
    if not output.json and not output.quiet:
        write(text)
