"""Benchmarks against reference PyTorch. Each checks its results before it prints a ratio."""

import os

# Inductor's cache of graphs does not tell instruction sets apart: held to AVX2 (ATEN_CPU_CAPABILITY), torch.compile
# would run what it made for AVX-512 before, and leave out half of the elements; the other way round it writes too many.
os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "0")
