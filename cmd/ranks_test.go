// Package cmd_test holds the rules about imports that orchestrator/doc.go draws: which package may import which, and
// where each library lives.
package cmd_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/driftstack/fleet/"

// ranks by import path below the module; a package takes the rank of its longest listed prefix.
var ranks = map[string]int{
	"orchestrator/api":      0,
	"orchestrator/coredump": 0,
	"orchestrator/outbound": 0,
	"orchestrator/place":    0,
	"driverproxy/batch":     0,
	"driverproxy/inert":     0,
	"driverproxy/webdriver": 0,
	"driverproxy/wire":      0,
	"recorder/webm":         0,

	"tunnel":       1,
	"driverproxy":  1,
	"profilestate": 1,
	"recorder":     1,

	"orchestrator": 2,

	"orchestrator/httpapi":   3,
	"orchestrator/pgstore":   3,
	"orchestrator/client":    3,
	"orchestrator/residency": 3,

	"cmd":     4,
	"scripts": 4,
	"test":    4,
}

// homes are the folders that may import a library, by the library's import path prefix.
var homes = map[string][]string{
	"github.com/jackc/pgx/":                   {"orchestrator/pgstore"},
	"github.com/pressly/goose/":               {"orchestrator/pgstore"},
	"github.com/aws/aws-sdk-go-v2":            {"recorder"},
	"github.com/aws/smithy-go":                {"recorder"},
	"golang.zx2c4.com/wireguard":              {"tunnel"},
	"gvisor.dev/gvisor":                       {"tunnel"},
	"github.com/gorilla/websocket":            {"driverproxy"},
	"github.com/tink-crypto/":                 {"profilestate"},
	"github.com/danielgtaylor/huma/":          {"orchestrator/httpapi"},
	"github.com/alecthomas/kong":              {"cmd"},
	"github.com/vishvananda/":                 {"tunnel", "cmd/devstack"},
	"github.com/google/nftables":              {"tunnel"},
	"github.com/prometheus/client_golang":     {"orchestrator", "cmd"},
	"github.com/jedib0t/go-pretty/":           {"cmd"},
	"github.com/tmaxmax/go-sse":               {"orchestrator", "cmd"},
	"github.com/rogpeppe/go-internal":         {},
	"pgregory.net/rapid":                      {},
	"go.uber.org/goleak":                      {},
	"github.com/google/go-cmp":                {},
	"github.com/stretchr/testify":             {},
	module + "driverproxy/drivertest":         {"driverproxy/host", "cmd/driverhost", "cmd/bench"},
	module + "orchestrator/pgstore/pgcluster": {"cmd/devstack", "cmd/bench"},
	module + "recorder/s3server":              {"cmd/devstack", "cmd/bench"},
	module + "tunnel/tunneltest":              {"cmd/bench"},
	module + "driverproxy/socket/sockettest":  {},
}

// listed is what `go list -json` says of a package.
type listed struct {
	ImportPath   string
	Standard     bool
	Imports      []string
	TestImports  []string
	XTestImports []string
	Error        *struct{ Err string }
}

func list(t *testing.T) []listed {
	t.Helper()
	var all []listed
	for _, goos := range []string{"linux", "darwin"} { // files of both systems count
		cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Standard,Imports,TestImports,XTestImports,Error", "./...")
		cmd.Dir = ".."
		cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list: %v: %s", err, stderr.String())
		}
		dec := json.NewDecoder(bytes.NewReader(out))
		for {
			var p listed
			if err := dec.Decode(&p); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			p.ImportPath = strings.TrimPrefix(p.ImportPath, module)
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		t.Fatal("go list found no package: this test would hold whatever they import")
	}
	return all
}

// TestRanks: imports descend, rank 0 knows only the standard library, and the four parts of rank 1 do not know one
// another. Test files may import packages of their own rank or below, whichever part they belong to: tests at an edge
// between parts need both sides.
func TestRanks(t *testing.T) {
	for _, p := range list(t) {
		for _, problem := range rankProblems(p) {
			t.Error(problem)
		}
	}
}

func rankProblems(p listed) (problems []string) {
	own, ok := rank(p.ImportPath)
	if !ok {
		return []string{p.ImportPath + " has no rank: give it one in cmd/ranks_test.go and in orchestrator/doc.go"}
	}
	for _, imported := range p.Imports {
		path, ours := strings.CutPrefix(imported, module)
		if !ours {
			if own == 0 && strings.Contains(imported, ".") {
				problems = append(problems, p.ImportPath+" (rank 0) imports "+imported+": packages of messages and formats use the standard library only")
			}
			continue
		}
		other, ok := rank(path)
		switch {
		case !ok || other > own:
			problems = append(problems, say(p.ImportPath, own, path, other)+": imports descend; pass what is needed in as a small interface")
		case own == 1 && other == 1 && top(path) != top(p.ImportPath):
			problems = append(problems, say(p.ImportPath, own, path, other)+": the parts of rank 1 do not know one another; pass what is needed in as a small interface")
		case own == 4 && other == 4 && path != p.ImportPath && !strings.HasPrefix(path, p.ImportPath+"/"):
			problems = append(problems, say(p.ImportPath, own, path, other)+": programs do not import one another")
		}
	}
	for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
		path, ours := strings.CutPrefix(imported, module)
		if other, ok := rank(path); ours && ok && other > own && !support(path) {
			problems = append(problems, say(p.ImportPath, own, path, other)+" in a test: test it there instead")
		}
	}
	return problems
}

// support packages exist for the tests of packages below them as well.
func support(path string) bool {
	return strings.HasPrefix(path, "orchestrator/pgstore/pgcluster")
}

// TestLibraryHomes: each library is imported in one place, so that it can be swapped there. Test files are not bound:
// a test may look at a part from outside with the same library that is inside (a raw websocket, a database query). The
// exception is pgx, which is bound in tests too: whoever needs a database in a test goes through the store.
func TestLibraryHomes(t *testing.T) {
	for _, p := range list(t) {
		for _, problem := range homeProblems(p) {
			t.Error(problem)
		}
	}
}

func homeProblems(p listed) (problems []string) {
	imports := p.Imports
	for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
		if strings.HasPrefix(imported, "github.com/jackc/pgx/") {
			imports = append(slices.Clone(imports), imported)
		}
	}
	for _, imported := range imports {
		for library, allowed := range homes {
			if !strings.HasPrefix(imported, library) || within(p.ImportPath, strings.TrimPrefix(library, module)) {
				continue
			}
			if !slices.ContainsFunc(allowed, func(home string) bool { return within(p.ImportPath, home) }) {
				where := "tests"
				if len(allowed) > 0 {
					where = strings.Join(allowed, " and ")
				}
				problems = append(problems, p.ImportPath+" imports "+imported+", which has its home in "+where)
			}
		}
	}
	return problems
}

func within(path, folder string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }

func rank(path string) (int, bool) {
	for p := path; ; {
		if r, ok := ranks[p]; ok {
			return r, true
		}
		i := strings.LastIndexByte(p, '/')
		if i < 0 {
			return 0, false
		}
		p = p[:i]
	}
}

func top(path string) string {
	first, _, _ := strings.Cut(path, "/")
	return first
}

func say(path string, own int, imported string, other int) string {
	return path + " (rank " + string(rune('0'+own)) + ") imports " + imported + " (rank " + string(rune('0'+other)) + ")"
}

// TestRulesCatchBreaches shows that the rules above can fail.
func TestRulesCatchBreaches(t *testing.T) {
	for _, tc := range []struct {
		name  string
		p     listed
		rules func(listed) []string
		holds bool
	}{
		{"downwards", listed{ImportPath: "orchestrator", Imports: []string{module + "tunnel", "context"}}, rankProblems, true},
		{"upwards", listed{ImportPath: "recorder", Imports: []string{module + "orchestrator"}}, rankProblems, false},
		{"upwards in a test", listed{ImportPath: "recorder", TestImports: []string{module + "orchestrator"}}, rankProblems, false},
		{"sideways", listed{ImportPath: "recorder/capture", Imports: []string{module + "driverproxy/host"}}, rankProblems, false},
		{"sideways in a test", listed{ImportPath: "recorder/capture", TestImports: []string{module + "driverproxy/host"}}, rankProblems, true},
		{"sideways to rank 0", listed{ImportPath: "recorder", Imports: []string{module + "driverproxy/wire"}}, rankProblems, true},
		{"library in rank 0", listed{ImportPath: "driverproxy/wire", Imports: []string{"go.uber.org/zap"}}, rankProblems, false},
		{"a package without a rank", listed{ImportPath: "common"}, rankProblems, false},
		{"program imports program", listed{ImportPath: "cmd/driftctl", Imports: []string{module + "cmd/devstack"}}, rankProblems, false},
		{"pgx at home", listed{ImportPath: "orchestrator/pgstore", Imports: []string{"github.com/jackc/pgx/v5/pgxpool"}}, homeProblems, true},
		{"pgx abroad", listed{ImportPath: "orchestrator/httpapi", Imports: []string{"github.com/jackc/pgx/v5"}}, homeProblems, false},
		{"pgx abroad in a test", listed{ImportPath: "orchestrator/httpapi", XTestImports: []string{"github.com/jackc/pgx/v5"}}, homeProblems, false},
		{"websocket in a test", listed{ImportPath: "orchestrator/httpapi", XTestImports: []string{"github.com/gorilla/websocket"}}, homeProblems, true},
		{"wgctrl abroad", listed{ImportPath: "cmd/driverhost", Imports: []string{"golang.zx2c4.com/wireguard/wgctrl"}}, homeProblems, false},
		{"test library in a program", listed{ImportPath: "tunnel", Imports: []string{"pgregory.net/rapid"}}, homeProblems, false},
		{"test network in production", listed{ImportPath: "tunnel", Imports: []string{module + "tunnel/tunneltest"}}, homeProblems, false},
		{"development cluster in production", listed{ImportPath: "cmd/orchestrator", Imports: []string{module + "orchestrator/pgstore/pgcluster"}}, homeProblems, false},
	} {
		if got := tc.rules(tc.p); (len(got) == 0) != tc.holds {
			t.Errorf("%s: problems %q, want holds=%v", tc.name, got, tc.holds)
		}
	}
}
