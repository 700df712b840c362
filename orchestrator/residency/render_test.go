package residency_test

import (
	"os"
	"strings"
	"testing"

	"github.com/driftstack/fleet/orchestrator/residency"
)

// TestDocuments: the public documents are what the register says.
func TestDocuments(t *testing.T) {
	for file, want := range map[string]string{"data-residency.md": residency.DataResidency(), "sub-processors.md": residency.SubProcessors()} {
		got, err := os.ReadFile("../../docs/" + file)
		if err != nil || string(got) != want {
			t.Errorf("docs/%s is not what the register says (%v): run `go generate ./orchestrator/residency`", file, err)
		}
	}
	for _, c := range residency.Register() {
		if !strings.Contains(residency.DataResidency(), "**"+c.Title+"**") {
			t.Errorf("%s is not printed", c.Title)
		}
	}
}
