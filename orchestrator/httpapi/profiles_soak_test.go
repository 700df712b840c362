//go:build soak

package httpapi_test

import "testing"

// TestSoakProfilesOfTwoAccounts is TestProfilesOfTwoAccounts at length.
func TestSoakProfilesOfTwoAccounts(t *testing.T) { alternate(t, 200) }
