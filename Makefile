# make demo: the main job on real photos; make test: the tests; make bench: the CPU benchmarks and their pages;
# make sanitize: the operators' tests under AddressSanitizer.
# Each creates .venv on first use, installs the pinned versions and builds csrc/.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# As in bitfast/cli.py: idle OpenMP threads spin briefly, which matters where the cores are shared.
export GOMP_SPINCOUNT ?= 3000

NATIVE := CMakeLists.txt setup.py pyproject.toml constraints.txt $(shell find csrc -type f)

.PHONY: demo test lint bench sanitize clean

demo: $(VENV)/.installed
	$(BIN)/bitfast demo

test: $(VENV)/.peers
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The operators' tests on a library that stops at the first bad access or undefined behaviour; pytest does not swallow
# its report. Compilers, which the tests of torch.compile start, would only be slower.
sanitize: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/sanitize -G Ninja -DBITFAST_SANITIZE=ON -DBITFAST_CUDA=OFF \
	  -DTORCH_ROOT="$$($(BIN)/python -c 'import torch; print(torch.__path__[0])')"
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/sanitize
	ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  BITFAST_LIBRARY=build/sanitize/libbitfast.so $(BIN)/python -m pytest --capture=sys tests/ops -k "not compile and not opcheck"

# NAME is this machine's in the names of the result files.
NAME ?= here
bench: $(VENV)/.peers
	$(BIN)/python -m benchmarks.suite --name $(NAME)
	$(BIN)/python -m benchmarks.pages

# The build needs torch's headers; taking them from the environment itself saves a second copy of torch.
$(VENV)/.installed: $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install 'setuptools>=77' 'torch>=2.11' 'cmake>=3.24' ninja
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --no-build-isolation -e '.[demo,dev]'
	touch $@

# timm is a peer that tests compare with; without dependencies, since its torchvision has no CPU build.
$(VENV)/.peers: $(VENV)/.installed
	$(BIN)/python -m pip install huggingface_hub
	$(BIN)/python -m pip install --no-deps -r benchmarks/requirements.txt
	touch $@

clean:
	rm -rf build bitfast/libbitfast.so
