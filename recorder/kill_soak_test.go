//go:build soak

package recorder

import (
	"fmt"
	"testing"
)

// TestSoakKillNine kills the recorder 200 times, in rounds: the storage of one holds some gigabytes.
func TestSoakKillNine(t *testing.T) {
	for round := range 4 {
		t.Run(fmt.Sprint(round), func(t *testing.T) { killMany(t, 50) })
	}
}
