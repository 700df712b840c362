//go:build soak

package stream

import "testing"

// TestSoakCuts cuts the client's connection 1,000 times in one stream.
func TestSoakCuts(t *testing.T) { cutAtRandom(t, seed(t), 1000) }
