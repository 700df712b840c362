package main

import (
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// TestCommandLine: the commands are sound as kong has them, and one with an optional argument is told from the same without it.
func TestCommandLine(t *testing.T) {
	var c cli
	k, err := kong.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"accounts profile-execution x":    "accounts profile-execution <id>",
		"accounts profile-execution x eu": "accounts profile-execution <id> <allowed>",
		"hosts ls":                        "hosts ls",
	} {
		got, err := k.Parse(strings.Fields(line))
		if err != nil {
			t.Fatal(err)
		}
		if got.Command() != want {
			t.Errorf("%s is %s", line, got.Command())
		}
	}
	if _, err := k.Parse(strings.Fields("accounts profile-execution x us")); err == nil {
		t.Error("it may run in the US alone")
	}
}
