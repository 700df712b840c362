package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// feed makes the stream of a run out of a few events.
func feed(t *testing.T, events ...event) (*report, *strings.Builder) {
	t.Helper()
	var stream, out strings.Builder
	for _, e := range events {
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		stream.Write(append(line, '\n'))
	}
	r := newReport(&out)
	if err := r.read(strings.NewReader(stream.String())); err != nil {
		t.Fatal(err)
	}
	return r, &out
}

func said(what string) event {
	return event{Action: "output", Package: "p", Test: "T", Output: "    x_test.go:1: " + what + "\n"}
}

func allReal() (events []event) {
	for _, name := range required() {
		events = append(events, said("part: "+name+" real"))
	}
	return append(events, event{Action: "pass", Package: "p", Test: "T"})
}

func TestAllPartsReal(t *testing.T) {
	r, out := feed(t, allReal()...)
	if !r.close(true) || !strings.Contains(out.String(), "1 passed, 0 failed, 0 skipped") {
		t.Fatalf("a run with all parts does not hold:\n%s", out)
	}
}

func TestSkippedPartFailsInCIOnly(t *testing.T) {
	events := append(allReal()[1:], said("part: postgres skipped: not installed"))
	r, out := feed(t, events...)
	if !r.close(false) {
		t.Fatal("a skipped part failed outside CI")
	}
	if r.close(true) || !strings.Contains(out.String(), "postgres    none: not installed") {
		t.Fatalf("a skipped part held in CI, or its reason is missing:\n%s", out)
	}
}

func TestUnreportedPartFailsInCI(t *testing.T) {
	r, out := feed(t, allReal()[1:]...)
	if r.close(true) || !strings.Contains(out.String(), "none: no test reported it") {
		t.Fatalf("a part nobody reported held in CI:\n%s", out)
	}
}

func TestSkippedTestsShowTheirReason(t *testing.T) {
	r, out := feed(t, event{Action: "output", Package: "p", Test: "T", Output: "=== RUN   T\n"}, said("needs root"),
		event{Action: "output", Package: "p", Test: "T", Output: "--- SKIP: T (0.00s)\n"}, event{Action: "skip", Package: "p", Test: "T"})
	if !r.close(false) {
		t.Error("a skipped test failed outside CI")
	}
	if !strings.Contains(out.String(), "p T: x_test.go:1: needs root") {
		t.Fatalf("reason missing:\n%s", out)
	}
}

func TestAnySkipFailsInCI(t *testing.T) {
	r, out := feed(t, append(allReal(), event{Action: "skip", Package: "p", Test: "Other"})...)
	if r.close(true) {
		t.Fatalf("a skipped test held in CI:\n%s", out)
	}
}

func TestFailuresAreShown(t *testing.T) {
	_, out := feed(t, said("it broke"), event{Action: "fail", Package: "p", Test: "T"})
	if !strings.Contains(out.String(), "it broke") {
		t.Fatalf("output of a failed test missing:\n%s", out)
	}
}
