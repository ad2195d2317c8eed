"""Finding masks: which bits of which tensors are worth their parity."""
