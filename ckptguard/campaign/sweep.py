"""sweep: what faults cost a model, from a request in the words of a user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ckptguard.campaign import design, variant_text
from ckptguard.campaign.engine import Part
from ckptguard.campaign.places import Places
from ckptguard.campaign.record import Run
from ckptguard.campaign.running import Plan, run
from ckptguard.campaign.subject import Subject
from ckptguard.campaign.variants import Variant
from ckptguard.campaign.verdict import Limit
from ckptguard.devices import Device, DeviceMap
from ckptguard.evaluate.session import TensorSpec, open_session
from ckptguard.masks import MaskSet
from ckptguard.pipeline.work import Progress, silent


def sweep(
    subject: Path | str | Subject,
    output: Path | str,
    *,
    evaluator: str | Callable[..., Any] | object,
    ber: str | Sequence[float] | None = None,
    faults: Sequence[str] = (),
    devices: Sequence[tuple[str, Device]] = (),
    device_map: DeviceMap | Path | str | None = None,
    trials: int | None = None,
    metric: str | None = None,
    tensors: Sequence[str] = (),
    layer_types: Sequence[str] = (),
    bits: str | None = None,
    fields: Sequence[str] = (),
    per: str | None = None,
    per_bit: bool = False,
    variants: Sequence[Variant | str] = (),
    masks: MaskSet | str | None = None,
    code: str | None = None,
    representations: Sequence[str] = (),
    policies: Sequence[str] = (),
    guard: str | bool | None = None,
    controls: bool = False,
    judged: Sequence[str] = (),
    limit: str | None = None,
    claim: str = "share",
    until: str | None = None,
    share: float = 0.95,
    confidence: float = 0.95,
    ranges: Sequence[str] = (),
    directions: Sequence[str] = (),
    fleet: int = 1,
    seed: int = 0,
    framework: str = "pt",
    threads: int = 1,
    golden: bool = True,
    decoder: str = "exact",
    select: str | None = None,
    jobs: int | None = None,
    backend: str | None = None,
    part: str | None = None,
    resume: bool = False,
    command: Sequence[str] = (),
    progress: Progress = silent,
    note: Callable[[str], None] = lambda text: None,
) -> Run:
    """Damage a model many times, evaluate it, and write what that says into a folder.

    A model is never written while this runs: flips are drawn sparsely, decoded by the real code, applied to the loaded
    weights, evaluated, taken back. All variants meet the same flips. Results do not depend on `jobs` or `backend`.

    Args:
        subject: a checkpoint, a container, or an open `Subject`.
        output: the folder of the run.
        evaluator: a spec (`file.py:function`, `classification:...`), a function of the state dict, ...
        ber: `LO:HI[:N]`, `a,b,c` or numbers: every stored bit flips with such a probability.
        faults: specs such as `flips:10`, `stuck1:1e-4`, `asymmetric:1e-3,1e-5`.
        devices: labels with devices at an operating point, one point each.
        device_map: every tensor on its device, all one point. A container's own devices count where no faults are
            given at all.
        tensors, layer_types, bits, fields: what may be hit: globs of names, classes of layers, positions such as `0-8`
            (0 = most significant), `sign`, `exponent`, `fraction`.
        per: `layer` or `tensor`: each by itself. per_bit: each position by itself.
        variants: what to compare, objects or texts; see `variant_text.parse_variant`. Without them one per
            representation and policy of `masks` and `code`; without those what the container is, or no protection.
        guard: range guards of those, as `protect` takes them; True is `tensor`.
        controls: see `variant_text.controls`.
        judged: names of the variants that the verdict is about; default: the first.
        limit: `accuracy=-0.5`, judged by `claim`; see `verdict.Limit`.
        until: `halfwidth=0.5` or `verdict`: stop a point early; `trials` is then the most.
        decoder: `exact`, or `sampled`: of long BCH codes only the codewords that fail are drawn, in distribution.
        command: recorded in campaign.json.

    Raises:
        UsageError, SpecError, MaskError: the request cannot be met.
        MismatchError: with `resume`, the folder is that of another campaign.
        CheckError: the null, golden or flip-count check failed.
    """
    places = Places(tuple(tensors), tuple(layer_types), bits, tuple(fields), per, per_bit)
    opened = subject if isinstance(subject, Subject) else Subject.open(subject, select)
    found = _variants(opened, variants, masks, code, representations, policies, guard)
    if controls:
        found += variant_text.controls(found)
    sources = _sources(opened, ber, faults, devices, device_map)
    points = places.points(opened, found, sources, lambda: _layer_types(opened, evaluator, framework, threads))
    plan = Plan(
        points,
        tuple(found),
        evaluator,
        judged=tuple(judged),
        metric=metric,
        trials=trials,
        seed=seed,
        stop=None if until is None else design.Stop.parse(until),
        limit=None if limit is None else Limit.parse(limit, claim, share, confidence),
        share=share,
        confidence=confidence,
        ranges=tuple(ranges),
        directions=tuple(directions),
        framework=framework,
        threads=threads,
        fleet=fleet,
        golden=golden,
        decoder=decoder,
    )
    return run(
        subject,
        output,
        plan,
        opened=opened,
        select=select,
        jobs=jobs,
        backend=backend,
        part=None if part is None else Part.parse(part),
        resume=resume,
        command=command,
        progress=progress,
        note=note,
    )


def _variants(
    subject: Subject,
    given: Sequence[Variant | str],
    masks: MaskSet | str | None,
    code: str | None,
    representations: Sequence[str],
    policies: Sequence[str],
    guard: str | bool | None,
) -> list[Variant]:
    shorthand = masks is not None or code is not None or bool(representations) or bool(policies) or bool(guard)
    found = [variant_text.parse_variant(one) if isinstance(one, str) else one for one in given]
    if shorthand:
        found += variant_text.axes(masks, code, representations, policies, guard)
    if not found and subject.variant is not None:
        found.append(subject.variant)
    return found or [Variant(variant_text.UNPROTECTED)]


def _sources(
    subject: Subject,
    ber: str | Sequence[float] | None,
    faults: Sequence[str],
    devices: Sequence[tuple[str, Device]],
    device_map: DeviceMap | Path | str | None,
) -> list[design.Source]:
    found: list[design.Source] = []
    if ber is not None:
        found += design.rate_sources(design.rates(ber) if isinstance(ber, str) else ber)
    found += design.fault_sources(faults)
    found += [design.device_source(device, label) for label, device in devices]
    if device_map is not None:
        loaded = device_map if isinstance(device_map, DeviceMap) else DeviceMap.load(device_map)
        label = "devices" if isinstance(device_map, DeviceMap) else Path(device_map).name
        found.append(design.map_source(loaded.assign, subject.tensors, label))
    if not found and subject.devices and set(subject.devices) == set(subject.tensors):
        found.append(design.map_source(subject.devices.__getitem__, subject.tensors, "own devices"))
    return found


def _layer_types(
    subject: Subject, evaluator: str | Callable[..., Any] | object, framework: str, threads: int
) -> dict[str, str]:
    """The class of the layer of every tensor, as far as the evaluator knows."""
    specs = {name: TensorSpec(tensor.dtype, tensor.shape) for name, tensor in subject.tensors.items()}
    return open_session(evaluator, specs, framework=framework, threads=threads).layer_types()
