# Every target sets up what it needs: a virtual environment with pinned packages, once.
# Another interpreter: make test PYTHON=python3.12 (Python 3.11 or newer).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Nothing here reaches for a model or a data set over the network.
export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# curvlinops checks the Fisher scores in the tests. Without their dependencies: backpack asks for torchvision,
# which nothing here uses, and a torchvision built for another torch stops transformers from loading models.
ORACLE := curvlinops-for-pytorch backpack-for-pytorch einconv einops linear_operator opt_einsum

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow browser check bench docs clean

help:
	@echo "make demo       choose, train, ship and compare on built-in data (minutes on two cores)"
	@echo "make test       the tests"
	@echo "make test-slow  the long tests"
	@echo "make check      ruff and mypy"
	@echo "make bench      speed and memory against peers"
	@echo "make docs       the documentation as a site, in site/"
	@echo "make clean      remove what the other targets left, the virtual environment included"

demo: $(VENV)/demo.done
	$(BIN)/paretune demo

# The models of the tests are tiny: one thread is the fastest, and sums come out in one order.
test test-slow: export OMP_NUM_THREADS := 1

# Two processes, a contiguous half of the tests each, so that nearly every file is set up once; whoever is done
# takes over from the other.
test: $(VENV)/dev.done browser
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/dev.done
	$(BIN)/python -m pytest -m slow

# The page is tested in a real browser. A bare machine on which we are root, as in a container, gets one;
# elsewhere it is not ours to install, and the browser's tests are skipped and say so.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq >/dev/null && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	echo "no chromium here and none installed: the browser's tests will be skipped"

check: $(VENV)/dev.done
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/dev.done browser
	$(BIN)/python -m benchmarks.step --quick
	$(BIN)/python -m benchmarks.delta --quick
	$(BIN)/python -m benchmarks.page --quick

docs: $(VENV)/docs.done
	$(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

clean:
	rm -rf $(VENV) build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks experiments -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last, so that an interrupted set-up is done again.
$(VENV)/demo.done: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'paretune needs Python 3.11 or newer: make PYTHON=...')"
	@echo "Setting up $(VENV): PyTorch and transformers take a few minutes the first time"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[demo,report,search]'
	@touch $@

$(VENV)/dev.done: $(VENV)/demo.done
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[demo,report,search,dev]'
	@$(BIN)/python -m pip install -qq -c constraints.txt --no-deps $(ORACLE)
	@touch $@

$(VENV)/docs.done: $(VENV)/demo.done
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[docs]'
	@touch $@
