# setup | demo | test | check | bench. Each verb does its own set-up on a fresh machine.
SHELL := /bin/bash
PY := .venv/bin/python
OUT ?= outputs/demo
SEED ?= 0
export MUJOCO_GL ?= $(shell [ "$$(uname)" = Linux ] && echo egl || echo glfw)

.PHONY: setup demo test check bench bench-eval
setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml scripts/setup.sh plugins/lerobot_policy_graspline/pyproject.toml plugins/lerobot_robot_graspline/pyproject.toml
	@bash scripts/setup.sh

demo: setup  ## collect -> train -> evaluate -> report on three tabletop tasks; pictures in outputs/demo/report.html
	$(PY) -m scripts.demo out=$(OUT) seed=$(SEED)

test: setup
	$(PY) -m pytest -n 2 --dist loadfile

check: setup
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright
	.venv/bin/lint-imports

bench: setup  ## measured ratios, one per bar, in outputs/bench.json
	$(PY) -m scripts.bench

bench-eval: setup  ## episodes an hour beside other harnesses, in outputs/bench_eval.json
	$(PY) -m scripts.bench_eval
