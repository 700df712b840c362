//go:build soak

package host_test

import "testing"

// TestSoakRandomCuts cuts the sockets of one session a thousand times.
func TestSoakRandomCuts(t *testing.T) { randomCuts(t, 1000) }

// TestSoakCycles starts and ends ten thousand sessions.
func TestSoakCycles(t *testing.T) { cycles(t, 10_000) }
