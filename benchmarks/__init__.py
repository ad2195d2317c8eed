"""Speeds of ckptguard on the machine at hand: `python -m benchmarks.table` prints them beside their goals and peers."""
