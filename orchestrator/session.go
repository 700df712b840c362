package orchestrator

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/place"
)

// Defaults of a session's [api.Timeouts].
const (
	DefaultIdle    = 300 * time.Second
	DefaultMax     = 3600 * time.Second
	DefaultCommand = 330 * time.Second // above the 300 s that W3C gives a page load by default
	DefaultQueue   = 300 * time.Second
)

// NewSession is a validated wish for a session, as the store takes it.
type NewSession struct {
	ID           string
	Account      string
	Profile      string // that it uses; of a fork the new one
	Mode         api.ProfileMode
	ForkOf       string // the profile that a fork begins with
	Name         string
	Labels       api.Labels
	Want         api.DeviceWant
	Browser      string // that the device must drive
	BiDi         bool   // the device's driver must offer WebDriver BiDi
	Recording    bool
	Capabilities json.RawMessage // one W3C capability object, or nil
	Idle         time.Duration
	Max          time.Duration
	Command      time.Duration
	Queue        time.Duration
	Priority     int
	QueueLimit   int    // sessions that may be queued at once
	Limits       Limits // of accounts that have none of their own
	Key          Idempotency
	Waiter       string // the orchestrator whose client waits for it, and without whom it is ended; "": nobody has to wait
}

// Idempotency makes a request one that can be sent again: the same key with the same request gives the same session.
type Idempotency struct {
	Key     string // "" is none
	Request [sha256.Size]byte
}

// Limits is how much an account may have at once, and may create within 60 s. Zero is no limit.
type Limits struct{ Concurrent, Queued, CreatesPerMinute int }

// Claim is a session that this orchestrator now holds, on a device that nobody else does.
type Claim struct {
	Session      string
	Term         int64
	Account      string
	Profile      string
	Mode         api.ProfileMode
	ForkOf       string // the profile that a fork begins with
	Host, Device string
	Recording    bool
	Placement    place.Placement
	Capabilities json.RawMessage // what the driver is asked for, as it was stored; of an adopted session, what its client was told
	Idle         time.Duration
	Max          time.Duration
	Command      time.Duration
	LastEvent    int64 // the newest event's Seq

	Waiter string        // of a claim: see NewSession
	Waited time.Duration // since its creation, by the database's clock; of a claim

	Adopted bool          // it runs already, on the device: its former holder is gone
	Ran     time.Duration // how long it has been running then, by the database's clock
}

// plan turns the request into a NewSession with its defaults; its capabilities are for match to choose.
func plan(id string, r api.CreateSession, d Deps) (NewSession, error) {
	s := NewSession{
		ID: id, Account: r.Account, Profile: r.Profile, Name: r.Name, Labels: r.Labels, Want: r.Device,
		Recording:  r.Recording == nil || *r.Recording,
		Idle:       seconds(r.Timeouts.IdleSeconds, DefaultIdle),
		Max:        seconds(r.Timeouts.MaxSeconds, DefaultMax),
		Command:    seconds(r.Timeouts.CommandSeconds, DefaultCommand),
		Queue:      seconds(r.Timeouts.QueueSeconds, DefaultQueue),
		Priority:   r.Priority,
		QueueLimit: d.QueueLimit, Limits: d.Limits,
	}
	// The same request can come as driftstack:options, past the control plane's own validation.
	for _, f := range []struct {
		name, text string
		most       int
	}{
		{"account", r.Account, 128}, {"profile", r.Profile, 128}, {"name", r.Name, 256},
		{"device.kind", r.Device.Kind, 64}, {"device.model", r.Device.Model, 64}, {"device.host", r.Device.Host, 63}, {"device.platform", r.Device.Platform, 64},
	} {
		if utf8.RuneCountInString(f.text) > f.most {
			return s, &InvalidError{f.name, fmt.Sprintf("at most %d characters", f.most)}
		}
	}
	if r.Account == "" {
		return s, &InvalidError{"account", "name the account the session belongs to"}
	}
	if err := s.planProfile(r); err != nil {
		return s, err
	}
	if err := checkLabels(r.Labels); err != nil {
		return s, err
	}
	if r.Priority < -100 || r.Priority > 100 {
		return s, &InvalidError{"priority", "from -100 to 100; 0 is the default"}
	}
	if _, err := ParseVersionRange(r.Device.OSVersion); err != nil {
		return s, &InvalidError{"device.os_version", err.Error()}
	}
	if c := r.Device.Country; c != "" && !isCountry(c) {
		return s, &InvalidError{"device.country", "two letters, as in ISO 3166 alpha-2, for example US"}
	}
	s.Want.Country = strings.ToUpper(r.Device.Country)
	if len(r.Device.Labels) > 32 {
		return s, &InvalidError{"device.labels", "at most 32 labels"}
	}
	t := r.Timeouts
	for _, n := range []int{t.IdleSeconds, t.MaxSeconds, t.CommandSeconds, t.QueueSeconds} {
		if n < 0 || n > 86400 {
			return s, &InvalidError{"timeouts", "each is between 0 (the default) and 86400 seconds"}
		}
	}
	return s, nil
}

// planProfile says which profile the session uses, and how.
func (s *NewSession) planProfile(r api.CreateSession) error {
	s.Mode = cmp.Or(r.ProfileMode, api.ProfileExclusive)
	switch {
	case !slices.Contains(api.ProfileModes(), s.Mode):
		return &InvalidError{"profile_mode", "exclusive, readonly or fork"}
	case r.ProfileMode != "" && r.Profile == "":
		return &InvalidError{"profile_mode", "name the profile"}
	case s.Mode == api.ProfileFork:
		s.ForkOf, s.Profile = r.Profile, uuid.NewString()
	}
	return nil
}

// candidates is what a request of the control plane wants of the driver: one capability object, which may be left out.
func candidates(capabilities json.RawMessage) (webdriver.NewSession, error) {
	if len(capabilities) == 0 {
		capabilities = json.RawMessage("{}")
	}
	body, err := json.Marshal(map[string]any{"capabilities": map[string]json.RawMessage{"alwaysMatch": capabilities}})
	if err != nil {
		return webdriver.NewSession{}, &InvalidError{"capabilities", err.Error()}
	}
	n, err := webdriver.ParseNewSession(body)
	var w *webdriver.Error
	switch {
	case errors.As(err, &w):
		return n, &InvalidError{"capabilities", w.Message}
	case err == nil && len(n.Options) > 0:
		return n, &InvalidError{"capabilities", webdriver.OptionsName + " does not belong here; its fields are the request's own"}
	}
	return n, err
}

func isCountry(s string) bool {
	s = strings.ToUpper(s)
	return len(s) == 2 && s[0] >= 'A' && s[0] <= 'Z' && s[1] >= 'A' && s[1] <= 'Z'
}

func checkLabels(labels api.Labels) error {
	if len(labels) > api.MaxLabels {
		return &InvalidError{"labels", fmt.Sprintf("at most %d labels", api.MaxLabels)}
	}
	for key, value := range labels {
		switch n := utf8.RuneCountInString(key); {
		case n == 0 || n > api.MaxLabelKey || strings.Contains(key, "="):
			return &InvalidError{"labels", fmt.Sprintf("a key has 1 to %d characters and no =", api.MaxLabelKey)}
		case utf8.RuneCountInString(value) > api.MaxLabelValue:
			return &InvalidError{"labels", fmt.Sprintf("a value has at most %d characters", api.MaxLabelValue)}
		}
	}
	return nil
}

func seconds(n int, or time.Duration) time.Duration {
	if n <= 0 {
		return or
	}
	return time.Duration(n) * time.Second
}
