#!/usr/bin/env bash
# Everything that needs a GPU, in one go: bash benchmarks/gpu_check.sh OUT
#
# For a bare machine with an NVIDIA GPU, CUDA's nvcc, a CUDA build of torch and the packages of the `test` extra; nothing
# is fetched. Builds the package in place, for this GPU alone, then runs the tests marked `gpu`, compute-sanitizer, the
# benchmarks and the CPU tests (of every instruction set that the processor has). OUT gets logs and result files. A step
# that fails does not stop the others; the exit status is the number of steps that failed, or for which no time was left:
# all of it ends within GPU_CHECK_SECONDS (470). GPU_CHECK_STEPS="gpu_tests gpu_blocks" runs some only.
set -uo pipefail
[[ $# == 1 ]] || { echo "usage: bash benchmarks/gpu_check.sh OUT" >&2; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python3}
steps=${GPU_CHECK_STEPS:-build gpu_tests gpu_progressive gpu_bgemm gpu_rates gpu_tiles sanitizer products_memcheck
  products_racecheck products_synccheck training_speed networks gpu_blocks report cpu_tests}
steps=" ${steps//[[:space:]]/ } "
deadline=$((SECONDS + ${GPU_CHECK_SECONDS:-470}))
export PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=0

step() { # name, seconds it may take, command
  local name=$1 limit=$2
  shift 2
  [[ "$steps" == *" $name "* ]] || return 0
  local start=$SECONDS left=$((deadline - SECONDS))
  if ((left < 5)); then
    failed=$((failed + 1))
    echo "$name: NOT RUN, no time left"
    return 0
  fi
  ((limit < left)) || limit=$left
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

architectures=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -u | paste -sd ';')
export STOMPP_CUDA=1 TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$architectures}"
step build 240 "$python" setup.py --quiet build_ext --inplace
step gpu_tests 240 "$python" -m pytest -q -m gpu tests
step gpu_bgemm 240 "$python" -m benchmarks.gpu_bgemm --output "$out"
step gpu_rates 120 "$python" -m benchmarks.gpu_rates --output "$out"
step gpu_tiles 120 "$python" -m benchmarks.gpu_tiles --output "$out"
step gpu_progressive 120 "$python" -m benchmarks.gpu_progressive --output "$out"
# The kernels once more, small, with every access of memory checked. Without the tool's device support it says so.
step sanitizer 180 compute-sanitizer --error-exitcode 1 "$python" -m pytest -q -m gpu tests/test_triton.py \
  -k "refresh or packing or gradient_comes or (oracle and bfloat16)"
# Tiles of every size, borders and groups.
for tool in memcheck racecheck synccheck; do
  step "products_$tool" 240 compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -m pytest -q -m gpu \
    tests/test_gpu_products.py -k "reference and (17 or 129) or wide_tiles and 513 or layers and 0 or weights_move"
done
step training_speed 90 "$python" -m benchmarks.training_speed --device cuda --seconds 30 --output "$out"
step networks 120 "$python" -m benchmarks.networks --device cuda --networks resnet18 --batch 1 64 256 \
  --forms fp32 bf16 packed --seconds 8 --output "$out"
step gpu_blocks 90 "$python" -m benchmarks.gpu_blocks
step report 60 "$python" -m benchmarks.report --results "$out" --output "$out"
# Not what takes minutes and needs no GPU: builds, C++ tests under sanitizers, the demo.
parallel=$("$python" -c 'import xdist' 2>/dev/null && echo "-n 8")
# shellcheck disable=SC2086
step cpu_tests 240 "$python" -m pytest -q -m "not gpu" $parallel tests --ignore tests/test_build.py \
  --ignore tests/test_core.py --ignore tests/test_demo.py
exit "$failed"
