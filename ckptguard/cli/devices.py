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
    from ckptguard.report import devices as report

    rows = report.profile_records(profiles())
    output.result({"command": "devices list", "exit_status": 0, "profiles": rows}, lambda: report.list_text(rows))
    return 0


@devices.command(short_help="Show one profile at an operating point.")
@click.argument("name")
@options.at
@options.prints
def show(output: Output, *, name: str, at: tuple[str, ...]) -> int:
    """Show the device profile NAME: its channel at the operating point --at, its parameters, source and confidence."""
    from ckptguard.devices import load_profile
    from ckptguard.report import devices as report

    record = report.device_record(load_profile(name), options.device_at(name, at))
    output.result({"command": "devices show", "exit_status": 0} | record, lambda: report.show_text(record))
    return 0
