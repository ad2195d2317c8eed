"""Experiments whose results stand in docs/results: networks, data, training, and one module for each experiment.

The data is not part of the project; CKPTGUARD_DATA names the folder that holds it (default: ../shared/data).
"""
