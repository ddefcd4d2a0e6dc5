# Every target sets up what it needs. `make help` lists them.
SHELL := /bin/bash -o pipefail
GO ?= go
export CGO_ENABLED ?= 0
LDFLAGS := -s -w -X main.version=$(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
BUILD := $(GO) build -trimpath -ldflags '$(LDFLAGS)'
# The shim is each container's init, too: static, with libseccomp and a runc of which one file is
# ours (pkg/testenv builds it alike). For arm64: GOARCH=arm64 CC=aarch64-linux-gnu-gcc, and
# PKG_CONFIG_PATH of that architecture's libseccomp-dev.
SHIM_FLAGS := -tags seccomp,netgo,osusergo,no_grpc,seccompcache -ldflags '-s -w -linkmode external -extldflags -static'
PAYLOADS := agent/payload/bin/drover-archive.gz agent/payload/bin/drover-containerd.gz agent/payload/bin/drover-resolver.gz agent/payload/bin/drover-shim.gz agent/payload/bin/drover-supervisor.gz

.PHONY: help setup build payload binary test unit race integration test-one cover fuzz lint bench bench-peers bench-scale generate check-generated torture churn demo demo-env demo-down clean

help: ## what there is
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: ## install the packages that building and testing need
	@deploy/setup.sh

payload: ## the embedded programs: containerd, the resolver, the shim, the supervisor and the archiver, compressed
	@$(GO) build -trimpath -ldflags '-s -w' -o agent/payload/bin/ ./agent/archive/drover-archive ./agent/containerd/drover-containerd ./agent/resolver/drover-resolver ./cli/supervisor/drover-supervisor
	@modfile=$$(agent/shim/native/filters/runc/modfile.sh) && \
	  CGO_ENABLED=1 $(GO) build -trimpath -modfile=$$modfile $(SHIM_FLAGS) -o agent/payload/bin/ ./agent/shim/drover-shim
	@cd agent/payload/bin && for f in drover-archive drover-containerd drover-resolver drover-shim drover-supervisor; do \
	  gzip -9nc $$f > $$f.gz.new && rm $$f && { cmp -s $$f.gz.new $$f.gz && rm $$f.gz.new || mv $$f.gz.new $$f.gz; }; done

build: setup payload binary ## bin/drover, payloads first

binary:
	@mkdir -p bin && $(BUILD) -o bin/drover ./cli/drover

test: setup payload binary race integration ## everything: under the race detector, and with real containers

unit: ## what needs no root, no containers and no payloads, in a minute
	$(GO) test -short -timeout 5m ./...

race:
	CGO_ENABLED=1 $(GO) test -race -timeout 10m $$($(GO) list ./... | grep -v -e /e2e -e /agent/engine)

# Fleets wait more than they compute: four at a time on two processors. The daemons are
# those that are shipped; the engine, in its test's process, is under the race detector.
integration:
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 15m -parallel $$((2 * $$(nproc))) ./agent/engine/... ./e2e/...

SEED ?= 1
ROUNDS ?= 1000
torture: setup payload ## kill, stop and fail every step of what is done to containers: make torture [SEED=1] [ROUNDS=1000]
	TORTURE_SEED=$(SEED) TORTURE_ROUNDS=$(ROUNDS) $(GO) test -count=1 -v -timeout 2h -parallel 4 -run '^TestRounds$$' ./e2e/torture

churn: setup payload binary ## kill, move and restart containers, agents and nodes in three networks: make churn [SEED=1] [ROUNDS=1000]
	CHURN_SEED=$(SEED) CHURN_ROUNDS=$(ROUNDS) $(GO) test -count=1 -v -timeout 2h -run '^TestChurn$$' ./e2e

PKG ?= ./...
test-one: ## one test, with its output: make test-one NAME=TestX [PKG=./controller]
	@test -n "$(NAME)" || { echo "make test-one NAME=TestX [PKG=./controller]" >&2; exit 2; }
	$(GO) test -count=1 -v -run '^$(NAME)$$' $(PKG)

cover: ## coverage, and lines of tests for each line of code, by package
	@mkdir -p bin && $(GO) test -short -coverprofile=bin/cover.out ./... >/dev/null
	@deploy/cover.sh bin/cover.out

TIME ?= 10s
fuzz: ## each fuzz target for a while: make fuzz [TIME=1m]
	@deploy/fuzz.sh $(TIME)

lint: ## vet, format and the import rules
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	CGO_ENABLED=0 $(GO) tool -modfile=tools/go.mod golangci-lint run ./...

N ?= 30
bench: build bench-peers ## drover beside ctr, docker and Swarm, by turns: make bench [BENCH='exec|restart'] [N=30]
	@BENCH='$(BENCH)' N='$(N)' $(GO) test -run '^$$' -bench Peers -benchtime 1x -timeout 60m ./e2e/

bench-peers: ## install what make bench compares with
	@deploy/bench-peers.sh

bench-scale: ## what a fleet costs as it grows: placements, lists, hellos, commits, idling; ROWS=list,place for some
	@mkdir -p bin && $(BUILD) -o bin/drover-sim ./e2e/sim
	@bin/drover-sim -rows '$(ROWS)'

generate: ## protobuf code
	@mkdir -p bin/gen && $(GO) build -o bin/gen/ google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go
	@cd pkg/api/v1 && PATH=$(CURDIR)/bin/gen:$$PATH protoc --go_out=paths=source_relative:. --connect-go_out=paths=source_relative:. *.proto

check-generated: setup generate ## fails when generated code is not what the sources say
	@git diff --exit-code --stat -- pkg/api/v1

demo: build ## two hosts as network namespaces, every command shown with its output
	@deploy/demo.sh up

demo-env: ## eval "$(make demo-env)" points a shell at the demo
	@deploy/demo.sh env

demo-down: ## remove the demo, all of it
	@deploy/demo.sh down

clean:
	rm -rf bin agent/payload/bin/*.gz
