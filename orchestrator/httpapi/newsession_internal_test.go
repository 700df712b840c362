package httpapi

import (
	"strings"
	"testing"
)

// What is wrong with the options is said in their own names, and in nothing of ours.
func TestOptionsAreRefusedInTheirOwnNames(t *testing.T) {
	for options, says := range map[string]string{
		`{"account":1}`: "driftstack:options.account: does not take a JSON number",
		`{"account":"a","timeouts":{"command_seconds":"soon"}}`:   "driftstack:options.timeouts.command_seconds: does not take a JSON string",
		`{"account":"a","timeouts":{"command_seconds":1.5}}`:      "driftstack:options.timeouts.command_seconds: does not take a JSON number 1.5",
		`{"account":"a","acount":"a"}`:                            `driftstack:options: unknown field "acount"`,
		`{"account":"a","capabilities":{"browserName":"safari"}}`: "driftstack:options.capabilities: capabilities go beside",
		`{"Account":"a"}`: `driftstack:options: unknown field "Account"`,
		`{"account":"a","timeouts":{"command_seconds":1,"IDLE_seconds":1}}`: `driftstack:options: unknown field "IDLE_seconds"`,
		`{}`: "driftstack:options.account: name the account",
	} {
		_, _, err := parseNewSession([]byte(`{"capabilities":{"alwaysMatch":{"driftstack:options":` + options + `}}}`))
		if err == nil || !strings.HasPrefix(err.Error(), says) || strings.Contains(err.Error(), "Go ") {
			t.Errorf("%s: %v, want %q", options, err, says)
		}
	}
}
