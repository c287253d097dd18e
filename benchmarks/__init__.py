"""Benchmarks against reference PyTorch. Each checks its results before it prints a ratio."""
