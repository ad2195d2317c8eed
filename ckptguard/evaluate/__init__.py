"""Evaluators: what a model's weights are worth. `session` is the contract; `open_session` makes any kind."""
