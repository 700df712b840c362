//go:build soak

package recorder

import "testing"

// TestSoakKillNine kills the recorder 200 times.
func TestSoakKillNine(t *testing.T) { killMany(t, 200) }
