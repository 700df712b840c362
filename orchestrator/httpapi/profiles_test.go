package httpapi_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
	"github.com/driftstack/fleet/profilestate"
)

const storageState = `{"cookies":[{"name":"sid","value":"VALUE","domain":"elsewhere.example","path":"/","expires":-1,"httpOnly":true,"secure":true,"sameSite":"Lax"}],"origins":[]}`

func stateOf(value string) string { return strings.Replace(storageState, "VALUE", value, 1) }

func (r *rig) profile(t *testing.T, values ...string) api.Profile {
	t.Helper()
	p, err := r.client.CreateProfile(t.Context(), api.CreateProfile{Account: "a", Name: "p", Archetype: "shopper"})
	must(t, err)
	for _, v := range values {
		p, err = r.client.ImportProfile(t.Context(), p.ID, strings.NewReader(stateOf(v)))
		must(t, err)
	}
	return p
}

func (r *rig) exported(t *testing.T, id string, generation int64) string {
	t.Helper()
	var b bytes.Buffer
	must(t, r.client.ExportProfile(t.Context(), id, generation, &b))
	var v struct{ Cookies []struct{ Value string } }
	must(t, json.Unmarshal(b.Bytes(), &v))
	if len(v.Cookies) == 0 {
		return ""
	}
	return v.Cookies[0].Value
}

func problemOf(t *testing.T, err error) *client.Problem {
	t.Helper()
	var p *client.Problem
	if !errors.As(err, &p) {
		t.Fatalf("%v is no problem", err)
	}
	return p
}

func (r *rig) quit(t *testing.T, id string) api.Session {
	t.Helper()
	must(t, second(r.client.Do(t.Context(), id, webdriver.Command{Method: "DELETE"})))
	s, err := r.client.Wait(t.Context(), id, api.Ended)
	must(t, err)
	return s
}

func TestProfileLife(t *testing.T) {
	r := newRig(t, 1, 10)
	ctx := t.Context()
	p := r.profile(t, "one", "two", "three")
	if p.Generation != 3 || p.Archetype != "shopper" || r.exported(t, p.ID, 0) != "three" || r.exported(t, p.ID, 1) != "one" {
		t.Fatalf("%+v", p)
	}
	name := "renamed"
	p, err := r.client.ChangeProfile(ctx, p.ID, api.ChangeProfile{Name: &name})
	if must(t, err); p.Name != name || p.Archetype != "shopper" {
		t.Errorf("%+v", p)
	}
	p, err = r.client.RollbackProfile(ctx, p.ID)
	if must(t, err); p.Generation != 2 || r.exported(t, p.ID, 0) != "two" {
		t.Errorf("rolled back to %+v", p)
	}
	p, err = r.client.PromoteGeneration(ctx, p.ID, 3)
	if must(t, err); p.Generation != 3 {
		t.Errorf("promoted %+v", p)
	}
	copied, err := r.client.CloneProfile(ctx, p.ID, api.CloneProfile{Name: "copy", Generation: 1})
	if must(t, err); copied.Account != "a" || copied.Generation != 1 || r.exported(t, copied.ID, 0) != "one" {
		t.Errorf("cloned %+v", copied)
	}
	must(t, r.client.DeleteGeneration(ctx, p.ID, 1))
	list, err := r.client.Generations(ctx, p.ID)
	if must(t, err); len(list) != 2 || !list[0].Current || list[0].Number != 3 || list[0].Source != "import" || list[1].Previous != 1 {
		t.Errorf("%+v", list)
	}
	all, err := r.client.Profiles(ctx, "a")
	must(t, err)
	for name, c := range map[string]struct {
		err    error
		status int
	}{
		"the current one":      {r.client.DeleteGeneration(ctx, p.ID, 3), 409},
		"one that is gone":     {r.client.DeleteGeneration(ctx, p.ID, 1), 404},
		"promote it":           {second(r.client.PromoteGeneration(ctx, p.ID, 1)), 404},
		"export it":            {r.client.ExportProfile(ctx, p.ID, 1, &bytes.Buffer{}), 404},
		"clone it":             {second(r.client.CloneProfile(ctx, p.ID, api.CloneProfile{Name: "x", Generation: 1})), 404},
		"export of nothing":    {r.client.ExportProfile(ctx, r.profile(t).ID, 0, &bytes.Buffer{}), 404},
		"rollback of one":      {second(r.client.RollbackProfile(ctx, copied.ID)), 404},
		"rollback of nothing":  {second(r.client.RollbackProfile(ctx, r.profile(t).ID)), 404},
		"an unknown profile":   {second(r.client.Generations(ctx, "none")), 404},
		"an unknown's import":  {second(r.client.ImportProfile(ctx, "none", strings.NewReader(storageState))), 404},
		"a negative number":    {r.client.DeleteGeneration(ctx, p.ID, -1), 422},
		"a name that is empty": {second(r.client.ChangeProfile(ctx, p.ID, api.ChangeProfile{Name: new(string)})), 422},
	} {
		if got := problemOf(t, c.err); got.Status != c.status || got.Detail == "" {
			t.Errorf("%s: %v", name, got)
		}
	}
	if now, err := r.client.Profiles(ctx, "a"); err != nil || len(now) != len(all)+2 { // two were made above; the clone that failed left none
		t.Errorf("%d profiles, had %d: %v", len(now), len(all), err)
	}
	must(t, r.client.DeleteProfile(ctx, p.ID))
	if got := problemOf(t, second(r.client.Profile(ctx, p.ID))); got.Status != 404 {
		t.Error(got)
	}
	if got := problemOf(t, second(r.client.CreateSession(ctx, unrecorded(api.CreateSession{Profile: p.ID})))); got.Status != 422 {
		t.Error(got)
	}
}

// TestBadImports: what cannot be given back unchanged is refused, with the place and what to do, and changes nothing.
func TestBadImports(t *testing.T) {
	r := newRig(t, 1, 10)
	p := r.profile(t, "one")
	many := make([]string, 51)
	for i := range many {
		many[i] = `{"origin":"https://` + string(rune('a'+i/26)) + string(rune('a'+i%26)) + `.example","localStorage":[]}`
	}
	for name, c := range map[string]struct {
		body   string
		status int
		says   string
	}{
		"empty":          {"", 0, ""},
		"no JSON":        {"cookies!", 422, "not a JSON document"},
		"an array":       {"[]", 422, "want"},
		"cut":            {storageState[:60], 422, "not a JSON document"},
		"more after it":  {storageState + "{}", 422, "after the end"},
		"unknown field":  {`{"cookies":[],"origins":[],"indexedDB":[]}`, 422, "indexedDB"},
		"no domain":      {`{"cookies":[{"name":"a","value":"b","path":"/"}]}`, 422, "domain"},
		"bad sameSite":   {strings.Replace(storageState, "Lax", "Loose", 1), 422, "Strict, Lax or None"},
		"file origin":    {`{"origins":[{"origin":"file:///etc","localStorage":[]}]}`, 422, "origin"},
		"too many sites": {`{"origins":[` + strings.Join(many, ",") + `]}`, 413, "50"},
		"too long":       {`{"cookies":[],"origins":[{"origin":"https://a.example","localStorage":[{"name":"a","value":"` + strings.Repeat("x", 16<<20) + `"}]}]}`, 413, "remove state"},
		"deep":           {strings.Repeat("[", 1<<20), 422, ""},
	} {
		resp, b := r.call(t, http.MethodPut, "/v1/profiles/"+p.ID+"/storage-state", c.body)
		if c.status == 0 {
			c.status = 400
		}
		if resp.StatusCode != c.status || !strings.Contains(string(b), c.says) || resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %.300s", name, resp.StatusCode, b)
		}
		if bytes.Contains(b, []byte("VALUE")) {
			t.Errorf("%s: the problem quotes what was sent: %.300s", name, b)
		}
	}
	if r.exported(t, p.ID, 0) != "one" {
		t.Error("a refused import changed the profile")
	}
	resp, _ := r.call(t, http.MethodGet, "/v1/profiles/"+p.ID+"/storage-state", "")
	if resp.Header.Get("Cache-Control") != "no-store" || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("an export may be kept on the way: %v", resp.Header)
	}
}

func TestProfileModes(t *testing.T) {
	t.Parallel()
	r := newRig(t, 4, 10)
	ctx := t.Context()
	p := r.profile(t, "one")
	holder := r.running(t, api.CreateSession{Profile: p.ID})
	if holder.ProfileMode != api.ProfileExclusive {
		t.Errorf("%+v", holder)
	}
	for name, err := range map[string]error{
		"another session": second(r.client.CreateSession(ctx, unrecorded(api.CreateSession{Profile: p.ID}))),
		"import":          second(r.client.ImportProfile(ctx, p.ID, strings.NewReader(storageState))),
		"rollback":        r.client.DeleteProfile(ctx, p.ID),
	} {
		got := problemOf(t, err)
		if got.Status != 409 || got.Reason != "profile_held" || got.Holder != holder.ID || got.ExpiresAt == nil || time.Until(*got.ExpiresAt) < 0 || time.Until(*got.ExpiresAt) > 16*time.Second {
			t.Errorf("%s: %+v", name, got)
		}
	}
	_, b := r.call(t, http.MethodPost, "/session", `{"capabilities":{"alwaysMatch":{"driftstack:options":{"account":"a","recording":false,"profile":"`+p.ID+`"}}}}`)
	w := decode[struct {
		Value struct {
			Error string
			Data  map[string]any
		}
	}](t, b)
	if w.Value.Error != "session not created" || w.Value.Data["reason"] != "profile_held" || w.Value.Data["holder"] != holder.ID || w.Value.Data["expires_at"] == nil {
		t.Errorf("%s", b)
	}
	one := r.running(t, api.CreateSession{Profile: p.ID, ProfileMode: api.ProfileReadonly})
	two := r.running(t, api.CreateSession{Profile: p.ID, ProfileMode: api.ProfileReadonly})
	fork := r.running(t, api.CreateSession{Profile: p.ID, ProfileMode: api.ProfileFork})
	if fork.ForkedFrom != p.ID || fork.Profile == p.ID || fork.Profile == "" {
		t.Fatalf("%+v", fork)
	}
	for _, s := range []api.Session{one, two} {
		if s = r.quit(t, s.ID); s.Reason != "completed" || s.Generation != 0 {
			t.Errorf("a readonly session saved: %+v", s)
		}
	}
	if s := r.quit(t, fork.ID); s.Generation != 2 || r.exported(t, fork.Profile, 2) != "one" {
		t.Errorf("the fork: %+v", s)
	}
	for _, s := range []api.Session{one, two, fork} { // each began with what there was; the log is whole now
		events, err := r.client.Events(ctx, s.ID, 0)
		must(t, err)
		restored := false
		for _, e := range events {
			restored = restored || e.Kind == "profile_restored"
		}
		if !restored {
			t.Errorf("%s session: nothing was restored", s.ProfileMode)
		}
	}
	list, err := r.client.Generations(ctx, fork.Profile)
	if must(t, err); len(list) != 2 || list[1].Source != "clone" || list[0].Session != fork.ID {
		t.Errorf("%+v", list)
	}
	if s := r.quit(t, holder.ID); s.Generation != 2 {
		t.Errorf("the holder: %+v", s)
	}
	for _, c := range []api.CreateSession{{ProfileMode: api.ProfileFork}, {Profile: p.ID, ProfileMode: "shared"}} {
		if got := problemOf(t, second(r.client.CreateSession(ctx, unrecorded(c)))); got.Status != 422 {
			t.Error(got)
		}
	}
	resp, b := r.call(t, http.MethodPost, "/session", `{"capabilities":{"alwaysMatch":{"driftstack:options":{"account":"a","profile":"`+p.ID+`","profile_mode":"shared"}}}}`)
	if resp.StatusCode != 400 || !bytes.Contains(b, []byte("exclusive, readonly or fork")) {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
}

// TestDamagedProfile: a session is refused with what to do, and works once that was done.
func TestDamagedProfile(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 10)
	ctx := t.Context()
	p := r.profile(t, "one", "two")
	ref := profilestate.Ref{Account: "a", Profile: p.ID}
	head, err := r.store.Head(ctx, ref)
	must(t, err)
	names, err := filepath.Glob(filepath.Join(r.dir, "profiles", "*", "*", filepath.Base(head.Current.File)))
	if must(t, err); len(names) != 1 {
		t.Fatal(names)
	}
	must(t, os.Truncate(names[0], 300))
	s, err := r.client.CreateSession(ctx, unrecorded(api.CreateSession{Profile: p.ID}))
	must(t, err)
	s, err = r.client.Wait(ctx, s.ID, api.Ended)
	if must(t, err); s.Reason != "profile_conflict" || !strings.Contains(s.Detail, "generation 1 opens") {
		t.Fatalf("%+v", s)
	}
	if got := problemOf(t, r.client.ExportProfile(ctx, p.ID, 0, &bytes.Buffer{})); got.Status != 409 || !strings.Contains(got.Detail, "rollback") {
		t.Error(got)
	}
	p, err = r.client.Profile(ctx, p.ID)
	if must(t, err); !p.Damaged {
		t.Errorf("%+v", p)
	}
	p, err = r.client.RollbackProfile(ctx, p.ID)
	if must(t, err); p.Generation != 1 || p.Damaged {
		t.Errorf("%+v", p)
	}
	s = r.running(t, api.CreateSession{Profile: p.ID})
	if s = r.quit(t, s.ID); s.Generation != 3 {
		t.Errorf("%+v", s)
	}
}

func TestKeysOverHTTP(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 10)
	ctx := t.Context()
	p := r.profile(t, "one")
	before, err := r.client.KeyStatus(ctx)
	if must(t, err); len(before.Roots) != 1 || before.Roots[0].Accounts != 1 || before.Profiles != 1 {
		t.Fatalf("%+v", before)
	}
	var backup bytes.Buffer
	must(t, r.client.BackupKeys(ctx, 7, &backup))
	v, err := r.client.RotateKeys(ctx, "")
	if must(t, err); !v.NewRoot || v.Accounts != 1 || r.exported(t, p.ID, 0) != "one" {
		t.Errorf("%+v", v)
	}
	v, err = r.client.RotateKeys(ctx, "a")
	if must(t, err); v.Profiles != 1 || r.exported(t, p.ID, 0) != "one" {
		t.Errorf("%+v", v)
	}
	if got := problemOf(t, r.client.RetireRoot(ctx, v.RootEpoch+"x")); got.Status != 409 {
		t.Error(got)
	}
	must(t, r.client.RetireRoot(ctx, before.Roots[0].Epoch))
	if got := problemOf(t, second(r.client.RestoreKeys(ctx, bytes.NewReader(backup.Bytes())))); got.Status != 503 {
		t.Errorf("a backup outlived its epoch: %v", got)
	}
	if got := problemOf(t, second(r.client.RestoreKeys(ctx, strings.NewReader("nonsense")))); got.Status != 422 {
		t.Error(got)
	}
	backup.Reset()
	must(t, r.client.BackupKeys(ctx, 7, &backup))
	must(t, r.client.DestroyAccountKey(ctx, "a"))
	if got := problemOf(t, r.client.DestroyAccountKey(ctx, "a")); got.Status != 404 {
		t.Error(got)
	}
	if n, err := r.client.RestoreKeys(ctx, &backup); err != nil || n != 0 {
		t.Errorf("%d keys came back, %v", n, err)
	}
	if got := problemOf(t, r.client.ExportProfile(ctx, p.ID, 0, &bytes.Buffer{})); got.Status != 410 {
		t.Error(got)
	}
	s, err := r.client.CreateSession(ctx, unrecorded(api.CreateSession{Profile: p.ID}))
	must(t, err)
	if s, err = r.client.Wait(ctx, s.ID, api.Ended); err != nil || s.Reason != "profile_conflict" {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestDeviceWiped: the log says of how many sites nothing is left, of how many that is not known, and of how many something is, and not which.
func TestDeviceWiped(t *testing.T) {
	r := newRig(t, 1, 10)
	s := r.running(t, api.CreateSession{})
	d := <-r.drivers
	for i := range 6 {
		r.drive(t, s.ID, "POST", "/url", fmt.Sprintf(`{"url":"http://site-%d.example/a/"}`, i))
	}
	refused := &webdriver.Error{Code: webdriver.UnknownError, Message: "no"}
	d.Inject(drivertest.Fault{Route: webdriver.RouteNavigateTo, Effect: drivertest.Refuse, Error: refused, Times: 10}) // two sites: 2 documents in the folder, 3 in the root
	d.Inject(drivertest.Fault{Route: webdriver.RouteDeleteCookie, Effect: drivertest.Refuse, Error: refused, Times: 3})
	r.quit(t, s.ID)
	events, err := r.client.Events(t.Context(), s.ID, 0)
	must(t, err)
	i := slices.IndexFunc(events, func(e api.Event) bool { return e.Kind == "device_wiped" })
	if i < 0 {
		t.Fatalf("%+v", events)
	}
	if e := events[i]; e.Removed != 3 || e.Dropped != 2 || e.Kept != 1 {
		t.Errorf("%d verified, %d not, %d with something left: %+v", e.Removed, e.Dropped, e.Kept, e)
	}
	if b, err := json.Marshal(events); err != nil || strings.Contains(string(b), "site-") {
		t.Errorf("%s, %v", b, err)
	}
	if !slices.ContainsFunc(events, func(e api.Event) bool { return e.Kind == "device_not_cleaned" }) {
		t.Errorf("%+v", events)
	}
}
