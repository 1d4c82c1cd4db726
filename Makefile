# Two commands: `make demo` runs the main job on a real model, `make test` runs the tests.
# Each makes its environment in .venv first, and reuses it the next time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: demo readme test check gpu-check env clean

demo: $(STAMP)
	$(BIN)/llmopt bench recipes/demo.yaml --out demo/results --work demo/checkpoints
	$(BIN)/llmopt report demo/results --format markdown --out demo/report.md --png demo/report.png
	$(BIN)/llmopt report demo/results

# What README.md and results/ show of the committed result files.
EMBEDDED := $(shell sed -n 's/^<!-- begin llmopt report \([^ ]*\) -->$$/\1/p' README.md)

# Of several runtimes: each beside llmopt with the same weights.
RUNTIMES := --baseline llmopt --group-by load

readme: $(STAMP)
	$(BIN)/llmopt report results/demo --into README.md --png results/demo/report.png
	@set -e; for name in $(EMBEDDED); do \
	    case $$name in backends-*) choice="$(RUNTIMES)";; *) choice=;; esac; \
	    $(BIN)/llmopt report results/$$name $$choice --into README.md --place $$name --png results/$$name/report.png; \
	done
	$(BIN)/llmopt report results --format markdown --out results/README.md
	$(BIN)/llmopt report results/cpu-peers $(RUNTIMES) --format markdown --out results/cpu-peers/README.md

# On a machine with a GPU, with its own python and what is in it: nothing is installed.
GPU_CHECK_OUT ?= llmopt-results/gpu-check

gpu-check:
	PYTHONPATH=.:kernels $(PYTHON) -m bench.gpu_check --out $(GPU_CHECK_OUT)

test: check
	$(BIN)/python -m pytest -n auto

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) demo build *.egg-info
