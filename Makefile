# make table   set up and run the main job: the vision-centric table of the five methods, on the laptop lab
# make test    set up and pass the tests
PYTHON ?= python3
# Without a GPU the CPU build will do; on a GPU machine plain `torch` from PyPI is the CUDA build. To force one, name it:
#   make table TORCH="torch==2.13.0 --index-url ADDRESS-OF-THE-BUILDS"
TORCH ?= torch==2.13.0
BIN := .venv/bin
STAMP := .venv/installed
HARNESS := .venv-vlmevalkit

.PHONY: table seeds tables real rehearsal styles forecast figures notebooks test test-all lint check-foundations harness harness-full clean

table: $(STAMP)
	$(BIN)/python -m benchmarks.run --suite vision-centric

seeds: $(STAMP)  ## the lab's table of all suites over three seeds, into results/
	$(BIN)/python -m benchmarks.run --suite all --seeds 0 1 2 --publish results/lab_ornate

tables: $(STAMP)  ## the paper's tables in every format, published beside measured, into results/
	$(BIN)/python -m benchmarks.tables --table all --out results/tables

real: $(STAMP)  ## the three stages on real records with small models, into results/
	$(BIN)/python -m benchmarks.real --publish results/real_small

rehearsal: $(STAMP)  ## a paper-size recipe's whole path at two layers, killed and resumed, into results/
	$(BIN)/python -m benchmarks.rehearsal --publish results/rehearsal

SHARED ?= $(or $(DPA_SHARED),../shared)
STYLES = alt_text_blip_lcs crowd_coco spoken_localized_narratives model_paragraph_vila13b_coco chat_instruct_alpaca
styles: $(STAMP)  ## five real caption styles x a proxy for each, on a small LLM trained on the spot, into results/
	test -f runs/styles/models/llm/config.json || $(BIN)/python -m dpa.lab.small --text $(SHARED)/data/public_domain_books/*.md $(SHARED)/data/wikitext2/valid.txt --out runs/styles/models
	$(BIN)/python -m analysis.perplexity --llm runs/styles/models/llm --fit --steps 100 --runs runs/styles/proxies --cache runs/styles/scores \
	    --captions $(STYLES:%=$(SHARED)/data/caption_styles/%.txt) --out results/styles

forecast: $(STAMP)  ## four LLMs x three styles: trained, asked, forecast, and the two held against each other, into results/
	$(BIN)/python -m benchmarks.grid --methods vanilla --seeds 0 1 --publish results/grid --forecast

figures: $(STAMP)  ## the paper's figures from the lab, relevance and words before and after stage 2, into results/
	$(BIN)/python -m analysis.plots conflict 1b 3 4 6 7
	$(BIN)/python -m analysis.lab --captions terse --out results/lab_terse

notebooks: $(STAMP)  ## run the notebooks from clean kernels
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbmake --nbmake-timeout=300 notebooks

test: $(STAMP) $(HARNESS)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(STAMP) $(HARNESS)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

check-foundations: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m dpa.lab.foundations --check

# torch first and pinned, so that nothing below pulls another build of it
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

harness: $(HARNESS)/installed  ## VLMEvalKit's prompts and scorers in their own environment, without its models and their needs

$(HARNESS)/installed: harness-constraints.txt
	$(PYTHON) -m venv $(HARNESS)
	$(HARNESS)/bin/python -m pip install --quiet --constraint harness-constraints.txt \
	    pandas numpy pillow tqdm tabulate validators sty filelock huggingface_hub
	$(HARNESS)/bin/python -m pip install --quiet --constraint harness-constraints.txt --no-deps ms-vlmeval
	touch $@

FULL_NEEDS = xlsxwriter openpyxl transformers accelerate datasets termcolor python-dotenv matplotlib einops requests rich \
    sentencepiece tiktoken portalocker omegaconf imageio opencv-python-headless timeout-decorator json_repair scikit-learn \
    nltk openai google-genai sympy levenshtein decord jieba rouge math-verify pylatexenc==2.10 num2words qwen_vl_utils
harness-full: $(HARNESS)-full/installed  ## the whole kit, only to be held against the light one (on CPU; 3 GB)

$(HARNESS)-full/installed: harness-constraints.txt tests/torchvision_operators.py
	$(PYTHON) -m venv $(HARNESS)-full
	$(HARNESS)-full/bin/python -m pip install --quiet $(TORCH)
	$(HARNESS)-full/bin/python -m pip install --quiet --constraint harness-constraints.txt \
	    pandas numpy pillow tqdm tabulate validators sty filelock huggingface_hub $(FULL_NEEDS)
	$(HARNESS)-full/bin/python -m pip install --quiet --constraint harness-constraints.txt --no-deps ms-vlmeval torchvision
	cp tests/torchvision_operators.py "$$($(HARNESS)-full/bin/python -c 'import site; print(site.getsitepackages()[0])')/sitecustomize.py"
	touch $@

clean:
	rm -rf .venv $(HARNESS) $(HARNESS)-full runs
