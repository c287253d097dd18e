#!/usr/bin/env bash
# Everything that needs a GPU, most telling first, in seven minutes: bash benchmarks/gpu_check.sh OUT
#
# For a bare machine with an NVIDIA GPU, CUDA's nvcc, a CUDA build of torch and the packages of the `test` extra; nothing
# is fetched, and what a machine lacks fails in a step of its own. Programs in CUDA C++ come first, which need no torch;
# meanwhile the package is built in place, for this GPU alone. GPU_CHECK_PROGRAMS is a folder with programs built
# elsewhere (benchmarks/gpu_programs.py): what is not there, or does not run here, is built.
#
# OUT gets three files: summary.txt with a line for each step and the end of what it printed, running.log with all that
# the present step prints, and results.tar.gz with logs and result files, packed anew after each step. Benchmarks save
# and print every row at once. So a run that is killed at any point leaves what it found.
#
# A step that fails does not stop the others; the exit status is the number of steps that failed, or for which no time was
# left: all of it ends within GPU_CHECK_SECONDS (420), and a step within a limit of its own, times GPU_CHECK_PATIENCE
# on a busy machine. GPU_CHECK_STEPS="rates products" runs some only, and GPU_CHECK_STEPS=study, in a call of its own, five
# minutes of a training study.
set -uo pipefail
[[ $# == 1 ]] || { echo "usage: bash benchmarks/gpu_check.sh OUT" >&2; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python3}
steps=${GPU_CHECK_STEPS:-machine programs rates products tiles build product_tests bgemm triton_tests memcheck synccheck
  progressive profile networks gpu_tests package blocks report}
steps=" ${steps//[[:space:]]/ } "
deadline=$((SECONDS + ${GPU_CHECK_SECONDS:-420}))
export PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT || exit 2
results=$work/results
programs=${GPU_CHECK_PROGRAMS:-$work/programs}
jobs=${GPU_CHECK_JOBS:-16}
failed=0
mkdir -p "$results"
: >"$out/summary.txt"

say() { echo "$*" | tee -a "$out/summary.txt"; }

wanted() { [[ "$steps" == *" $1 "* ]]; }

pack() { # a reader never finds half a file
  tar -czf "$work/results.tar.gz" -C "$work" results && cp "$work/results.tar.gz" "$out/.results" &&
    mv "$out/.results" "$out/results.tar.gz"
}

report_step() { # name, status, seconds
  [[ $2 == 0 ]] || failed=$((failed + 1))
  say "$1: $([[ $2 == 0 ]] && echo ok || echo "FAILED ($2)"), $3 s"
  tail -n "$([[ $2 == 0 ]] && echo 3 || echo 15)" "$results/$1.log" | sed 's/^/    /' | tee -a "$out/summary.txt"
  pack
}

step() { # name, seconds it may take, command
  local name=$1 limit=$2
  shift 2
  wanted "$name" || return 0
  limit=$((limit * ${GPU_CHECK_PATIENCE:-1}))
  local start=$SECONDS left=$((deadline - SECONDS))
  if ((left < 5)); then
    failed=$((failed + 1))
    say "$name: NOT RUN, no time left"
    return 0
  fi
  ((limit < left)) || limit=$left
  timeout -k 5 "$limit" "$@" >"$out/running.log" 2>&1
  local status=$?
  cp "$out/running.log" "$results/$name.log"
  report_step "$name" "$status" $((SECONDS - start))
}

describe_machine() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap,clocks.sm,clocks.max.sm --format=csv,noheader || exit
  nvcc --version | tail -n 2
  nproc
  "$python" -c 'import torch, triton; print(torch.__version__, torch.version.cuda, triton.__version__)'
}
export -f describe_machine
export python

build_started=
if wanted build; then
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -u | paste -sd ';')
  STOMPP_CUDA=1 MAX_JOBS=$jobs TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability} \
    timeout -k 5 300 "$python" setup.py --quiet build_ext --inplace >"$results/build.log" 2>&1 &
  build_started=$!
fi

step machine 30 bash -c describe_machine
step programs 180 "$python" -m benchmarks.gpu_programs "$programs" --jobs "$jobs"
step rates 30 "$python" -m benchmarks.gpu_rates --programs "$programs" --output "$results"
step products 60 "$programs/products"
step tiles 40 "$python" -m benchmarks.gpu_tiles --programs "$programs" --output "$results"
if [[ -n $build_started ]]; then
  started=$SECONDS
  wait "$build_started"
  report_step build $? $((SECONDS - started))
fi
parallel=$(timeout 20 "$python" -c 'import xdist' 2>/dev/null && echo "-n 8")
# shellcheck disable=SC2086
step product_tests 90 "$python" -m pytest -q -m gpu $parallel tests/test_gpu_products.py
step bgemm 90 "$python" -m benchmarks.gpu_bgemm --output "$results" --rounds 20
# Far fewer than all types and surrogates: each is a kernel that Triton compiles.
# shellcheck disable=SC2086
step triton_tests 60 "$python" -m pytest -q -m gpu $parallel tests/test_triton.py \
  -k "cuda and bfloat16 and not (identity or clip) or refresh"
step memcheck 60 compute-sanitizer --tool memcheck --error-exitcode 1 "$programs/products"
step synccheck 60 compute-sanitizer --tool synccheck --error-exitcode 1 "$programs/products"
step progressive 45 "$python" -m benchmarks.gpu_progressive --output "$results" --dtypes bf16 --rounds 15
# The wide tile of wgmma, in the first product that tiles runs, which is the largest; the clock stays as it is.
step profile 60 ncu --clock-control none --set full --kernel-name-base demangled --kernel-name regex:WarpGroupMma \
  --launch-count 1 "$programs/tiles"
step networks 60 "$python" -m benchmarks.networks --device cuda --networks resnet18 --batch 64 \
  --forms fp32 bf16 packed --no-compile --seconds 8 --output "$results"
# shellcheck disable=SC2086
step gpu_tests 60 "$python" -m pytest -q -m gpu $parallel tests/test_gpu.py
# A network compiled for this GPU, and a C++ program that runs it.
step package 60 "$python" -m pytest -q -m gpu tests/test_aot_inductor.py
step blocks 45 "$python" -m benchmarks.gpu_blocks
step report 30 "$python" -m benchmarks.report --results "$results" --output "$results"
step study 300 "$python" -m stompp_kernels.cli ablate recipes/studies/depth_digits.toml --device cuda \
  --output "$results/study" --jobs 4
exit "$failed"
