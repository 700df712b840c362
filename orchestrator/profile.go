package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/profilestate"
)

// openedProfile is the profile stage of one session; every method does nothing when it has no profile.
type openedProfile struct {
	o        *Orchestrator
	l        *live
	ref      profilestate.Ref
	head     profilestate.Head
	snapshot *profilestate.Snapshot // nil: it could not be opened, and is not saved
	restored profilestate.Report    // zero where nothing was, or where it is not known: nothing is taken for deleted
	unknown  bool                   // what was restored
}

func (o *Orchestrator) openProfile(ctx context.Context, l *live) (*openedProfile, error) {
	p := &openedProfile{o: o, l: l, ref: profilestate.Ref{Account: l.claim.Account, Profile: l.claim.Profile}}
	if l.claim.Profile == "" {
		return p, nil
	}
	err := o.patiently(ctx, func() (err error) {
		p.snapshot, p.head, err = o.deps.Profiles.Load(ctx, p.ref)
		if err == nil && p.head.Last == 0 && l.claim.Mode == api.ProfileFork { // at an adoption, or after an attempt whose answer was lost, it has one
			from := profilestate.Ref{Account: l.claim.Account, Profile: l.claim.ForkOf}
			p.snapshot, p.head, err = o.deps.Profiles.Clone(ctx, from, 0, p.ref, p.writer())
		}
		return err
	})
	if err != nil && l.claim.Adopted && ctx.Err() == nil {
		// The session runs, and its client wants it more than what it leaves behind.
		o.log.Error("the profile of an adopted session cannot be opened, and will not be saved", zap.String("session", l.claim.Session),
			zap.String("profile", l.claim.Profile), cause(err))
		p.snapshot, p.unknown, err = nil, true, nil
	}
	if err == nil && l.claim.Adopted && p.snapshot != nil && p.head.Current.Number != 0 {
		if p.restored, err = o.deps.Profiles.LoadReport(ctx, p.ref, p.head, l.claim.Session); err != nil {
			o.log.Warn("what was restored into an adopted session is not known: nothing will be taken for deleted", zap.String("session", l.claim.Session), zap.Error(err))
			p.unknown, err = true, nil
		}
	}
	return p, err
}

func (p *openedProfile) writer() profilestate.Writer {
	return profilestate.Writer{Session: p.l.claim.Session, Term: p.l.claim.Term}
}

// restore puts the profile into the browser; an adopted session has it there.
func (p *openedProfile) restore(ctx context.Context, dev device) error {
	if p.head.Current.Number != 0 && !p.l.claim.Adopted {
		if err := p.put(ctx, dev); err != nil {
			return err
		}
	}
	p.l.restoredAs(p.restored, p.unknown)
	return nil
}

func (p *openedProfile) put(ctx context.Context, dev device) (err error) {
	ctx, cancel := context.WithTimeout(ctx, restoreLimit)
	defer cancel()
	begin := p.o.deps.Now()
	if p.restored, err = profilestate.Restore(ctx, driver{dev}, p.snapshot); err != nil {
		return err
	}
	if err := p.o.deps.Profiles.SaveReport(ctx, p.ref, p.head, p.l.claim.Session, p.restored); err != nil {
		p.o.log.Warn("whoever goes on with the session will not know what was restored", zap.String("session", p.l.claim.Session), zap.Error(err))
	}
	n := p.restored.Counts()
	p.l.emit(Event{Kind: EventProfileRestored, Generation: p.head.Current.Number, Took: p.o.deps.Now().Sub(begin),
		Restored: n.Restored, Altered: n.Altered, Dropped: n.Dropped + n.Unsupported})
	return nil
}

// forget removes what is kept of a session that has ended.
func (p *openedProfile) forget(end *EndError) {
	if p.l.claim.Profile != "" && (end == nil || !end.left) {
		p.o.deps.Profiles.RemoveReport(p.ref, p.l.claim.Session)
	}
}

// restoredAs tells what became of the profile's items, for who asks, or that nobody can know it any more.
func (l *live) restoredAs(r profilestate.Report, unknown bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.restored, l.reportLost = &r, unknown
}

var errNoReport = &ConflictError{Problem: "the session does not run: the report is there once its profile is restored, and removed when it ends; " +
	"its event profile_restored keeps the counts"}

var errReportLost = &ConflictError{Problem: "what was restored into this session is not known any more: another orchestrator went on with it, and could not open the report; " +
	"its event profile_restored keeps the counts"}

// ProfileReport says what became of each item of the profile of a session that runs here, or is about to, at most that many of them: those
// first that are not as they were saved. Errors: ErrNotFound, *ConflictError when it does not run, ErrElsewhere, ErrUnavailable.
func (o *Orchestrator) ProfileReport(ctx context.Context, session string, most int) (api.ProfileReport, error) {
	ctx, cancel := context.WithTimeout(ctx, o.AdoptedWithin())
	defer cancel()
	l, s, err := o.await(ctx, session)
	switch {
	case err != nil:
		return api.ProfileReport{}, err
	case l == nil && s.State == api.Running:
		return api.ProfileReport{}, ErrElsewhere
	case l == nil || !l.started(ctx):
		return api.ProfileReport{}, errNoReport
	}
	l.mu.Lock()
	restored, lost, left := l.restored, l.reportLost, l.end != nil && l.end.left
	l.mu.Unlock()
	switch {
	case restored == nil && left: // before it knew
		return api.ProfileReport{}, ErrElsewhere
	case restored == nil:
		return api.ProfileReport{}, errNoReport
	case lost:
		return api.ProfileReport{}, errReportLost
	}
	n := restored.Counts()
	v := api.ProfileReport{Session: session, Profile: l.claim.Profile, Restored: n.Restored, Altered: n.Altered, Dropped: n.Dropped, Unsupported: n.Unsupported,
		Items: []api.ProfileItem{}}
	all := restored.Named()
	for _, i := range all[:min(most, len(all))] {
		v.Items = append(v.Items, api.ProfileItem{Kind: string(i.Kind), Domain: i.Domain, Path: i.Path, Origin: i.Origin, Name: strings.ToValidUTF8(i.Name, "\uFFFD"),
			Status: string(i.Status), Reason: string(i.Reason)})
	}
	v.More = len(all) - len(v.Items)
	return v, nil
}

// save captures, seals and publishes the profile, and returns the new generation's number. When it cannot, the
// generation before stays the current one and the log says so. So it does when the new one is only a candidate, and then the ending says so too.
func (p *openedProfile) save(ctx context.Context, dev device, end *EndError) (*EndError, int64) {
	if p.l.claim.Profile == "" || p.l.claim.Mode == api.ProfileReadonly {
		return end, 0
	}
	switch end.Reason {
	case HostLost, DriverFailed, LeaseLost, CommandDeadline, StreamOverflow, ForceReleased:
		p.l.emit(Event{Kind: EventProfileNotSaved, Reason: end.Reason})
		return end, 0
	}
	if p.snapshot == nil {
		p.l.emit(Event{Kind: EventProfileNotSaved, Reason: ProfileConflict})
		return end, 0
	}
	ctx, cancel := p.o.cleanup(ctx, captureLimit)
	defer cancel()
	begin := p.o.deps.Now()
	next, n, err := p.capture(ctx, dev)
	if err != nil {
		reason := endOf(err).Reason
		if errors.Is(err, profilestate.ErrConflict) {
			reason = ProfileConflict
		}
		p.o.log.Warn("profile not saved", zap.String("session", p.l.claim.Session), zap.String("profile", p.l.claim.Profile), cause(err))
		p.l.emit(Event{Kind: EventProfileNotSaved, Reason: reason})
		return end, 0
	}
	kind := EventProfileSaved
	if next.State == profilestate.Candidate {
		kind = EventProfileCandidate
		end = end.with(fmt.Sprintf("generation %d of the profile is only a candidate: %s. If that was meant, make it current with "+
			"`driftctl profiles promote %s %d`", next.Number, next.Reason, p.ref.Profile, next.Number))
	}
	p.l.emit(Event{Kind: kind, Generation: next.Number, BytesOut: next.Bytes, Took: p.o.deps.Now().Sub(begin),
		Captured: n.Captured, Kept: n.Kept, Removed: n.Removed})
	return end, next.Number
}

func (p *openedProfile) capture(ctx context.Context, dev device) (profilestate.Generation, profilestate.Counts, error) {
	visited := profilestate.Visited{Origins: p.pages()}
	snapshot, report, err := profilestate.Capture(ctx, driver{dev}, visited, p.snapshot, p.restored)
	if err != nil {
		return profilestate.Generation{}, profilestate.Counts{}, err
	}
	// Committing again is safe: the compare-and-swap lets one of the attempts win.
	var next profilestate.Generation
	err = p.o.patiently(ctx, func() error {
		by := p.writer()
		lost, err := p.o.deps.Profiles.LostLogins(ctx, p.ref, p.head, p.snapshot, snapshot)
		if err != nil {
			return err
		}
		if lost > 0 {
			by.Candidate = fmt.Sprintf("the session lost login cookies that the profile had: %d", lost)
		}
		next, err = p.o.deps.Profiles.Commit(ctx, p.ref, p.head, snapshot, by)
		return err
	})
	return next, report.Counts(), err
}

// pages are those to look at for state. An adopted session was at others before, of which its host remembers those that its
// client named or asked for; the sites of its profile are looked at in any case, so that no login that was renewed is lost.
func (p *openedProfile) pages() []string {
	pages := p.l.pages()
	if p.l.claim.Adopted {
		for _, o := range p.snapshot.Origins {
			pages = append(pages, o.Origin)
		}
	}
	return pages
}
