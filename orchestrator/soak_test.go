//go:build soak

package orchestrator

import "testing"

// TestSoakStreamBreaks breaks the client's socket, the host's sockets and the orchestrator 1,000 times in one stream.
func TestSoakStreamBreaks(t *testing.T) { breakEverything(t, 1000) }
