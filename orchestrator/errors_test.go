package orchestrator

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestEndingsAreDocumented: each reason is a line of docs/dispatch.md, as the table has it, and no other is.
func TestEndingsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/dispatch.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "| reason | status | W3C error | again | says |\n|---|---|---|---|---|\n")
	if !found {
		t.Fatal("there is no table of endings")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	var want []string
	for _, r := range slices.Sorted(maps.Keys(Endings())) {
		e := Endings()[r]
		again := "no"
		if e.Retry {
			again = "yes"
		}
		want = append(want, fmt.Sprintf("| `%s` | %d | `%s` | %s | %s |", r, e.HTTP, e.W3C, again, e.Text))
	}
	if got, want := strings.TrimSpace(table), strings.Join(want, "\n"); got != want {
		t.Errorf("docs/dispatch.md has\n%s\nand should have\n%s", got, want)
	}
}
