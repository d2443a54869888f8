# make demo   set everything up, train CycleGAN on emoji in a few minutes, leave a picture, a curve and a table
# make test   set everything up, run the tests
# make lint   ruff, mypy, clang-format
# make bench  run the benchmarks, write a result file and a report (BENCH_FLAGS="--parts bench" for a part)
# make readme put the figures of committed result files into README.md and docs/
PYTHON ?= python3
VENV := .venv
TEST_FLAGS ?= -n 2 --dist worksteal
BIN := $(VENV)/bin
NATIVE_SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml constraints.txt

.PHONY: install demo test lint format bench readme clean
install: $(VENV)/.installed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python $(NATIVE_SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	touch $@

demo: install
	$(BIN)/fastgan demo $(DEMO_FLAGS)

test: install
	$(BIN)/python -m pytest $(TEST_FLAGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

bench: install
	$(BIN)/python -m benchmarks.report $(BENCH_FLAGS)

readme: install
	$(BIN)/python -m benchmarks.report --readme

clean:
	rm -rf build dist *.egg-info $(VENV)
