# Each target sets up what it needs on a machine that has only Python >= 3.11, and is quick when run again.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What each set of targets needs beyond the library.
EXTRAS_experiments := experiments
# The page of the paper has CVXPY's optimum beside the solvers'.
EXTRAS_paper := experiments,verify
EXTRAS_verify := verify
# Cells of the pages use these.
EXTRAS_docs := dynamics,parquet,conformal,experiments,networks,docs
EXTRAS_test := dynamics,estimators,parquet,conformal,experiments,verify,docs,test
EXTRAS_gpu := test,cuda
# neural-tangents declares TensorFlow, which nothing here uses, and the package that carries axe's script declares
# Playwright: hence --no-deps for these two alone.
WITHOUT_REQUIREMENTS_verify := neural-tangents==0.6.5
WITHOUT_REQUIREMENTS_test := $(WITHOUT_REQUIREMENTS_verify) axe-playwright-python==0.1.8
# Compiling is most of the tests' time: programs that were compiled once are kept.
KEEP_COMPILED := JAX_COMPILATION_CACHE_DIR=$(CURDIR)/$(VENV)/compiled JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.1
# There are as many tests at a time as cores.
ONE_BLAS_THREAD := OPENBLAS_NUM_THREADS=1
# Processes that share the tasks of the long runs. Each takes about a gigabyte.
JOBS := 2
# Settings that some users keep on.
STRICT_MODES := JAX_NUMPY_DTYPE_PROMOTION=strict JAX_NUMPY_RANK_PROMOTION=raise JAX_DEBUG_NANS=1 \
    JAX_ENABLE_X64=0 JAX_ENABLE_X64=1 JAX_CHECK_TRACER_LEAKS=1
# Left out where annotations are checked: what runs in other processes, where they are not, and the pages and the runner,
# which have few arrays of their own.
NOT_CHECKED := tests/test_package.py tests/test_docs.py tests/test_cli.py tests/runner tests/experiments/test_experiments.py
UV := $(shell command -v uv 2>/dev/null)
ifdef UV
INSTALL := $(UV) pip install --quiet --python $(BIN)/python
else
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

.PHONY: run quickstart paper verify test test-shapes test-strict test-long gpu matrix lint docs benchmarks clean

run: $(VENV)/.installed-experiments  ## the main job: fix the NTK on 40 real tables; the report is runs/uci/report.html
	$(BIN)/fixntk run configs/uci.yaml jobs=$(JOBS) --resume

quickstart: $(VENV)/.installed-experiments  ## three tables, one to two minutes
	$(BIN)/fixntk run configs/quickstart.yaml --resume

paper: $(VENV)/.installed-paper  ## every claim of the paper, measured: runs/paper/report.html and the page docs/paper.md
	$(BIN)/fixntk run configs/paper.yaml jobs=$(JOBS) --resume
	$(BIN)/fixntk report runs/paper --markdown docs/paper.md

verify: $(VENV)/.installed-verify  ## the claims of the mathematics, checked on this machine
	$(BIN)/fixntk verify

test: lint  ## linter, type checker and every test that is not marked long
	$(KEEP_COMPILED) $(ONE_BLAS_THREAD) $(BIN)/python -m pytest -q --need-all -n auto --maxprocesses 4 --dist worksteal

test-shapes: $(VENV)/.installed-test  ## the tests of the library, with every annotated shape and type checked in every call
	PYTHONPATH=tests $(KEEP_COMPILED) $(ONE_BLAS_THREAD) $(BIN)/python -m pytest -q --need-all -n auto --maxprocesses 4 --dist worksteal -m "not long and not wrong_types" \
	    --jaxtyping-packages=fixntk,type_checker.check $(NOT_CHECKED:%=--ignore=%)

test-strict: $(VENV)/.installed-test  ## the core tests under each of JAX's stricter modes
	for mode in $(STRICT_MODES); do \
	    echo "$$mode"; env $$mode $(KEEP_COMPILED) $(BIN)/python -m pytest -q --need-all -m core tests/test_core.py || exit 1; \
	done

test-long: $(VENV)/.installed-test  ## the long tests
	$(KEEP_COMPILED) $(BIN)/python -m pytest -q --need-all -m long

gpu: $(VENV)/.installed-gpu  ## the tests and the benchmark of an NVIDIA card
	XLA_FLAGS= $(KEEP_COMPILED) $(BIN)/python -m pytest -q -m gpu tests/gpu
	$(BIN)/python benchmarks/gpu.py

matrix: | $(BIN)/python  ## the core tests on the oldest and the newest packages; MATRIX="3.11-oldest 3.13" runs some
	$(BIN)/python .ci/matrix.py $(MATRIX)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs  ## the pages, in docs/_build/html; a warning is an error
	$(KEEP_COMPILED) $(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

benchmarks: $(VENV)/.installed-test
	$(BIN)/python benchmarks/masked_gram.py

clean:
	rm -rf $(VENV) .matrix build docs/_build docs/generated *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
ifdef UV
	$(UV) venv --python '>=3.11' $(VENV)
else
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fixntk needs Python >= 3.11, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
endif

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[$(EXTRAS_$*)]'
	$(if $(WITHOUT_REQUIREMENTS_$*),$(INSTALL) --no-deps $(WITHOUT_REQUIREMENTS_$*))
	touch $@
