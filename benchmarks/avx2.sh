#!/usr/bin/env bash
# Runs a command with every side held to AVX2 on a processor that has more:
#   bash benchmarks/avx2.sh python -m benchmarks.networks
#
# Ours, then torch's own kernels, oneDNN, MKL, and FBGEMM, which multiplies torch's int8 matrices. Each asks the processor
# where its variable is not set, so that one left out would be compared with a wider instruction set.
export STOMPP_CPU=avx2
export ATEN_CPU_CAPABILITY=avx2
export ONEDNN_MAX_CPU_ISA=AVX2
export MKL_ENABLE_INSTRUCTIONS=AVX2
export FBGEMM_ENABLE_INSTRUCTIONS=AVX2
exec "$@"
