//go:build soak

package host_test

import "testing"

// TestSoakRandomCuts cuts the sockets of one session a thousand times.
func TestSoakRandomCuts(t *testing.T) { randomCuts(t, 1000) }
