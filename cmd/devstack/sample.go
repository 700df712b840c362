package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
)

// The sample's two customers.
const (
	accountA = "sample-a" // recordings in the EU and the US
	accountB = "sample-b" // recordings in the EU only
)

const (
	sessionLimit = 2 * time.Minute
	sampleLimit  = 8 * time.Minute
)

// sample drives three sessions and checks every claim it makes about them.
type sample struct {
	stack *stack
	out   *printer
	rows  []row

	cookie string // the login cookie's value, of session 1
	note   string // what session 1 wrote to localStorage
}

// visit is one session of the sample, over.
type visit struct {
	session api.Session
	events  []api.Event
	browser *browser
	log     *liveLog
}

// runSample returns an error when a claim did not hold or could not be checked.
func runSample(ctx context.Context, s *stack) error {
	ctx, cancel := context.WithTimeout(ctx, sampleLimit)
	defer cancel()
	p := &sample{stack: s, out: s.cfg.out, note: "note-" + rand.Text()}
	before := p.out.failures()
	err := p.run(ctx)
	if err == nil && p.out.failures() > before {
		err = fmt.Errorf("%d claims of the sample did not hold (marked ✗ above)", p.out.failures()-before)
	}
	if len(p.rows) == 0 {
		return err
	}
	p.out.line("\n%s", table(p.rows))
	if errWrite := writeSummary(filepath.Join(s.cfg.dir, "summary.json"), p.rows, err == nil); err == nil {
		err = errWrite
	}
	return err
}

func (p *sample) run(ctx context.Context) error {
	for account, recordings := range map[string]string{accountA: "replicated", accountB: "eu"} {
		if _, err := p.stack.fleet.PutAccount(ctx, account, api.PutAccount{Recordings: recordings}); err != nil {
			return err
		}
	}
	profile, err := p.stack.fleet.CreateProfile(ctx, api.CreateProfile{Account: accountA, Name: "sample " + time.Now().UTC().Format(time.RFC3339)})
	if err != nil {
		return err
	}
	p.out.line("\naccount %s keeps recordings in the EU and the US, account %s in the EU only; profile %s belongs to %s", accountA, accountB, profile.ID, accountA)

	first, err := p.visit(ctx, "session 1: logs in, over the websocket stream", api.CreateSession{Account: accountA, Profile: profile.ID}, true, p.logsIn)
	if err != nil {
		return err
	}
	p.checkGeneration(first, 0)
	p.checkSealed(p.stack.cfg.dir)
	second, err := p.visit(ctx, "session 2: same profile, over the W3C routes", api.CreateSession{Account: accountA, Profile: profile.ID}, false, p.isLoggedIn)
	if err != nil {
		return err
	}
	p.checkGeneration(second, first.session.Generation)
	third, err := p.visit(ctx, "session 3: the other account, no profile", api.CreateSession{Account: accountB}, false, p.isNobody)
	if err != nil {
		return err
	}
	p.out.line("\nrecordings and what is on the disks")
	for _, r := range []struct {
		visit   *visit
		regions []string
	}{{first, []string{"eu", "us"}}, {second, []string{"eu", "us"}}, {third, []string{"eu"}}} {
		if err := p.checkRecording(ctx, r.visit, r.regions); err != nil {
			return err
		}
	}
	p.checkSealed(p.stack.cfg.dir)
	return p.checkResidency(ctx)
}

// visit runs one session from its creation to its end, with a live log beside it.
func (p *sample) visit(ctx context.Context, title string, create api.CreateSession, stream bool, act func(context.Context, *browser) error) (_ *visit, err error) {
	ctx, cancel := context.WithTimeout(ctx, sessionLimit)
	defer cancel()
	p.out.line("\n%s", title)
	create.Name = title
	create.Device = api.DeviceWant{Kind: deviceKind}
	create.Timeouts = api.Timeouts{IdleSeconds: 60, MaxSeconds: 300}
	record := true
	create.Recording = &record
	v := &visit{}
	fleet := p.stack.fleet
	if v.session, err = fleet.CreateSession(ctx, create); err != nil {
		return nil, err
	}
	if v.log, err = followLog(p.stack, v.session.ID); err != nil {
		return nil, err
	}
	defer func() { // also when something failed: a session must not be left running, nor a log
		if err != nil {
			_, _ = fleet.Cancel(context.WithoutCancel(ctx), v.session.ID) // best effort: err says more
		}
		v.log.close(context.WithoutCancel(ctx))
	}()
	if err := p.waitState(ctx, v, api.Running); err != nil {
		return nil, err
	}
	v.browser = &browser{do: routes(fleet, v.session.ID)}
	if stream {
		do, done, err := openStream(ctx, fleet, v.session.ID)
		if err != nil {
			return nil, fmt.Errorf("command stream: %w", err)
		}
		defer done()
		v.browser.do = do
	}
	if err := act(ctx, v.browser); err != nil {
		return nil, err
	}
	linesBefore := v.log.count()
	if err := v.browser.quit(ctx); err != nil {
		return nil, err
	}
	if err := p.waitState(ctx, v, api.Ended); err != nil {
		return nil, err
	}
	if v.events, err = fleet.Events(ctx, v.session.ID, 0); err != nil {
		return nil, err
	}
	v.log.close(ctx)
	p.out.check(v.session.Reason == "completed", "ended: %s", v.session.Reason)
	p.checkLog(v, linesBefore)
	p.rows = append(p.rows, newRow(v))
	return v, nil
}

// waitState waits until the session is in the state; one that ends first is an error.
func (p *sample) waitState(ctx context.Context, v *visit, want api.SessionState) (err error) {
	if v.session, err = p.stack.fleet.Wait(ctx, v.session.ID, want); err != nil {
		return err
	}
	if v.session.State != want {
		return fmt.Errorf("session %s is %s, not %s: %s: %s", v.session.ID, v.session.State, want, v.session.Reason, v.session.Detail)
	}
	return nil
}

const loggedInText = "Logged in as " + siteUser + "."

func (p *sample) logsIn(ctx context.Context, b *browser) error {
	site := p.stack.site.origin
	if err := b.open(ctx, site+"/login"); err != nil {
		return err
	}
	if err := b.write(ctx, "#user", siteUser); err != nil {
		return err
	}
	if err := b.write(ctx, "#password", sitePassword); err != nil {
		return err
	}
	if err := b.click(ctx, "#submit"); err != nil {
		return err
	}
	said, err := b.waitText(ctx, "#who", loggedInText)
	if err != nil {
		return err
	}
	login, err := b.cookie(ctx, siteCookie)
	if err != nil {
		return err
	}
	p.cookie = login.Value
	p.out.check(login.Value != "" && login.HTTPOnly, "logged in through the form: the page says %q, the cookie is HttpOnly", said)
	if err := b.open(ctx, site+"/notes"); err != nil {
		return err
	}
	if err := b.write(ctx, "#note", p.note); err != nil {
		return err
	}
	if err := b.click(ctx, "#save"); err != nil {
		return err
	}
	if _, err := b.waitText(ctx, "#saved", p.note); err != nil {
		return err
	}
	p.out.check(true, "wrote localStorage")
	return p.clicksAndLooks(ctx, b)
}

func (p *sample) clicksAndLooks(ctx context.Context, b *browser) error {
	const clicks = 5
	if err := b.open(ctx, p.stack.site.origin+"/counter"); err != nil {
		return err
	}
	for range clicks {
		if err := b.click(ctx, "#add"); err != nil {
			return err
		}
	}
	count, err := b.text(ctx, "#count")
	if err != nil {
		return err
	}
	p.out.check(count == fmt.Sprint(clicks), "clicked %d times, the counter shows %s", clicks, count)
	width, height, err := b.screenshot(ctx)
	if err != nil {
		return err
	}
	p.out.check(width > 100 && height > 100, "took a screenshot of %d×%d", width, height)
	return nil
}

// sees reads what the site knows of this browser.
func (p *sample) sees(ctx context.Context, b *browser) (who, note string, login cookie, err error) {
	if err = b.open(ctx, p.stack.site.origin+"/"); err != nil {
		return
	}
	if who, err = b.text(ctx, "#who"); err != nil {
		return
	}
	if login, err = b.cookie(ctx, siteCookie); err != nil {
		return
	}
	if err = b.open(ctx, p.stack.site.origin+"/notes"); err != nil {
		return
	}
	note, err = b.text(ctx, "#saved")
	return
}

func (p *sample) isLoggedIn(ctx context.Context, b *browser) error {
	who, note, login, err := p.sees(ctx, b)
	if err != nil {
		return err
	}
	p.out.check(who == loggedInText, "logged in without logging in: the page says %q", who)
	p.out.check(login.Value == p.cookie && login.HTTPOnly, "has the cookie of session 1, still HttpOnly")
	p.out.check(note == p.note, "sees the localStorage of session 1")
	return p.clicksAndLooks(ctx, b)
}

func (p *sample) isNobody(ctx context.Context, b *browser) error {
	who, note, login, err := p.sees(ctx, b)
	if err != nil {
		return err
	}
	p.out.check(who == "Nobody is logged in." && login.Value == "", "not logged in: the page says %q", who)
	p.out.check(note == "", "sees no localStorage of session 1")
	return p.clicksAndLooks(ctx, b)
}

func (p *sample) checkGeneration(v *visit, previous int64) {
	p.out.check(v.session.Generation > previous, "the profile was saved as generation %d", v.session.Generation)
}

// checkLog compares the live log with the stored one, and looks for what no log may hold.
func (p *sample) checkLog(v *visit, linesBefore int) {
	lines := v.log.lines()
	commands := 0
	for _, e := range v.events {
		if e.Kind == "command" {
			commands++
		}
	}
	p.out.check(linesBefore > 0 && len(lines) >= len(v.events), "driftctl logs -f showed %d events, %d of them while the session ran", len(lines), linesBefore)
	p.out.check(commands == len(v.browser.took), "the log has %d of %d commands, each as a route", commands, len(v.browser.took))
	all := strings.Join(lines, "\n")
	payload := slices.ContainsFunc([]string{p.cookie, p.note, p.stack.site.origin, sitePassword}, func(s string) bool {
		return s != "" && strings.Contains(all, s)
	})
	p.out.check(!payload && strings.Contains(all, "/session/{session id}/url"), "no log line holds a URL, a cookie or typed text")
}

// liveLog is a driftctl that follows a session's log.
type liveLog struct {
	proc *child
	out  *printer

	mu   sync.Mutex // guards the rest
	rest string
	seen []string
}

func followLog(s *stack, session string) (*liveLog, error) {
	l := &liveLog{out: s.cfg.out}
	var err error
	l.proc, err = startChild(spec{name: "driftctl logs", argv: []string{filepath.Join(s.cfg.bin, "driftctl"), "logs", "-f", session},
		env: []string{"DRIFTSTACK_URL=" + s.url, "DRIFTSTACK_SERVICE_TOKEN=" + s.state.ServiceToken}, log: s.log("driftctl"), stdout: l})
	return l, err
}

// Write takes driftctl's output, whole lines of which are printed with a bar before them.
func (l *liveLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest += string(p)
	for {
		line, rest, whole := strings.Cut(l.rest, "\n")
		if !whole {
			return len(p), nil
		}
		l.rest = rest
		l.seen = append(l.seen, line)
		l.out.line("  │ %s", line)
	}
}

func (l *liveLog) count() int { return len(l.lines()) }

func (l *liveLog) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.seen)
}

// close waits a moment for the end of the log, which ends driftctl, and stops it otherwise.
func (l *liveLog) close(ctx context.Context) {
	select {
	case <-l.proc.done:
	case <-ctx.Done():
	case <-time.After(5 * time.Second):
	}
	_ = l.proc.stop(context.WithoutCancel(ctx)) // it has nothing to lose
}
