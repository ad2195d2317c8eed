"""devices list, devices show: which device profiles there are, and what they say."""

from __future__ import annotations

import click

from ckptguard.cli import options
from ckptguard.cli.output import Output


@click.group()
def devices() -> None:
    """List device profiles, and show one at an operating point."""


@devices.command("list")
@options.prints
def list_profiles(output: Output) -> int:
    """List all device profiles."""
    from ckptguard.devices import profiles
    from ckptguard.report import analog
    from ckptguard.report import devices as report

    rows, arrays = report.profile_records(profiles()), analog.records()
    record = {"command": "devices list", "exit_status": 0, "profiles": rows, "analog": arrays}
    output.result(record, lambda: f"{report.list_text(rows)}\n\n{analog.list_text(arrays)}")
    return 0


@devices.command(short_help="Show one profile at an operating point.")
@click.argument("name")
@options.at
@options.prints
def show(output: Output, *, name: str, at: tuple[str, ...]) -> int:
    """Show the device profile NAME: its channel at the operating point --at, its parameters, source and confidence."""
    from ckptguard.devices import analog_profiles, load_analog_profile, load_profile
    from ckptguard.report import analog
    from ckptguard.report import devices as report

    if name in analog_profiles():
        array = load_analog_profile(name)
        preset, values = options.operating_point(at)
        shown = analog.record(array, array.point(values, preset))
        output.result({"command": "devices show", "exit_status": 0} | shown, lambda: analog.show_text(shown))
        return 0
    record = report.device_record(load_profile(name), options.device_at(name, at))
    output.result({"command": "devices show", "exit_status": 0} | record, lambda: report.show_text(record))
    return 0
