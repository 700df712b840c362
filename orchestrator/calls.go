package orchestrator

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/tunnel"
)

// createLimit bounds the queueing of a session.
const createLimit = 10 * time.Second

// Create queues a session, also when its caller leaves meanwhile: a statement that is cut short may have been carried out, and
// nobody would know of the session, nor cancel it. One of which the database does not say whether it was queued is ended as soon as
// that answers again: whoever asked for it was told that there is none. Errors as SessionStore.Create, *NoDeviceError and *UnmatchedError.
//
// The same request again under the same idempotency key gives the session that it made, as it is now; "" is no key. Under a key,
// such a session stays: whoever asked for it asks again.
func (o *Orchestrator) Create(ctx context.Context, r api.CreateSession, idempotencyKey string) (api.Session, error) {
	key, err := idempotency(idempotencyKey, r)
	if err != nil {
		return api.Session{}, err
	}
	wants, err := candidates(r.Capabilities)
	if err != nil {
		return api.Session{}, err
	}
	return o.createFirst(ctx, r, wants, key, "")
}

// CreateFirst is Create with the first of the capability objects in wants that an enrolled device can meet; the request's own are
// not looked at. The session is for a client that waits here: Attend it.
func (o *Orchestrator) CreateFirst(ctx context.Context, r api.CreateSession, wants webdriver.NewSession) (api.Session, error) {
	return o.createFirst(ctx, r, wants, Idempotency{}, o.deps.ID)
}

// maxIdempotencyKey is in characters.
const maxIdempotencyKey = 255

// idempotency reads an Idempotency-Key: a string as HTTP's structured fields have it, or the same without quotes.
func idempotency(header string, r api.CreateSession) (Idempotency, error) {
	key := header
	if len(key) >= 2 && key[0] == '"' && key[len(key)-1] == '"' {
		key = key[1 : len(key)-1]
		if key == "" {
			return Idempotency{}, &InvalidError{"Idempotency-Key", "it is empty; leave it out, or send a UUID"}
		}
	}
	if key == "" {
		return Idempotency{}, nil
	}
	if len(key) > maxIdempotencyKey || strings.ContainsFunc(key, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' }) {
		return Idempotency{}, &InvalidError{"Idempotency-Key", fmt.Sprintf("at most %d characters of printable ASCII, without quotes or backslashes in them; a UUID is good", maxIdempotencyKey)}
	}
	if err := canonical(&r.Capabilities); err != nil {
		return Idempotency{}, &InvalidError{"capabilities", "they are no JSON"}
	}
	b, err := json.Marshal(r)
	if err != nil {
		return Idempotency{}, err
	}
	return Idempotency{Key: key, Request: sha256.Sum256(b)}, nil
}

// canonical writes JSON in the one way that encoding/json has for what it says: keys in order, each number as its value.
func canonical(raw *json.RawMessage) (err error) {
	if len(*raw) == 0 {
		return nil
	}
	var v any
	if err := json.Unmarshal(*raw, &v); err != nil {
		return err
	}
	*raw, err = json.Marshal(v)
	return err
}

func (o *Orchestrator) createFirst(ctx context.Context, r api.CreateSession, wants webdriver.NewSession, key Idempotency, waiter string) (api.Session, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), createLimit)
	defer cancel()
	n, err := plan(uuid.NewString(), r, o.deps)
	if err != nil {
		return api.Session{}, err
	}
	n.Key, n.Waiter = key, waiter
	at, err := o.admit(ctx, &n, wants)
	var repeated *RepeatedError
	switch {
	case errors.As(err, &repeated):
		return o.deps.Sessions.Get(ctx, repeated.Session)
	case err != nil:
		return api.Session{}, err
	}
	if waiter != "" {
		poke(o.queued) // there is nothing that it would have to be told by the database
	}
	mode := n.Mode
	if n.Profile == "" {
		mode = ""
	}
	return api.Session{
		ID: n.ID, ProfileMode: mode, ForkedFrom: n.ForkOf, Account: n.Account, Profile: n.Profile, Name: n.Name, Labels: n.Labels, State: api.Queued, Want: n.Want, Priority: n.Priority, Recording: n.Recording, CreatedAt: at,
		Timeouts: api.Timeouts{IdleSeconds: int(n.Idle.Seconds()), MaxSeconds: int(n.Max.Seconds()), CommandSeconds: int(n.Command.Seconds()), QueueSeconds: int(n.Queue.Seconds())},
	}, nil
}

// admit queues the session, unless it is there already. That is looked up also where no device has what is wanted: there may have been one.
func (o *Orchestrator) admit(ctx context.Context, n *NewSession, wants webdriver.NewSession) (time.Time, error) {
	unmatched := o.match(ctx, n, wants)
	switch {
	case unmatched == nil:
	case n.Key.Key == "":
		return time.Time{}, unmatched
	default:
		return time.Time{}, cmp.Or(o.deps.Sessions.Made(ctx, n.Account, n.Key), unmatched)
	}
	sealed := *n
	var err error
	if sealed.Capabilities, err = o.sealCapabilities(*n); err != nil {
		return time.Time{}, err
	}
	at, err := o.deps.Sessions.Create(ctx, sealed)
	switch {
	case errors.Is(err, ErrNoSuchDevice):
		err = o.named(ctx, *n, err)
	case errors.Is(err, ErrUnavailable) && n.Key.Key == "":
		o.unwanted(n.ID)
	}
	return at, err
}

// match chooses the first capabilities that a device can meet which is wanted otherwise, and which the account may use.
func (o *Orchestrator) match(ctx context.Context, n *NewSession, wants webdriver.NewSession) error {
	offers, err := o.deps.Sessions.Offers(ctx, *n)
	if err != nil {
		return err
	}
	if len(offers) == 0 {
		return o.named(ctx, *n, ErrNoSuchDevice)
	}
	m, err := wants.Match(offers)
	var w *webdriver.Error
	if errors.As(err, &w) {
		return &UnmatchedError{w}
	}
	n.Capabilities, n.Browser, n.BiDi, n.Want.Platform = m.Capabilities, m.Browser, m.BiDi, cmp.Or(m.Platform, n.Want.Platform)
	return err
}

// lookLimit bounds one look at the database on behalf of somebody who waits.
const lookLimit = 5 * time.Second

func (o *Orchestrator) look(ctx context.Context, session string) (api.Session, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookLimit)
	defer cancel()
	return o.deps.Sessions.Get(ctx, session)
}

// Wait returns the session once reached says so, or as it is when ctx ends. A database that is away is waited for as
// well. ErrNotFound.
func (o *Orchestrator) Wait(ctx context.Context, session string, reached func(api.Session) bool) (api.Session, error) {
	news, cancel := o.watch.subscribe(session)
	defer cancel()
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		s, err := o.look(ctx, session)
		if err != nil && !errors.Is(err, ErrUnavailable) || err == nil && reached(s) {
			return s, err
		}
		select {
		case <-news:
		case <-t.C:
		case <-ctx.Done():
			return s, err
		}
	}
}

// Watch wakes the channel on news of a session, until the returned function is called.
func (o *Orchestrator) Watch(session string) (<-chan struct{}, func()) {
	return o.watch.subscribe(session)
}

// IsRunning and HasEnded are conditions for Wait. A session that has ended has also been running, or never will be.
func IsRunning(s api.Session) bool {
	return s.State != api.Queued && s.State != api.Starting
}

// HasEnded says that nothing of the session is left to do.
func HasEnded(s api.Session) bool { return s.State == api.Ended }

// Cancel ends a session wherever it is, and waits for a database that is away. ErrNotFound.
func (o *Orchestrator) Cancel(ctx context.Context, session string) error {
	return o.patiently(ctx, func() error { return o.deps.Sessions.Cancel(ctx, session) })
}

// StartWithin is how long a session may be queued and starting.
func (o *Orchestrator) StartWithin(r api.CreateSession) time.Duration {
	return seconds(r.Timeouts.QueueSeconds, DefaultQueue) + startLimit + restoreLimit
}

// Command runs one driver command. The answer is always one that can go to the client.
func (o *Orchestrator) Command(ctx context.Context, session string, c webdriver.Command) webdriver.Answer {
	if _, unknown := c.Endpoint(); unknown != nil { // first, as the specification has it
		return unknown.Answer()
	}
	l, absent := o.reach(ctx, session)
	if l == nil {
		return absent
	}
	return l.do(ctx, c)
}

// Quit ends a session as its client wants it and waits until it has ended: when it returns, the profile is saved and the
// device free. Quitting a session that ended by itself is an error, as W3C has it.
func (o *Orchestrator) Quit(ctx context.Context, session string) webdriver.Answer {
	l, absent := o.reach(ctx, session)
	if l == nil {
		return absent
	}
	l.quit()
	select {
	case <-l.over:
	case <-ctx.Done():
	}
	return l.quitted()
}

// reach finds the session; when there is none, it gives the answer.
func (o *Orchestrator) reach(ctx context.Context, session string) (*live, webdriver.Answer) {
	l, s, err := o.await(ctx, session)
	if l != nil {
		return l, webdriver.Answer{}
	}
	return nil, absent(s, err)
}

// await finds the session; when there is none, it says what the database knows of it. One that runs, and not here, may be about to be
// adopted: it is waited for as long as that takes at most.
func (o *Orchestrator) await(ctx context.Context, session string) (*live, api.Session, error) {
	if l := o.find(session); l != nil {
		return l, api.Session{}, nil
	}
	s, err := o.look(ctx, session)
	if err == nil && s.State == api.Running {
		ctx, cancel := context.WithTimeout(ctx, o.AdoptedWithin())
		defer cancel()
		s, err = o.Wait(ctx, session, func(s api.Session) bool {
			return s.State != api.Running || o.find(session) != nil || o.isStopping()
		})
		if l := o.find(session); l != nil {
			return l, api.Session{}, nil
		}
	}
	return nil, s, err
}

// absent answers a command for a session that this process does not run.
func absent(s api.Session, err error) webdriver.Answer {
	var invalid *InvalidError
	switch {
	case errors.Is(err, ErrNotFound), errors.As(err, &invalid):
		return gone(nil)
	case err != nil:
		return NotRun("the session cannot be looked up right now; send it again")
	case s.State == api.Ended:
		return gone(Ended(s))
	case s.State == api.Queued:
		return (&webdriver.Error{Code: webdriver.SessionNotCreated, Message: "the session is still queued; wait with GET /v1/sessions/{id}?wait=running"}).Answer()
	}
	return elsewhere()
}

// joinTTL is how long a join token can be redeemed.
const joinTTL = time.Hour

// Invite makes a join token for a new host, or a new one for a host that has not joined yet. *ConflictError.
func (o *Orchestrator) Invite(ctx context.Context, name string, gateways []tunnel.GatewayInfo) (api.JoinToken, error) {
	var text string
	expires, err := o.deps.Hosts.Invite(ctx, name, joinTTL, func(number int) (i Invitation, err error) {
		token, err := tunnel.NewToken(number, gateways)
		if err != nil {
			return i, fmt.Errorf("join token: %w", err)
		}
		if text, err = token.Encode(); err != nil {
			return i, fmt.Errorf("join token: %w", err)
		}
		i.JoinPublicKey, i.PresharedKey, err = token.Credentials()
		return i, err
	})
	if err != nil {
		return api.JoinToken{}, err
	}
	return api.JoinToken{Name: name, Token: text, ExpiresAt: expires}, nil
}
