"""Compiled kernels: arrays and integers in, status out; nothing is raised, numba is used here only."""
