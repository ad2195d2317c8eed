"""Campaigns: faults drawn sparsely, decoded in memory, and what they cost, trial after trial."""
