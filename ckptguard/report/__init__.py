"""What people read: verdicts first, then plain-text tables. Machines read `--json` instead."""
