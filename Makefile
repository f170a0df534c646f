# `make help` says what there is. Go and git are all that must be there already:
# what else is missing is installed with apt-get, after saying so.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

GO ?= go
# Packages to test: make test PKG=./internal/journal/...
PKG ?= ./...
TESTFLAGS ?=
# Postgres to fetch and test on: make test-postgres VERSION=18; or the release to make
VERSION ?=
# Flags of the demo: make demo DEMO_FLAGS="--for 20s"
DEMO_FLAGS ?=
BENCH_FLAGS ?=
FUZZTIME ?= 20s
# How long make soak goes on
SOAK_FOR ?= 1h

.PHONY: help
help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/billhook, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/billhook ./cmd/billhook

.PHONY: plugins
plugins: ## Build the plugins that come along into bin/plugins/, static binaries
	@mkdir -p bin/plugins
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/plugins/ ./plugins/kamailio ./plugins/radius-disconnect ./plugins/nats ./plugins/smtp

.PHONY: man
man: build ## Write the manual pages into bin/man/
	@rm -rf bin/man
	bin/billhook man --dir bin/man

.PHONY: dist
dist: ## Make a release in dist/: archives, packages, bills of materials (VERSION=1.2.3)
	cd deploy && $(GO) run ./dist -version "$(VERSION)" -out ../dist

.PHONY: dist-check
dist-check: dist ## Make a release of what is committed, again from a clone elsewhere, and compare (VERSION=1.2.3)
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	git clone --quiet . "$$tmp/billhook"; \
	$(MAKE) -C "$$tmp/billhook" dist VERSION="$(VERSION)"; \
	diff dist/SHA256SUMS "$$tmp/billhook/dist/SHA256SUMS" && echo "the same bytes"

.PHONY: demo
demo: deps build ## Show Billhook at work on a throwaway Postgres (DEMO_FLAGS="--for 20s")
	bin/billhook demo $(DEMO_FLAGS)

.PHONY: test
test: test-deps build lint ## Build, lint and run every test with the race detector
	BILLHOOK_SCREENSHOTS=$${BILLHOOK_SCREENSHOTS:-$(CURDIR)/.cache/console} $(GO) test -race -timeout 20m $(TESTFLAGS) $(PKG)
ifeq ($(PKG),./...)
	cd deploy && $(GO) test -timeout 10m ./...
endif

.PHONY: test-postgres
test-postgres: test-deps ## Test what needs Postgres, on every version installed, or on VERSION=18 (fetched)
	@bins="$(if $(VERSION),$$(.ci/postgres $(VERSION)),$$(ls -d /usr/lib/postgresql/*/bin))"; \
	for bin in $$bins; do \
		[ -x "$$bin/initdb" ] || continue; \
		echo "== $$("$$bin/postgres" --version)"; \
		BILLHOOK_PG_BIN="$$bin" $(GO) test -race -count=1 -timeout 10m $(TESTFLAGS) \
			$$($(GO) list -test -f '{{if .ForTest}}{{.ForTest}} {{join .Deps " "}}{{end}}' $(PKG) | awk '/internal\/pgtest/ { print $$1 }' | sort -u); \
	done

.PHONY: nightly
nightly: test-deps ## Run the random tests for long: models against Billhook, under kills (about an hour)
	BILLHOOK_MODEL_TRANSACTIONS=40000 $(GO) test -count=1 -timeout 90m -run '^TestModel$$' -v ./internal/e2e
	BILLHOOK_UMBRELLA_FOR=15m $(GO) test -count=1 -timeout 90m -run '^TestUmbrella$$' -v ./internal/e2e
	$(GO) test -count=1 -timeout 90m -run '^TestSpill$$' -seeds 5000 ./internal/billing
	$(GO) test -race -count=1 -timeout 90m -run '^TestModel' -seeds 300 ./internal/dispatch
	$(GO) test -race -count=1 -timeout 90m -run '^TestFlippedBytes$$' -flips 150 ./internal/journal
	BILLHOOK_TEST_RUNS=10000 $(GO) test -count=1 -timeout 90m -run '^TestManyRuns$$' -v ./internal/handler/plugin ./internal/handler/script

.PHONY: soak
soak: test-deps ## Have everything around Billhook fail under traffic, and count (SOAK_FOR=1h)
	BILLHOOK_SOAK_FOR=$(SOAK_FOR) $(GO) test -count=1 -timeout 0 -run '^TestSoak$$' -v ./internal/e2e

.PHONY: lint
lint: ## Check format, vet, staticcheck
	@out=$$($(GO) tool gofumpt -l $$(git ls-files '*.go')); \
	if [ -n "$$out" ]; then echo "not formatted (make fmt):"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	cd deploy && $(GO) vet ./...

.PHONY: bench
bench: deps ## Drain a backlog beside pg_recvlogical, print ratios (BENCH_FLAGS="-changes 100000")
	$(GO) run ./internal/bench $(BENCH_FLAGS)

.PHONY: fuzz
fuzz: ## Fuzz every target for a short while (FUZZTIME=20s)
	@git ls-files '*_test.go' | xargs grep -o '^func Fuzz[A-Za-z0-9_]*' | sed 's/:func / /' | while read -r file target; do \
		echo "== $$(dirname "$$file") $$target"; \
		$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "./$$(dirname "$$file")"; \
	done

.PHONY: fmt
fmt: ## Format the code
	$(GO) tool gofumpt -w $$(git ls-files '*.go')

.PHONY: proto
proto: ## Generate code of plugins/pluginpb/plugin.proto (needs protoc: apt-get install protobuf-compiler)
	@mkdir -p bin
	$(GO) build -o bin/ google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
	PATH="$(CURDIR)/bin:$$PATH" protoc -I plugins/pluginpb --go_out=plugins/pluginpb --go_opt=paths=source_relative \
		--go-grpc_out=plugins/pluginpb --go-grpc_opt=paths=source_relative plugin.proto
	$(GO) tool gofumpt -w plugins/pluginpb/*.go
	protoc -I plugins/pluginpb --python_out=internal/handler/plugin/testdata/python plugin.proto

.PHONY: deps
deps: ## Install the Postgres server that demo and bench need, if this machine lacks it
	@.ci/setup

.PHONY: test-deps
test-deps: ## Install what the tests need beside it: a C compiler, Prometheus, the servers of plugins
	@.ci/setup tests
	@[ -n "$${BILLHOOK_SKIP_SERVERS:-}" ] || .ci/axe >/dev/null

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin dist
