"""The verbs: protect, inspect, check, corrupt, restore, repair, verify.

Each calls the families (representations, codes, channels, container) in order, unit by unit, on any number of threads,
with memory that does not grow with the checkpoint.
"""
