"""The command `ckptguard`: which commands there are, and how errors become messages and exit statuses."""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any, NoReturn

import click

from ckptguard import __version__
from ckptguard.cli.output import print_error
from ckptguard.errors import CkptGuardError
from ckptguard.spec import suggestion

COMMANDS = {
    "protect": "ckptguard.cli.protect:protect",
    "inspect": "ckptguard.cli.protect:inspect",
    "convert": "ckptguard.cli.protect:convert",
    "masks": "ckptguard.cli.masks:masks",
    "corrupt": "ckptguard.cli.corrupt:corrupt",
    "check": "ckptguard.cli.recover:check",
    "repair": "ckptguard.cli.recover:repair",
    "restore": "ckptguard.cli.recover:restore",
    "verify": "ckptguard.cli.verify:verify",
    "sweep": "ckptguard.cli.sweep:sweep",
    "merge": "ckptguard.cli.sweep:merge",
    "replay": "ckptguard.cli.replay:replay",
    "search": "ckptguard.cli.search:search",
    "sensitivity": "ckptguard.cli.search:sensitivity",
    "devices": "ckptguard.cli.devices:devices",
    "codes": "ckptguard.cli.codes:codes",
    "demo": "ckptguard.cli.demo:demo",
    "completion": "ckptguard.cli.tools:completion",
    "warmup": "ckptguard.cli.tools:warmup",
}
"""Commands in the order of the help, and where they are."""

INTERRUPTED = 130


class App(click.Group):
    """A group that imports a command when it is asked for, and exits with the status that a command returns."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, None for an unknown one."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names; an unknown name suggests the closest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"unknown command {args[0]!r}{suggestion(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def main(self, args: Any = None, prog_name: str | None = "ckptguard", *rest: Any, **extra: Any) -> NoReturn:
        """Run and exit: 0 or the status a command returns; that of an error's class; 130 when interrupted."""
        given = sys.argv[1:] if args is None else list(args)
        as_json = "--json" in given
        extra["standalone_mode"] = False
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # file names may be no text
        try:
            status = super().main(given, prog_name, *rest, **extra)
        except CkptGuardError as error:
            status = print_error(error, error.exit_status, as_json)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            status = error.exit_code
        except click.ClickException as error:
            context = error.ctx if isinstance(error, click.UsageError) else None
            hint = f"\nSee '{context.command_path} --help'." if context else ""
            status = print_error(error, error.exit_code, as_json, error.format_message(), hint)
        except click.Abort:
            click.echo("interrupted", err=True)
            status = INTERRUPTED
        except OSError as error:
            where = f"{error.filename}: " if error.filename is not None else ""
            status = print_error(error, 1, as_json, f"{where}{error.strerror or error}")
        sys.exit(status if isinstance(status, int) else 0)


@click.command(
    "ckptguard",
    cls=App,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Exit statuses: 0 done or intact, 1 failure, 2 wrong usage, 10 damaged but correctable, 11 protected bits "
    "lost, 12 metadata lost, 13 files do not belong together, 14 a limit is not kept, 130 interrupted.",
)
@click.version_option(__version__, prog_name="ckptguard")
def main() -> None:
    """Keep model checkpoints alive on storage that flips bits.

    Protect a checkpoint with error-correcting codes, send it through simulated storage, check, repair, restore and
    verify it.
    """
