# make demo | test | lint | coverage | autobahn | fuzz | bench | faults | month | mutants
#
# Each target installs what it needs into a virtual environment of its own and
# nowhere else: .venv for the default python3, .venv-X.Y for another PYTHON.
# A stamp inside it makes the next call instant until pyproject.toml changes.

PYTHON ?= python3
PORT ?= 8000
TESTS ?=
BENCH ?=
FAULTS ?=
MONTH ?= --days 30 --seed 1
MUTANTS ?= --jobs 2
FUZZ ?= --seconds 60

ifeq ($(PYTHON),python3)
VENV := .venv
else
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
endif
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

# One line instead of a traceback from deep inside pip.
define check_python
@command -v $(PYTHON) >/dev/null || { echo 'procmgr: no $(PYTHON) on PATH; name a Python 3.11 or newer, as in: make PYTHON=python3.13' >&2; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "procmgr: $(PYTHON) is Python %d.%d, 3.11 or newer is needed; name one, as in: make PYTHON=python3.13" % sys.version_info[:2])'
endef

.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: help demo test lint coverage autobahn fuzz bench faults month mutants

help:
	@echo 'make demo      serve the example with 2 workers on 127.0.0.1:$(PORT)   (PORT=8001 for another port)'
	@echo 'make test      run all tests                                      (TESTS=tests/unit for some)'
	@echo 'make lint      ruff, mypy --strict, import-linter'
	@echo 'make coverage  run all tests, slowly, and show which lines and branches they reach'
	@echo 'make autobahn  run all WebSocket cases of Autobahn; make test leaves the longest out'
	@echo 'make fuzz      feed both parsers what atheris makes up           (FUZZ="--seconds 600" for longer)'
	@echo 'make bench     measure against uvicorn, gunicorn and granian      (BENCH="--help" for options)'
	@echo 'make faults    reload, kill, hang and break them under load      (FAULTS="--help" for options)'
	@echo 'make month     30 simulated days of trouble for the pool         (MONTH="--days 3 --seed 7" for others)'
	@echo 'make mutants   break the pool in every way, see the tests notice (MUTANTS="--sample 100 --seed 7" for some)'
	@echo 'PYTHON=python3.13 chooses the interpreter.'

demo: $(VENV)/.run
	@echo 'Serving etc/demo/app.py with 2 workers: http://127.0.0.1:$(PORT)/   (Ctrl-C stops)'
	@echo 'Try:  curl http://127.0.0.1:$(PORT)/'
	@exec $(BIN)/procmgr --workers 2 --host 127.0.0.1 --port $(PORT) --app-dir etc/demo app:app

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 4 --dist worksteal $(TESTS)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Every process is measured, started, forked or re-executed; one that is killed tells nothing, or leaves half a file that
# combine passes over. The tracing is slow, so a test may time out that passes in make test, which is what judges them.
coverage: $(VENV)/.dev
	@$(BIN)/coverage erase
	-$(BIN)/coverage run -m pytest -n 4 --dist worksteal $(TESTS)
	-@$(BIN)/coverage combine --quiet 2>/dev/null
	@$(BIN)/coverage report

bench:
	$(check_python)
	PYTHONPATH=tests exec $(PYTHON) -m bench $(BENCH)

# One process: the cases are long because their messages are many, and the fuzzer judges some by their time.
autobahn: $(VENV)/.dev
	AUTOBAHN=1 $(BIN)/python -m pytest tests/process/test_autobahn.py

fuzz: $(VENV)/.fuzz
	PYTHONPATH=tests nice -n 10 $(BIN)/python -m fuzz $(FUZZ)

faults:
	$(check_python)
	PYTHONPATH=tests exec $(PYTHON) -m bench.faults $(FAULTS)

month: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m sim.month $(MONTH)

mutants: $(VENV)/.dev
	nice -n 19 $(BIN)/python tests/mutants.py $(MUTANTS)

# --group needs pip 25.1, newer than the one that comes with most interpreters.
$(VENV)/.run: pyproject.toml
	$(check_python)
	@echo 'Setting up $(VENV) (once) ...'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(PIP) install -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo 'Installing the test and lint tools into $(VENV) (once) ...'
	@$(PIP) install -e . --group lint --group test
	@touch $@

$(VENV)/.fuzz: $(VENV)/.dev
	@echo 'Installing atheris into $(VENV) (once) ...'
	@$(PIP) install --group fuzz
	@touch $@
