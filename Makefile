# make run    the whole system on this machine and a sample session; stays up until Ctrl-C
# make demo   the same, but stops after the sample: exit code 0 when all of it held
# make test   all tests, with the real parts
# make check  format, vet, staticcheck, import ranks, the macOS build
# make soak   the tests that take minutes: the full waits, and what must hold over and over
# make bench  measures the figures the project holds itself to; ONLY=part measures one part
# make clean  removes what the above left in this folder

SHELL := /bin/sh
.SUFFIXES:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PROGRAMS := orchestrator driverhost driftctl devstack
# Where a package's tests share a machine with real browsers, a slow one must not pass for a hung one.
# Many tests wait for most of their time: for a lease to run out, for a partition to be noticed.
TESTFLAGS ?= -race -parallel 3 -timeout 20m
# The longest first: one that begins late ends alone.
PACKAGES ?= ./cmd/devstack ./orchestrator/httpapi ./tunnel ./driverproxy/host ./orchestrator/pgstore ./...

.PHONY: help
help:
	@sed -n 's/^# make /make /p' Makefile

.PHONY: setup
setup:
	@scripts/setup.sh

.PHONY: setup-test
setup-test:
	@scripts/setup.sh test

.PHONY: build
build:
	@test -x bin/devstack || echo 'Building the programs into bin/ (the first time takes a minute) …'
	@go build -o bin/ $(PROGRAMS:%=./cmd/%)

# exec: devstack takes the shell's place, so that Ctrl-C reaches it and nothing in between reports a failure.
.PHONY: run
run: setup build
	@exec bin/devstack run

.PHONY: demo
demo: setup build
	@exec bin/devstack demo

.PHONY: test
test: setup-test build
	@go run ./scripts/parts $(TESTFLAGS) $(PACKAGES)

# One package after the other and without the race detector: these tests hold times that a user would notice.
.PHONY: soak
soak: setup-test
	@where=$$(grep -rlE '^//go:build (.* )?soak' --include='*_test.go' . | xargs -r -n1 dirname | sort -u) && \
	    test -n "$$where" || { echo 'there are no soak tests'; exit 1; }; \
	    echo 'soak tests in' $$where; go test -tags soak -p 1 -count=1 -timeout 2h -v -run '^TestSoak' $$where

.PHONY: check
check:
	@echo 'gofmt' && test -z "$$(gofmt -l cmd driverproxy orchestrator profilestate recorder scripts tunnel | tee /dev/stderr)"
	@echo 'vet' && go vet ./... && go vet -tags soak ./...
	@echo 'staticcheck' && go tool staticcheck ./...
	@echo 'ranks' && go test -count=1 ./cmd
	@echo 'macOS build' && CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 go build -o /dev/null ./cmd/driverhost && CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 go build -o /dev/null ./cmd/driftctl

.PHONY: bench
bench: setup
	@go run ./cmd/bench $(if $(ONLY),--only $(ONLY))

.PHONY: clean
clean:
	@rm -rf .devstack .bench bin test/selenium/node_modules test/webdriverio/node_modules test/playwright/node_modules
