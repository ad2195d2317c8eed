"""`python -m ckptguard`, the same as the command `ckptguard`."""

from __future__ import annotations

from ckptguard.cli import main

main()
