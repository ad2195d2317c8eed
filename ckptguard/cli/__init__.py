"""The command line: thin. Every command calls one verb of the pipeline and prints what `report` makes of the result.

Modules here import nothing heavy when they are loaded, so that `--help`, `--version` and completion answer at once.
"""

from __future__ import annotations

from ckptguard.cli.app import main

__all__ = ["main"]
