package httpapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/orchestrator/api"
)

// realWebKit is a rig with one WebKit.
func realWebKit(t *testing.T) *rig {
	t.Helper()
	return newRigOf(t, []host.Device{webKit(t)}, 10)
}

func webKit(t *testing.T) host.Device {
	t.Helper()
	for _, program := range []string{"WebKitWebDriver", "Xvfb"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%s is missing, and CI must test with it: run `make setup-test`", program)
			}
			t.Skipf("part: webkit skipped: %s is missing: run `make setup-test`", program)
		}
	}
	return host.Device{Name: "webkit", Kind: host.KindWebKitGTK, Model: "WebKitGTK", PlatformName: "linux"}
}

// loginSite logs in who asks, and says who it knows.
func loginSite(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "login", Value: r.FormValue("user"), Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
		http.SetCookie(w, &http.Cookie{Name: "seen-" + r.FormValue("user"), Value: "1", Path: "/"})
		loginPage(w, `<script>localStorage.setItem("user", "`+r.FormValue("user")+`"); localStorage.setItem("only-`+r.FormValue("user")+`", "1")</script>`)
	})
	mux.HandleFunc("/logout", func(w http.ResponseWriter, _ *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "login", Path: "/", MaxAge: -1})
		loginPage(w, "logged out")
	})
	mux.HandleFunc("/whoami", func(w http.ResponseWriter, r *http.Request) {
		var names []string
		for _, c := range r.Cookies() {
			names = append(names, c.Name+"="+c.Value)
		}
		slices.Sort(names)
		loginPage(w, strings.Join(names, " "))
	})
	mux.HandleFunc("/robots.txt", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "User-agent: *") })
	site := httptest.NewServer(mux)
	t.Cleanup(site.Close)
	return site.URL
}

func loginPage(w http.ResponseWriter, body string) {
	w.Header().Set("Content-Type", "text/html")
	fmt.Fprint(w, "<!doctype html><body>"+body)
}

// drive sends a driver command, which must succeed.
func (r *rig) drive(t *testing.T, session, method, path, body string) json.RawMessage {
	t.Helper()
	resp, b := r.call(t, method, "/session/"+session+path, body)
	var v struct{ Value json.RawMessage }
	if err := json.Unmarshal(b, &v); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %d %s", method, path, resp.StatusCode, b)
	}
	return v.Value
}

// at goes to a page and gives its text, and the names and values of its localStorage.
func (r *rig) at(t *testing.T, session, page string) (text, storage string) {
	t.Helper()
	r.drive(t, session, http.MethodPost, "/url", fmt.Sprintf(`{"url":%q}`, page))
	const script = `const list = []; for (let i = 0; i < localStorage.length; i++) list.push(localStorage.key(i) + '=' + localStorage.getItem(localStorage.key(i)));
		return [document.body.textContent, list.sort().join(' ')]`
	body, err := json.Marshal(map[string]any{"script": script, "args": []string{}})
	must(t, err)
	var v [2]string
	must(t, json.Unmarshal(r.drive(t, session, http.MethodPost, "/execute/sync", string(body)), &v))
	return v[0], v[1]
}

// TestDeletionSurvivesAnAdoption: what was restored into a session is known to who goes on with it, and with it what its client deletes there:
// nobody takes that for something that was not looked at.
func TestDeletionSurvivesAnAdoption(t *testing.T) {
	for _, c := range []struct {
		how  string
		ttl  time.Duration
		gone func(*mate)
	}{
		{"stopped", 10 * time.Minute, func(o *mate) { o.stop() }},
		{"killed", shortLease, func(o *mate) { o.die() }},
	} {
		t.Run(c.how, func(t *testing.T) {
			t.Parallel()
			r := newSeveralWith(t, webKit(t), c.ttl, 0, "eu-1", "eu-2")
			r.introduce(t, byPeerURL)
			one, two, site := r.all[0], r.all[1], loginSite(t)
			p, err := one.client.CreateProfile(t.Context(), api.CreateProfile{Account: "a", Name: "p"})
			must(t, err)
			state := fmt.Sprintf(`{"cookies":[{"name":"deleted","value":"1","domain":"127.0.0.1","path":"/","expires":-1,"httpOnly":false,"secure":false,"sameSite":"Lax"},
				{"name":"stays","value":"1","domain":"127.0.0.1","path":"/","expires":-1,"httpOnly":false,"secure":false,"sameSite":"Lax"}],
				"origins":[{"origin":%q,"localStorage":[{"name":"deleted","value":"2"},{"name":"stays","value":"2"}]}]}`, site)
			_, err = one.client.ImportProfile(t.Context(), p.ID, strings.NewReader(state))
			must(t, err)
			s := (&rig{client: one.client}).running(t, api.CreateSession{Profile: p.ID})
			two.connect()
			r.connected(t, two)
			first, err := one.client.ProfileReport(t.Context(), s.ID, 10)
			if must(t, err); first.Restored != 4 || len(first.Items) != 4 {
				t.Errorf("restored: %+v", first)
			}
			c.gone(one)
			left := time.Now()
			var got api.ProfileReport
			eventually(t, "the report is there", func() bool {
				got, err = two.client.ProfileReport(t.Context(), s.ID, 10)
				if err != nil && time.Since(left) < c.ttl { // it waits until the session is adopted
					t.Fatal(err)
				}
				return err == nil
			})
			if !reflect.DeepEqual(got, first) {
				t.Errorf("who adopted it tells %+v, want %+v", got, first)
			}
			at := &rig{url: two.url, client: two.client}
			if text, storage := at.at(t, s.ID, site+"/whoami"); text != "deleted=1 stays=1" || storage != "deleted=2 stays=2" {
				t.Errorf("the site sees %q, and the browser has %q", text, storage)
			}
			at.drive(t, s.ID, http.MethodDelete, "/cookie/deleted", "")
			at.drive(t, s.ID, http.MethodPost, "/execute/sync", `{"script":"localStorage.removeItem('deleted')","args":[]}`)
			if v := at.quit(t, s.ID); v.Reason != "completed" || v.Generation != 2 {
				t.Errorf("%+v", v)
			}
			var b bytes.Buffer
			must(t, two.client.ExportProfile(t.Context(), p.ID, 0, &b))
			if out := b.String(); strings.Contains(out, "deleted") || strings.Count(out, "stays") != 2 {
				t.Errorf("the profile is %s", out)
			}
			if got := kinds(t, two, s.ID); !slices.Contains(got, "adopted") {
				t.Errorf("log: %v", got)
			}
		})
	}
}

// TestLostLoginIsACandidate: a capture without a login that the profile had twice does not replace it, and says so.
func TestLostLoginIsACandidate(t *testing.T) {
	r, site := realWebKit(t), loginSite(t)
	ctx := t.Context()
	p := r.profile(t)
	run := func(page string) (string, api.Session) {
		t.Helper()
		s := r.running(t, api.CreateSession{Profile: p.ID})
		text, _ := r.at(t, s.ID, site+page)
		return text, r.quit(t, s.ID)
	}
	run("/login?user=ada")
	if text, s := run("/whoami"); text != "login=ada seen-ada=1" || s.Generation != 2 || s.Detail != "" {
		t.Fatalf("the site sees %q; %+v", text, s)
	}
	_, s := run("/logout")
	if s.Reason != "completed" || s.Generation != 3 || !strings.Contains(s.Detail, "generation 3 of the profile is only a candidate") ||
		!strings.Contains(s.Detail, "driftctl profiles promote "+p.ID+" 3") {
		t.Errorf("%+v", s)
	}
	events, err := r.client.Events(ctx, s.ID, 0)
	must(t, err)
	if has := func(kind string) bool {
		return slices.ContainsFunc(events, func(e api.Event) bool { return e.Kind == kind })
	}; !has("profile_candidate") || has("profile_saved") {
		t.Errorf("%+v", events)
	}
	list, err := r.client.Generations(ctx, p.ID)
	if must(t, err); len(list) != 3 || list[0].State != "candidate" || !strings.Contains(list[0].Reason, "lost login cookies") || !list[1].Current {
		t.Errorf("%+v", list)
	}
	if text, s := run("/whoami"); text != "login=ada seen-ada=1" || s.Generation != 4 || s.Detail != "" {
		t.Errorf("after it the site sees %q; %+v", text, s)
	}
	if _, err := r.client.PromoteGeneration(ctx, p.ID, 3); err != nil {
		t.Fatal(err)
	}
	if text, _ := run("/whoami"); text != "seen-ada=1" {
		t.Errorf("after the logout was promoted the site sees %q", text)
	}
}

// TestProfilesOfTwoAccounts: sessions of two accounts in turn on one device never see one another.
func TestProfilesOfTwoAccounts(t *testing.T) { alternate(t, 6) }

func alternate(t *testing.T, sessions int) {
	r, site := realWebKit(t), loginSite(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	draw := rand.New(rand.NewPCG(seed, 0))
	profiles := make(map[string]string)
	for _, account := range []string{"a", "b"} {
		p, err := r.client.CreateProfile(t.Context(), api.CreateProfile{Account: account, Name: "p"})
		must(t, err)
		profiles[account] = p.ID
	}
	known := make(map[string]bool)
	for i := range sessions {
		account := []string{"a", "b"}[i%2]
		s := r.running(t, api.CreateSession{Account: account, Profile: profiles[account]})
		text, storage := r.at(t, s.ID, site+"/whoami")
		wantText, wantStorage := "", ""
		if known[account] {
			wantText, wantStorage = "login="+account+" seen-"+account+"=1", "only-"+account+"=1 user="+account
		}
		if text != wantText || storage != wantStorage {
			t.Fatalf("session %d, of %s: the site sees %q and the page %q", i, account, text, storage)
		}
		if !known[account] || draw.IntN(2) == 0 { // and some only look
			r.at(t, s.ID, site+"/login?user="+account)
			known[account] = true
		}
		if s = r.quit(t, s.ID); s.Reason != "completed" || s.Generation == 0 || s.Detail != "" {
			t.Fatalf("session %d, of %s: %+v", i, account, s)
		}
	}
}
