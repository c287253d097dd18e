"""Whole networks, packed, against torch's fp32, bf16 and int8: time, profile, bound and bytes."""

from stompp_kernels.bench.network import measure, sizes
from stompp_kernels.bench.subjects import Subject, of_models, untrained

__all__ = ["Subject", "measure", "of_models", "sizes", "untrained"]
