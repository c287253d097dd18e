"""Data, training loop, demo."""
