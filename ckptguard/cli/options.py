"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptguard.cli.output import Output
from ckptguard.errors import UsageError

if TYPE_CHECKING:
    from ckptguard.devices import Device

Command = Callable[..., Any]

FILE = click.Path(path_type=Path)


def prints(function: Command) -> Command:
    """Options --json and --quiet; the command gets an `Output` for them as its first argument."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")
    @click.option("-q", "--quiet", is_flag=True, help="Print neither tables nor progress; errors remain.")
    @functools.wraps(function)
    def command(as_json: bool, quiet: bool, **arguments: Any) -> Any:
        with Output(as_json, quiet) as output:
            return function(output, **arguments)

    return command


jobs = click.option(
    "-j", "--jobs", type=click.IntRange(min=1), help="Threads to work on. Default: as many as there are processors."
)
force = click.option("-f", "--force", is_flag=True, help="Replace what is already there under the output's name.")
select = click.option(
    "--select", metavar="PATH", help="Which state dict of a torch file: its dotted path, '.' for the outermost."
)
policy = click.option(
    "--policy",
    type=click.Choice(["raw", "null"]),
    default="raw",
    show_default=True,
    help="Elements in uncorrectable codewords: keep the bits as read, or make the element zero.",
)
guard = click.option(
    "--guard",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="Set back bits and replace elements that the container's range guards say cannot be.",
)
estimate = click.option(
    "--estimate",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="Read damaged pieces as the container's posterior restorers say they most likely were.",
)
strict = click.option("--strict", is_flag=True, help="Write nothing if protected bits are lost.")
device = click.option("--device", metavar="NAME", help="A device profile; see `ckptguard devices list`.")
at = click.option(
    "--at",
    multiple=True,
    metavar="KEY=VALUE,...",
    help="Operating point of the device, such as pe=3000,days=365 or @PRESET,days=30; may be repeated.",
)


device_map = click.option(
    "--devices", "device_map", type=FILE, metavar="FILE", help="A device map: every tensor on its device."
)
evaluator = click.option(
    "--eval",
    "evaluator",
    metavar="SPEC",
    required=True,
    help="What scores a model: FILE.py:FUNCTION of the state dict, or classification:..., logits:..., perplexity:...",
)
framework = click.option(
    "--framework",
    type=click.Choice(["pt", "np"]),
    default="pt",
    show_default=True,
    help="Tensors that a function gets: torch's or numpy's.",
)
metric = click.option("--metric", metavar="NAME", help="The main metric. Default: the evaluator's first.")
threads = click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of torch and BLAS, in each worker."
)


def together(*chosen: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator of several options, which help lists in the order given."""

    def decorate(function: Command) -> Command:
        return functools.reduce(lambda found, option: option(found), reversed(chosen), function)

    return decorate


def device_of(name: str | None, texts: tuple[str, ...]) -> Device | None:
    """The device of --device and --at; None where neither is given."""
    if texts and name is None:
        raise UsageError("--at belongs to --device")
    return device_at(name, texts) if name is not None else None


def device_at(name: str, texts: tuple[str, ...]) -> Device:
    """The device of a profile at the operating point of --at."""
    from ckptguard.devices import analog_profiles, load_profile

    if name in analog_profiles():
        raise UsageError(f"{name} is an analog array: it changes values, not stored bits; see `ckptguard devices show`")
    profile = load_profile(name)
    preset, point = operating_point(texts)
    if "self" in point:
        raise UsageError(f"--at: {name} has no parameter 'self'")
    return profile.at(preset, **point)


def operating_point(texts: tuple[str, ...]) -> tuple[str | None, dict[str, float]]:
    """The preset, if one is named, and numbers by name, from texts such as `pe=3000,days=365`.

    A preset is written `@NAME` or `preset=NAME`.
    """
    preset: str | None = None
    point: dict[str, float] = {}
    for item in (item for text in texts for item in text.split(",")):
        named = item.strip().removeprefix("@")
        key, equals, value = (part.strip() for part in item.partition("="))
        if named != item.strip():
            key, equals, value = "preset", "=", named
        if not key or not equals:
            raise UsageError(f"--at: {item!r} is not of the form key=value or @preset")
        if key in point or (key == "preset" and preset is not None):
            raise UsageError(f"--at: {key!r} is given twice")
        if key == "preset":
            preset = value
            continue
        try:
            point[key] = float(value)
        except ValueError:
            raise UsageError(f"--at: {key} is {value!r}, expected a number") from None
    return preset, point


def at_most_one(given: Mapping[str, object]) -> str | None:
    """The one option of several, by name, that was given (is not None); two of them exclude each other."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise UsageError(f"{' and '.join(names)} exclude each other")
    return names[0] if names else None
