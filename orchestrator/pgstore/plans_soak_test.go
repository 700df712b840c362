//go:build soak

package pgstore_test

import "testing"

func TestSoakPlans(t *testing.T) { testPlans(t, 100_000) }
