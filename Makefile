# make            what there is to do
# Everything but the CUDA targets needs a C compiler, libm and stb_ds.h; tests/deps.sh fetches them when it may.
CC      ?= cc
SECONDS ?= 60
# Threads that wait for each other should soon sleep: spinning, the default, is many times slower on a busy machine.
export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT  ?= 5000
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 2)
WARN     = -Wall -Wextra
# First of all, because what follows asks the compiler what it can do.
$(if $(filter-out help clean check-ops course,$(or $(MAKECMDGOALS),help)),$(shell CC="$(CC)" sh tests/deps.sh >&2))
NATIVE  := $(shell echo 'int main(void){return 0;}' | $(CC) -march=native -xc - -o /dev/null 2>/dev/null && echo -march=native)
OPENMP  := $(shell echo 'int main(void){return 0;}' | $(CC) -fopenmp -xc - -o /dev/null 2>/dev/null && echo -fopenmp)
export OPENMP
CFLAGS  ?= -std=c99 -O3 $(NATIVE) $(OPENMP) -g $(WARN)
SANFLAGS = -std=c99 -O1 $(OPENMP) -g $(WARN) -fno-omit-frame-pointer
LIBS     = -lm
PYTHON   = build/venv/bin/python

EXAMPLES := $(patsubst examples/%.c,%,$(sort $(wildcard examples/[0-9]*.c)))
TESTS    := $(patsubst tests/%.c,%,$(sort $(wildcard tests/test_*.c)))

.PHONY: help run test test-parity test-cuda asan tsan check-cxx check-ops examples notebooks golden course bench bench-lora bench-tokenizer bench-linear bench-cuda fuzz clean deps venv

help:
	@echo 'make run              fine-tune a small language model here and now (about a minute)'
	@echo 'make test             all tests that need nothing but a C compiler'
	@echo 'make build/ftune      the command-line tool;  build/ftune --help'
	@echo 'make examples         build examples/01 ... 12 into build/'
	@echo 'make test-parity      against PyTorch, Transformers, PEFT, tokenizers, tiktoken, SentencePiece (from PyPI, in build/venv)'
	@echo 'make asan             the tests under AddressSanitizer and UBSan'
	@echo 'make tsan             one tokenizer shared by threads, under ThreadSanitizer'
	@echo 'make check-cxx        C99, C11, C++17, clang and no-OpenMP builds without a warning'
	@echo 'make check-ops        ftune_cuda.cu has every entry of the op table (no GPU needed)'
	@echo 'make test-cuda        the CUDA op table against the CPU one (needs an NVIDIA GPU and its toolkit)'
	@echo 'make fuzz SECONDS=60  libFuzzer on every reader (needs clang)'
	@echo 'make bench            matmul beside OpenBLAS (needs libopenblas-dev)'
	@echo 'make bench-lora       a LoRA step on the CPU beside PyTorch + PEFT (in build/venv)'
	@echo 'make bench-tokenizer  tokenizers beside tiktoken, Hugging Face and SentencePiece'
	@echo 'make bench-linear     a million equal characters, two, four: does the time grow with the text? Loading times'
	@echo 'make notebooks        run the notebooks from top to bottom (NumPy and Matplotlib, in build/venv)'
	@echo 'make golden           make the golden files of tests/golden again'
	@echo 'make course           build/course.h: ftune.h without what a first reading can leave out'
	@echo 'make clean            remove build/'

deps:
	@CC="$(CC)" sh tests/deps.sh
	@mkdir -p build/tests build/tmp

# The library is compiled once; FTUNE_IMPLEMENTED tells a program that includes the implementation to leave it out.
build/ftune.o: ftune.h | deps
	$(CC) $(CFLAGS) -DFTUNE_IMPLEMENTATION -xc -c ftune.h -o $@
build/ftune: examples/ftune.c build/ftune.o
	$(CC) $(CFLAGS) -I. -DFTUNE_IMPLEMENTED $< build/ftune.o -o $@ $(LIBS)
build/run-world: examples/run.c build/ftune.o
	$(CC) $(CFLAGS) -I. -DFTUNE_IMPLEMENTED $< build/ftune.o -o $@ $(LIBS)
build/world: examples/world.c | deps
	$(CC) $(CFLAGS) $< -o $@ $(LIBS)
$(EXAMPLES:%=build/%): build/%: examples/%.c build/ftune.o
	$(CC) $(CFLAGS) -I. -DFTUNE_IMPLEMENTED $< build/ftune.o -o $@ $(LIBS)
# Tests look inside the implementation, so each compiles its own; static, so that only what it uses is compiled.
INSIDE   = -DFTUNE_STATIC -Wno-unused-function -I. -Itests
build/tests/%: tests/%.c tests/test.h ftune.h | deps
	$(CC) $(CFLAGS:-O3=-O2) $(INSIDE) $< -o $@ $(LIBS)
build/asan/%: tests/%.c tests/test.h ftune.h | deps
	@mkdir -p build/asan
	$(CC) $(SANFLAGS) -fsanitize=address,undefined -fno-sanitize-recover=undefined $(INSIDE) $< -o $@ $(LIBS)
build/tests/test_01_threads build/asan/test_01_threads build/tsan/test_01_threads: LIBS += -pthread
build/tsan/%: tests/%.c tests/test.h ftune.h | deps
	@mkdir -p build/tsan
	$(CC) $(filter-out $(OPENMP),$(SANFLAGS)) -fsanitize=thread $(INSIDE) $< -o $@ $(LIBS)

run: build/run-world build/ftune
	@build/run-world

examples: $(EXAMPLES:%=build/%) build/ftune

test: $(TESTS:%=build/tests/%) examples build/world
	@sh tests/run.sh $(TESTS:%=build/tests/%) 'sh tests/test_cli.sh' 'sh tests/test_examples.sh'

asan: $(TESTS:%=build/asan/%)
	@sh tests/run.sh $(TESTS:%=build/asan/%)

# OpenMP is left out: its locks are invisible to ThreadSanitizer. One test starts threads of its own.
tsan: build/tsan/test_01_threads
	@sh tests/run.sh build/tsan/test_01_threads

check-cxx: deps
	@sh tests/check_cxx.sh

check-ops:
	@sh tests/check_ops.sh

venv: build/venv/ready
build/venv/ready: tests/parity/requirements.txt
	python3 -m venv build/venv
	build/venv/bin/pip install -q -r tests/parity/requirements.txt
	# SentencePiece 0.1 made the golden files; 0.2 breaks ties of Unigram differently
	-build/venv/bin/pip install -q --no-deps --target build/sentencepiece_0.1 sentencepiece==0.1.98
	# only its template and loss-scale modules are loaded: none of its dependencies is needed
	-build/venv/bin/pip install -q --no-deps --target build/ms_swift ms-swift==4.6.0
	@touch $@

test-parity: build/ftune build/venv/ready
	@sh tests/run.sh $(patsubst %,'$(PYTHON) %',$(sort $(wildcard tests/parity/test_*.py)))

notebooks: build/ftune build/venv/ready
	@$(PYTHON) notebooks/run.py

golden: build/venv/ready build/ftune
	$(PYTHON) tests/golden/make_model.py
	$(PYTHON) tests/golden/make_weights.py
	$(PYTHON) tests/golden/make_ops.py > build/ops.txt && mv build/ops.txt tests/golden/ops.txt
	$(PYTHON) tests/golden/make_quant.py > build/quant.txt && mv build/quant.txt tests/golden/quant.txt
	$(PYTHON) tests/golden/make_pieces_slice.py $${FTUNE_SHARED:-../shared}/swift/golden_pieces.json > build/slice.json && mv build/slice.json tests/golden/pieces_slice.json

bench: deps
	$(CC) $(CFLAGS) -I. tests/bench/matmul.c -o build/bench-matmul -lopenblas $(LIBS)
	@env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE build/bench-matmul

bench-lora: build/venv/ready | deps
	$(CC) $(CFLAGS) -shared -fPIC -I. tests/bench/lora_step.c -o build/lora_step.so $(LIBS)
	@$(PYTHON) -W ignore tests/bench/lora_step.py

bench-tokenizer: build/ftune build/venv/ready
	@$(PYTHON) tests/bench/tokenizer.py

build/bench-linear: tests/bench/linear.c build/ftune.o
	$(CC) $(CFLAGS) -I. -DFTUNE_IMPLEMENTED $< build/ftune.o -o $@ $(LIBS)
bench-linear: build/bench-linear
	@build/bench-linear

fuzz: deps
	@CC=clang SECONDS=$(SECONDS) sh tests/fuzz/run.sh

# On a machine with an NVIDIA GPU and the CUDA toolkit.
build/ftune_cuda.o: ftune_cuda.cu ftune.h | deps
	nvcc -O3 -std=c++17 -I. -c $< -o $@
test-cuda: build/ftune_cuda.o
	$(CC) $(CFLAGS) -DFTUNE_CUDA -I. -Itests -c tests/test_cuda.c -o build/test_cuda.o
	nvcc build/test_cuda.o build/ftune_cuda.o -o build/test-cuda -lcublas -lgomp -lm
	@sh tests/run.sh build/test-cuda

# The chapters of the implementation, without the sections marked "second reading" and the appendices.
course:
	@mkdir -p build
	@awk '/^\/\* >>1 /{part++} /^\/\* appendix: errors/{exit} /^\/\* (---- |>>)/{skip=/second reading/} part == 2 && !skip' ftune.h >build/course.h
	@wc -l build/course.h

clean:
	rm -rf build
