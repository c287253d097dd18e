#!/usr/bin/env bash
# Everything that needs a GPU, in one go: bash benchmarks/gpu_check.sh OUT
#
# For a bare machine with an NVIDIA GPU, a CUDA build of torch and the packages of the `test` extra; nothing is fetched.
# Builds the package in place, then runs the tests marked `gpu`, the CPU tests (they run every instruction
# set that the processor has), compute-sanitizer and the benchmarks. OUT gets logs and result files. A step that fails
# does not stop the others; the exit status is the number of steps that failed. GPU_CHECK_STEPS="gpu_tests tune" runs
# some only. About 8 minutes.
set -uo pipefail
[[ $# == 1 ]] || { echo "usage: bash benchmarks/gpu_check.sh OUT" >&2; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python3}
steps=${GPU_CHECK_STEPS:-build gpu_tests sanitizer gpu_progressive training_speed tune cpu_tests}
export PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=0

step() { # name, seconds it may take, command
  local name=$1 limit=$2
  shift 2
  [[ " $steps " == *" $name "* ]] || return 0
  local start=$SECONDS
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  local status=$?
  [[ $status == 0 ]] || failed=$((failed + 1))
  echo "$name: $([[ $status == 0 ]] && echo ok || echo "FAILED ($status)"), $((SECONDS - start)) s"
  tail -n "$([[ $status == 0 ]] && echo 3 || echo 15)" "$out/$name.log" | sed 's/^/    /'
}

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
  { echo "torch of $python sees no NVIDIA GPU: nothing was checked" >&2; exit 2; }
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/machine.txt"
"$python" -c 'import torch, triton; print(torch.__version__, torch.version.cuda, triton.__version__)' | tee -a "$out/machine.txt"

step build 240 "$python" setup.py --quiet build_ext --inplace
step gpu_tests 240 "$python" -m pytest -q -m gpu tests
# The kernels once more, small, with every access of memory checked. Without the tool's device support it says so.
step sanitizer 180 compute-sanitizer --error-exitcode 1 "$python" -m pytest -q -m gpu tests/test_triton.py \
  -k "refresh or packing or gradient_comes or (oracle and bfloat16)"
step gpu_progressive 120 "$python" -m benchmarks.gpu_progressive --output "$out"
step training_speed 90 "$python" -m benchmarks.training_speed --device cuda --seconds 30 --output "$out"
step tune 90 "$python" -m stompp_kernels.ops.triton.tune
# Not what takes minutes and needs no GPU: builds, C++ tests under sanitizers, the demo.
parallel=$("$python" -c 'import xdist' 2>/dev/null && echo "-n 8")
# shellcheck disable=SC2086
step cpu_tests 240 "$python" -m pytest -q -m "not gpu" $parallel tests --ignore tests/test_build.py \
  --ignore tests/test_core.py --ignore tests/test_demo.py
exit "$failed"
