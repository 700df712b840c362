package pgstore_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/driftstack/fleet/driverproxy/wire"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
	"github.com/driftstack/fleet/orchestrator/place"
)

// declared has the host mac-1 declare where each of its phones is.
func declared(t *testing.T, s *pgstore.Store, countries ...string) {
	t.Helper()
	hello := wire.Hello{Protocol: wire.Version, Host: "mac-1"}
	for i, c := range countries {
		hello.Devices = append(hello.Devices, wire.Device{Name: "phone-" + string(rune('0'+i)), Kind: "safaridriver", Model: "iPhone 15", Country: c, State: wire.DeviceReady})
	}
	if err := s.HostUp(t.Context(), hello); err != nil {
		t.Fatal(err)
	}
}

// with is a wish for a new profile of the account.
func with(t *testing.T, s *pgstore.Store, account string) orchestrator.NewSession {
	t.Helper()
	n := wish(account)
	p, err := s.CreateProfile(t.Context(), uuid.NewString(), api.CreateProfile{Account: account, Name: "p"})
	if err != nil {
		t.Fatal(err)
	}
	n.Profile = p.ID
	return n
}

// took is a claim of a session that ends at once.
func took(t *testing.T, s *pgstore.Store) orchestrator.Claim {
	t.Helper()
	c := mustClaim(t, s)
	if err := finish(s, c, orchestrator.Completed); err != nil {
		t.Fatal(err)
	}
	s.FreeDevices(t)
	return c
}

func require(t *testing.T, s *pgstore.Store, account string, e api.Execution) {
	t.Helper()
	if v, err := s.PutProfileExecution(t.Context(), account, e, orchestrator.Act{By: "ada", Reason: "contract"}); err != nil || v.ProfileExecution != e {
		t.Fatalf("%+v, %v", v, err)
	}
}

// TestProfileExecution: where an account requires it, sessions with a profile are matched to devices in the EU's member states, and no others.
func TestProfileExecution(t *testing.T) {
	s := open(t, 1)
	require(t, s, "a", api.ExecutionEU)
	for _, country := range []string{"US", "NO", "CH", "GB", "EU", ""} { // of the EEA, of Europe, no country, not said
		declared(t, s, country)
		n := with(t, s, "a")
		if _, err := s.Create(t.Context(), n); !errors.Is(err, orchestrator.ErrNoSuchDevice) {
			t.Errorf("%q: %v", country, err)
		}
		n.Want.Country = country
		if _, err := s.Create(t.Context(), n); !errors.Is(err, orchestrator.ErrNoSuchDevice) {
			t.Errorf("%q, and wanted: %v", country, err)
		}
		p, err := s.Prospect(t.Context(), n)
		if err != nil || !errors.Is(p.Refused, orchestrator.ErrNoSuchDevice) || len(p.Candidates) != 1 || len(p.Candidates[0].Misses) != 1 || p.Candidates[0].Misses[0] != api.KeyExecution {
			t.Errorf("%q: %+v, %v", country, p, err)
		}
	}
	mustCreate(t, s, wish("a"))
	mustCreate(t, s, with(t, s, "b"))
	for range 2 {
		if c := took(t, s); c.Device != "phone-0" {
			t.Errorf("%+v", c)
		}
	}
	for _, country := range place.MemberStates() {
		declared(t, s, "US", country) // the one in the US is idle for longest
		n := with(t, s, "a")
		mustCreate(t, s, n)
		if c := took(t, s); c.Session != n.ID || c.Device != "phone-1" {
			t.Errorf("%s: %+v", country, c)
		}
	}
	n := with(t, s, "a")
	n.ForkOf, n.Profile, n.Mode = n.Profile, uuid.NewString(), api.ProfileFork
	mustCreate(t, s, n)
	if c := took(t, s); c.Session != n.ID || c.Device != "phone-1" {
		t.Errorf("a fork: %+v", c)
	}
	log, err := s.Audit(t.Context(), pgstore.AuditFilter{Limit: 1})
	if e := log.Entries[0]; err != nil || e.Actor != "ada" || e.Action != "profile_execution" || e.Account != "a" || e.Detail != "eu; before: any" || e.Reason != "contract" {
		t.Errorf("%+v, %v", log, err)
	}
	var missing *orchestrator.MissingError
	if _, err := s.PutProfileExecution(t.Context(), "nobody", api.ExecutionEU, orchestrator.Act{}); !errors.As(err, &missing) {
		t.Errorf("of no account: %v", err)
	}
	if _, err := s.ProfileExecution(t.Context(), "nobody"); !errors.As(err, &missing) {
		t.Errorf("of no account: %v", err)
	}
}

// TestProfileExecutionOfWhatWaits: what is queued when the account begins to require the EU gets no device elsewhere; it is told.
func TestProfileExecutionOfWhatWaits(t *testing.T) {
	s := open(t, 1)
	declared(t, s, "US", "DE")
	waits, plain, other := with(t, s, "a"), wish("a"), with(t, s, "b")
	for _, n := range []orchestrator.NewSession{waits, plain, other} {
		mustCreate(t, s, n)
	}
	require(t, s, "a", api.ExecutionEU)
	v, err := s.Get(t.Context(), waits.ID)
	if err != nil || v.State != api.Ended || v.Reason != "cancelled" || !strings.Contains(v.Detail, "profile_execution eu") {
		t.Errorf("%+v, %v", v, err)
	}
	for _, n := range []orchestrator.NewSession{plain, other} {
		if v, err := s.Get(t.Context(), n.ID); err != nil || v.State != api.Queued {
			t.Errorf("%+v, %v", v, err)
		}
	}
	after := with(t, s, "a")
	mustCreate(t, s, after)
	require(t, s, "a", api.ExecutionEU) // again: what may have devices in the EU alone stays
	if v, err := s.Get(t.Context(), after.ID); err != nil || v.State != api.Queued {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestProfileExecutionAtAdoption: nobody goes on with a session whose device is not where its account requires it to be.
func TestProfileExecutionAtAdoption(t *testing.T) {
	for _, c := range []struct {
		now     string
		profile bool
		may     bool
	}{{"DE", true, true}, {"US", true, false}, {"US", false, true}} {
		s := open(t, 1)
		declared(t, s, "DE")
		require(t, s, "a", api.ExecutionEU)
		n := wish("a")
		if c.profile {
			n = with(t, s, "a")
		}
		mustCreate(t, s, n)
		claim := mustClaim(t, s)
		if err := s.Running(t.Context(), claim.Session, claim.Term, []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
		if err := s.HostUp(t.Context(), wire.Hello{Protocol: wire.Version, Host: "mac-1", Devices: []wire.Device{
			{Name: "phone-0", Kind: "safaridriver", Model: "iPhone 15", Country: c.now, State: wire.DeviceBusy}}}); err != nil {
			t.Fatal(err)
		}
		s.AgeLease(t, claim.Session, time.Minute+time.Second)
		if _, ok := adopt(t, s, "mac-1"); ok != c.may {
			t.Errorf("%+v: adopted %v", c, ok)
		}
	}
}

// TestProfileExecutionChangesMeanwhile: creates beside a change never leave a session queued that may get a device elsewhere.
func TestProfileExecutionChangesMeanwhile(t *testing.T) {
	s := open(t, 1)
	declared(t, s, "US", "DE")
	for i := range 10 {
		require(t, s, "a", api.ExecutionAny)
		n := with(t, s, "a")
		done := make(chan error, 1)
		go func() {
			_, err := s.Create(t.Context(), n)
			done <- err
		}()
		require(t, s, "a", api.ExecutionEU)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if v, err := s.Get(t.Context(), n.ID); err != nil || v.State == api.Queued && s.AllowedAnywhere(t, n.ID) {
			t.Fatalf("try %d: %+v, %v", i, v, err)
		}
	}
}
