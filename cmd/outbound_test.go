package cmd_test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// connectors are what opens connections, or makes something that does, by import path. A type is one where it is made, not where a pointer to it is named.
var connectors = map[string][]string{
	"net":                          {"Dial", "DialTimeout", "DialTCP", "DialUDP", "DialUnix", "DialIP", "Dialer", "ListenPacket", "ListenUDP"},
	"net/http":                     {"Client", "Transport", "DefaultClient", "DefaultTransport", "Get", "Head", "Post", "PostForm"},
	"net/http/httputil":            {"NewSingleHostReverseProxy"},
	"net/rpc":                      {"Dial", "DialHTTP", "DialHTTPPath"},
	"net/smtp":                     {"Dial", "SendMail"},
	"crypto/tls":                   {"Dial", "DialWithDialer", "Dialer"},
	"os/exec":                      {"Command", "CommandContext"}, // what is started connects as it likes
	"syscall":                      {"Connect", "Socket", "Sendto"},
	"golang.org/x/sys/unix":        {"Connect", "Socket", "Sendto"},
	"github.com/gorilla/websocket": {"Dialer", "DefaultDialer"},
	"github.com/aws/aws-sdk-go-v2/service/s3": {"New", "NewFromConfig"},
	"github.com/jackc/pgx/v5":                 {"Connect", "ConnectConfig", "ConnectWithOptions"},
	"github.com/jackc/pgx/v5/pgconn":          {"Connect", "ConnectConfig", "ConnectWithOptions"},
	"github.com/jackc/pgx/v5/pgxpool":         {"New", "NewWithConfig"},
	"github.com/redis/go-redis/v9":            {"NewClient", "NewClusterClient", "NewFailoverClient", "NewFailoverClusterClient", "NewRing", "NewUniversalClient"},
	"github.com/getsentry/sentry-go":          {"Init", "NewClient"},
	module + "orchestrator/pgstore":           {"Open", "OpenKeys"}, // to wherever the DSN says; the others take a pin
	module + "orchestrator/client":            {"New"},
}

// home is where connections are opened.
const home = "orchestrator/outbound"

// passes are the places besides, by file and what is used there, with what they connect to. Those of the other end of the tunnel are in packages that the
// orchestrator has for its own end.
var passes = map[string]string{
	"tunnel/smallbind.go net.ListenUDP":                   "WireGuard's own socket: sealed packets, to whoever has a key",
	"recorder/store.go s3.New":                            "through outbound.Pin",
	"orchestrator/pgstore/store.go pgxpool.NewWithConfig": "through outbound.Pin, of what residency has checked",
	"tunnel/beat.go http.Client":                          "the other end: a driver host, through its tunnel, to a gateway",
	"tunnel/beat.go http.Transport":                       "the other end: likewise",
	"tunnel/enrol.go http.Client":                         "the other end: likewise",
	"tunnel/enrol.go http.Transport":                      "the other end: likewise",
	"tunnel/rekey.go http.Client":                         "the other end: likewise",
	"tunnel/rekey.go http.Transport":                      "the other end: likewise",
	"tunnel/tundevice.go net.Dialer":                      "the other end: bound to the tunnel's interface, to a gateway",
	"driverproxy/socket/socket.go websocket.Dialer":       "the other end: through the dial function that the agent gives",
}

// TestOutbound: nothing that is in the orchestrator opens a connection but through package outbound, or where the table says.
func TestOutbound(t *testing.T) {
	seen := map[string]bool{}
	files := 0
	for _, file := range sources(t, "./cmd/orchestrator") {
		files++
		for _, use := range uses(t, file, nil) {
			key := file + " " + use
			seen[key] = true
			if _, ok := passes[key]; !ok && filepath.Dir(file) != home {
				t.Errorf("%s: a connection that is pinned to nothing: take one of an outbound.Pin", key)
			}
		}
	}
	for key := range passes {
		if !seen[key] {
			t.Errorf("%s is in the table and not in the source", key)
		}
	}
	if files < 100 || !seen[home+"/outbound.go net.Dialer"] {
		t.Errorf("%d files were looked at, and what opens connections is not among them: this test would hold whatever they do", files)
	}
}

// sources are our files that are built into a program, for Linux.
func sources(t *testing.T, program string) (files []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,GoFiles,CgoFiles", program)
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p struct {
			ImportPath        string
			GoFiles, CgoFiles []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		if path, ours := strings.CutPrefix(p.ImportPath, module); ours {
			for _, f := range slices.Concat(p.GoFiles, p.CgoFiles) {
				files = append(files, filepath.Join(path, f))
			}
		}
	}
	return files
}

// uses are the connectors that a file has, as PACKAGE.NAME by the last part of the package's path.
func uses(t *testing.T, file string, src any) (found []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", file), src, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	imports := map[string]string{} // import paths, by what the file calls them
	for _, i := range parsed.Imports {
		path, _ := strconv.Unquote(i.Path.Value)
		name := base(path)
		if i.Name != nil {
			name = i.Name.Name
		}
		if _, ok := connectors[path]; ok && name == "." {
			found = append(found, "."+base(path)) // nothing of it could be seen
		}
		imports[name] = path
	}
	pointers := map[ast.Node]bool{}
	ast.Inspect(parsed, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.StarExpr:
			pointers[n.X] = true
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && !pointers[n] && slices.Contains(connectors[imports[x.Name]], n.Sel.Name) {
				if use := base(imports[x.Name]) + "." + n.Sel.Name; !slices.Contains(found, use) {
					found = append(found, use)
				}
			}
		}
		return true
	})
	return found
}

// base is what a package is called: the last part of its path that is no version.
func base(path string) string {
	parts := strings.Split(path, "/")
	last := parts[len(parts)-1]
	if len(parts) > 1 && len(last) > 1 && last[0] == 'v' && strings.Trim(last[1:], "0123456789") == "" {
		last = parts[len(parts)-2]
	}
	return strings.TrimPrefix(last, "go-")
}

// TestOutboundIsFound shows that the rule can fail.
func TestOutboundIsFound(t *testing.T) {
	for src, want := range map[string]string{
		`import "net/http"; var c = &http.Client{}`:                                            "http.Client",
		`import "net/http"; var c http.Client`:                                                 "http.Client",
		`import "net/http"; var c = new(http.Transport)`:                                       "http.Transport",
		`import "net/http"; func f() { http.Get("https://evil.example") }`:                     "http.Get",
		`import "net/http"; var c = http.DefaultClient`:                                        "http.DefaultClient",
		`import web "net/http"; var c = web.Client{}`:                                          "http.Client",
		`import . "net/http"; var c = Client{}`:                                                ".http",
		`import "net"; var f = net.Dial`:                                                       "net.Dial",
		`import "net"; var d = net.Dialer{}`:                                                   "net.Dialer",
		`import "crypto/tls"; var f = tls.Dial`:                                                "tls.Dial",
		`import "os/exec"; var f = exec.Command`:                                               "exec.Command",
		`import "github.com/redis/go-redis/v9"; var f = redis.NewClient`:                       "redis.NewClient",
		`import "github.com/jackc/pgx/v5"; var f = pgx.Connect`:                                "pgx.Connect",
		`import "github.com/driftstack/fleet/orchestrator/pgstore"; var f = pgstore.Open`:      "pgstore.Open",
		`import "github.com/driftstack/fleet/orchestrator/pgstore"; var f = pgstore.OpenAt`:    "",
		`import "net/http"; type t struct { c *http.Client }; func f(*http.Transport) {}`:      "",
		`import "net/http"; var h http.Handler; func f(http.ResponseWriter, *http.Request) {}`: "",
	} {
		if got := strings.Join(uses(t, "x.go", "package x; "+src), " "); got != want {
			t.Errorf("%s: %q, want %q", src, got, want)
		}
	}
}
