package httpapi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/profilestate"
)

// TestProblemsAreDocumented: each type of problem has a line in docs/dispatch.md with the status that it has, no other has, and what
// time alone mends says when to come back.
func TestProblemsAreDocumented(t *testing.T) {
	source, err := os.ReadFile("problem.go")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../docs/dispatch.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "| type | status | it is | what to do |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	var types []string
	for _, m := range regexp.MustCompile(`"urn:driftstack:problem:([a-z-]+)"`).FindAllStringSubmatch(string(source), -1) {
		types = append(types, m[1])
	}
	documented := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\| ([0-9]{3}|as below) \\|").FindAllStringSubmatch(table, -1) {
		documented[m[1]] = m[2]
	}
	for _, name := range types {
		if documented[name] == "" {
			t.Errorf("%s is not in docs/dispatch.md", name)
		}
	}
	for name := range documented {
		if !slices.Contains(types, name) {
			t.Errorf("docs/dispatch.md has %s, which there is not", name)
		}
	}
	for _, c := range []struct {
		err   error
		later bool
	}{
		{&orchestrator.InvalidError{Field: "f"}, false}, {orchestrator.ErrNoSuchDevice, false}, {&orchestrator.NoDeviceError{}, false},
		{&orchestrator.ConflictError{}, false}, {&orchestrator.ProfileHeldError{}, false}, {orchestrator.ErrNotFound, false},
		{&orchestrator.QueueFullError{RetryAfter: time.Second}, true}, {&orchestrator.QuotaError{RetryAfter: time.Second}, true},
		{orchestrator.ErrElsewhere, true}, {orchestrator.ErrUnavailable, true}, {context.DeadlineExceeded, true}, {&orchestrator.TooManyStreamsError{}, false},
		{&profilestate.LimitError{}, false}, {profilestate.ErrKeyDestroyed, false}, {profilestate.ErrVolume, false}, {errors.New("a defect"), false},
	} {
		err := fmt.Errorf("it is: %w", c.err)
		p := problemOf(err, zap.NewNop())
		name := strings.TrimPrefix(p.Type, "urn:driftstack:problem:")
		if got := fmt.Sprint(p.Status); documented[name] != got {
			t.Errorf("%v: %s has the status %s, and %q in docs/dispatch.md", c.err, name, got, documented[name])
		}
		if later := retryAfter(err) > 0; later != c.later {
			t.Errorf("%v: says when to come back: %v", c.err, later)
		}
	}
}
