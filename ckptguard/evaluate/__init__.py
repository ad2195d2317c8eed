"""Evaluators: what a state dict is worth. `weights` compares bits and values; `user` runs a function of the user's."""
