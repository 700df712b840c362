package profilestate

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestPlaywrightTakesTheExport: an unmodified Playwright opens a context with what is exported, its pages see it, and what it exports
// itself can be imported and is the same.
func TestPlaywrightTakesTheExport(t *testing.T) {
	folder := "../test/playwright"
	node, err := exec.LookPath("node")
	if err == nil {
		_, err = os.Stat(filepath.Join(folder, "node_modules", "playwright-core"))
	}
	var chromium string
	if err == nil {
		chromium, err = exec.LookPath("chromium")
	}
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v: run `make setup-test`", err)
		}
		t.Skipf("part: playwright skipped: %v: run `make setup-test`", err)
	}
	t.Log("part: playwright real")
	later := float64(time.Now().Add(24 * time.Hour).Unix())
	f := newStore(t)
	want := &Snapshot{
		Cookies: []Cookie{
			{Name: "__Host-sid", Value: "host", Domain: "shop.example", Path: "/", Expires: later, HTTPOnly: true, Secure: true, SameSite: Lax},
			{Name: "a", Value: "session=1", Domain: "127.0.0.1", Path: "/", Expires: SessionCookie, SameSite: Lax},
			{Name: "b", Value: "", Domain: ".shop.example", Path: "/basket", Expires: later, Secure: true, SameSite: None},
			{Name: "c", Value: `"quoted"`, Domain: "shop.example", Path: "/", Expires: SessionCookie, SameSite: Strict},
		},
		Origins: []Origin{
			{"http://127.0.0.1:8080", []Entry{{"port", "8080"}}},
			{"https://shop.example", []Entry{{"", "empty name"}, {"emoji", "\U0001F600"}, {"html", "</script><!--\u2028"}, {"long", JSString(strings.Repeat("ä", 100_000))}}},
		},
	}
	if _, err := f.Commit(t.Context(), testRef, Head{}, want, by); err != nil {
		t.Fatal(err)
	}
	snapshot, err := f.Export(t.Context(), testRef, 0)
	if err != nil {
		t.Fatal(err)
	}
	exported, err := snapshot.Export()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, node, "script.js")
	cmd.Dir, cmd.Stdin = folder, bytes.NewReader(exported)
	cmd.Env = append(os.Environ(), "CHROMIUM="+chromium)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	var got struct {
		Cookies int
		Seen    map[string]map[string]string
		State   json.RawMessage
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]map[string]string)
	for _, o := range want.Origins {
		seen[o.Origin] = make(map[string]string)
		for _, e := range o.LocalStorage {
			seen[o.Origin][string(e.Name)] = string(e.Value)
		}
	}
	if got.Cookies != len(want.Cookies) || !maps.EqualFunc(got.Seen, seen, maps.Equal) {
		t.Errorf("it has %d cookies, and its pages see %v", got.Cookies, got.Seen)
	}
	f.world.hold(testRef, "", 0)
	if _, err := f.Import(t.Context(), testRef, got.State); err != nil {
		t.Fatalf("%v: %.2000s", err, got.State)
	}
	back, _, err := f.Load(t.Context(), testRef)
	if err != nil {
		t.Fatal(err)
	}
	want.sort()
	if d := cmp.Diff(want, back); d != "" {
		t.Errorf("what came back (-want +got):\n%s", d)
	}
}
