"""A committed network becomes a packed one: its graph is traced, and its layers get packed twins."""
