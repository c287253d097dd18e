# make demo     set everything up, then train, convert and time a binary network (DEMO_ARGS=...)
# make test     set everything up, then run the tests but for the slow ones (PYTEST_ARGS=...)
# make test-all  the same with the slow ones: long sweeps, sanitizers, emulations, builds for every GPU
# make test-faults  try every fault of a CUDA kernel that its emulation must notice; test-all tries one of each kind
# make bench    set everything up, then time every op against PyTorch and make a page of it (BENCH_OUT=folder)
# make wheels   build the wheels for this machine, and for 64-bit Arm where its compiler is, in dist, and check them
# make try-wheel  install a wheel of dist as a user does, with no compiler in reach, and run its kernels
# make test-arm  run the wheel for 64-bit Arm in dist under emulation, in a Debian that lies in build/arm: scripts/try_arm.py
# make headers  compile the bindings against several releases of torch (HEADERS="2.10.0 2.14.1"), none installed
# make build    set everything up, or recompile what changed in csrc
# make core     the same, and the core on NumPy arrays, stompp_kernels.core
# make corpus   set everything up, then take the networks of other libraries through the package: docs/corpus.csv
# make libstompp  build the library that runs packed networks without Python, and its tool, in build/libstompp
# make wasm     install a compiler for WebAssembly (410 MB), then build the same as a module, build/wasm/stompp.wasm
# make web      the same, then train two networks and build the page of examples/web in build/web
# make test-wasm  install the compiler too, then test core, module and page; `make bench-wasm` times products
# make fuzz-runtime  open 10,000 mutated files with it, built with sanitizers (FUZZ_ARGS="500 --seed 1")
# make docs     set everything up, then build the documentation in build/docs; a warning is an error
# make lint     ruff, clang-format, mypy and the check of prose, changing nothing; `make format` rewrites
# make clean    remove what was built; `make distclean` the environment too
#
# Everything happens in .venv, also when a virtual environment is active. It is made with PYTHON; a
# torch >= 2.10 that PYTHON already has is used and never replaced, else torch 2.13.0 for CPU is
# installed. TORCH=2.10.0 takes that release instead, in an environment of its own, .venv-2.10.0.
# VENV=path names another environment: an existing one is used as it is, so VENV="$VIRTUAL_ENV"
# installs into the active one. MAX_JOBS limits the compilers run at once.

PYTHON ?= python3
TORCH ?=
VENV ?= .venv$(if $(TORCH),-$(TORCH))
HEADERS ?=
DEMO_ARGS ?=
BENCH_OUT ?= build/bench
CORPUS_ARGS ?=
FUZZ_ARGS ?= 10000
# A file of tests a process, two at a time; PYTEST_ARGS="-x tests/test_pack.py" runs in one.
PYTEST_ARGS ?= -n 2 --dist loadfile

RUN = "$(VENV)/bin/python" -m
# Not bin/clang-format: the package may be in the Python that the environment was made from.
CLANG_FORMAT = "$(VENV)/bin/python" -c "import clang_format as c; c.clang_format()"
SETUP_ENV = "$(PYTHON)" scripts/setup_env.py --venv "$(VENV)" $(if $(TORCH),--torch "$(TORCH)")
PYTHON_FILES = stompp_kernels tests scripts setup.py build_tools $(wildcard benchmarks examples)
CXX_FILES = find csrc examples tests benchmarks -type f \
	\( -name '*.h' -o -name '*.c' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu' \)

.NOTPARALLEL:
.PHONY: build core wheels try-wheel setup setup-demo setup-tools setup-dev setup-arm setup-wheels setup-wasm
.PHONY: setup-chromium test test-all test-faults test-arm corpus headers libstompp wasm web test-wasm bench-wasm
.PHONY: fuzz-runtime demo bench docs lint format clean distclean

build: setup

# The tests use it too.
core test test-all: export STOMPP_CORE = 1
core: setup

setup:
	@$(SETUP_ENV)

# No compiler for GPUs runs for demo and tests where there is none: `make build` and `make test-all` run it.
setup-demo test: export STOMPP_CUDA := $(or $(STOMPP_CUDA),$(if $(wildcard /dev/nvidia* /dev/dxg stompp_kernels/_cuda.so),,0))

# No compiler at all runs where dist has a wheel of this checkout.
setup-demo:
	@$(SETUP_ENV) --extras demo --wheels dist

# What compiles against headers alone: neither torch nor this package.
setup-tools:
	@$(SETUP_ENV) --tools

setup-dev:
	@$(SETUP_ENV) --extras demo,test,dev,docs

setup-wasm:
	@$(SETUP_ENV) --extras demo,test,wasm

# Debian and Ubuntu: lets the tests visit the page.
setup-chromium:
	apt-get update
	apt-get install -y chromium

# Debian and Ubuntu: lets the tests run the core for 64-bit Arm under emulation.
setup-arm:
	apt-get update
	apt-get install -y g++-aarch64-linux-gnu qemu-user

# The same systems: what `make wheels` runs, besides a compiler for this machine and CUDA's.
setup-wheels:
	apt-get update
	apt-get install -y g++ g++-aarch64-linux-gnu python3-venv

test: setup
	$(RUN) pytest -m "not slow" --durations 10 --durations-min 5 $(PYTEST_ARGS)

test-all: setup
	$(RUN) pytest $(PYTEST_ARGS)

test-faults: setup
	STOMPP_FAULTS=1 $(RUN) pytest tests/test_cuda_kernels.py -k notices

# On macOS they are compiled against the torch that is installed.
wheels: $(if $(filter Darwin,$(shell uname -s)),setup-dev,setup-tools)
	"$(VENV)/bin/python" scripts/wheels.py

try-wheel: setup-demo
	"$(VENV)/bin/python" scripts/try_wheel.py

test-arm: setup-tools
	"$(VENV)/bin/python" scripts/try_arm.py $(if $(TORCH),--torch "$(TORCH)")

# Neither library's dependencies: they would bring another torch.
corpus: setup
	$(RUN) pip install -q --no-deps timm torchvision
	PYTHONPATH=tests $(RUN) corpus $(CORPUS_ARGS)

# Neither Python nor torch has a part in it; CMAKE_ARGS names a toolchain file, for example.
libstompp:
	cmake -S csrc/runtime -B build/libstompp $(CMAKE_ARGS)
	cmake --build build/libstompp --parallel 2

wasm: setup-wasm
	$(RUN) build_tools.wasm build/wasm/stompp.wasm

web: setup-wasm
	"$(VENV)/bin/python" examples/web/build.py build/web

test-wasm: setup-wasm
	$(RUN) pytest tests/test_wasm.py tests/test_web.py

bench-wasm: setup-wasm
	$(RUN) benchmarks.wasm

fuzz-runtime: setup
	cmake -S csrc/runtime -B build/libstompp-sanitized -DSTOMPP_SANITIZE=ON -DSTOMPP_TOOL=OFF
	cmake --build build/libstompp-sanitized --parallel 2
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096 \
		PYTHONPATH=. "$(VENV)/bin/python" tests/fuzz_runtime.py build/libstompp-sanitized/libstompp.so $(FUZZ_ARGS)

headers: setup-tools
	"$(VENV)/bin/python" scripts/check_headers.py $(HEADERS)

demo: setup-demo
	"$(VENV)/bin/stompp" demo $(DEMO_ARGS)

bench: setup
	mkdir -p "$(BENCH_OUT)"
	$(RUN) pytest benchmarks --benchmark-only -q --results "$(BENCH_OUT)"
	$(RUN) benchmarks.ceilings --output "$(BENCH_OUT)"
	$(RUN) benchmarks.report --results "$(BENCH_OUT)" --output "$(BENCH_OUT)"

docs: setup-dev
	$(RUN) sphinx -q -W --keep-going -b html docs build/docs

lint: setup-dev
	$(RUN) ruff check $(PYTHON_FILES)
	$(RUN) ruff format --check $(PYTHON_FILES)
	"$(VENV)/bin/python" scripts/check_prose.py
	$(CXX_FILES) -exec $(CLANG_FORMAT) --dry-run --Werror {} +
	$(RUN) mypy

format: setup-dev
	$(RUN) ruff check --fix $(PYTHON_FILES)
	$(RUN) ruff format $(PYTHON_FILES)
	$(CXX_FILES) -exec $(CLANG_FORMAT) -i {} +

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	rm -f stompp_kernels/*.so
	find stompp_kernels tests scripts build_tools -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-*
