package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/inert"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// cleanUp undoes the session and checks that nothing of it is left. A failure quarantines the device.
func (s *session) cleanUp() (*wire.Wiped, *wire.Failure) {
	died := s.driverDied()
	if died {
		s.met.bad = append(s.met.bad, gradeCrashes)
	}
	s.bidi.close() // before the driver closes its end for a reason of its own
	if s.recording != nil {
		s.recording.end()
	}
	wiped, stays := s.emptyBrowser(died)
	s.drop() // with a goodbye
	down := s.takeDown()
	s.running.Wait() // each of them is bounded
	err := errors.Join(stays, down)
	if err == nil {
		return wiped, nil
	}
	s.log.Error("the device could not be cleaned up", zap.Error(err))
	s.met.bad = append(s.met.bad, gradeWiped)
	if down != nil {
		s.met.residue = append(s.met.residue, s.residue())
	}
	return wiped, failed(wire.FailureCleanup, "%v", err)
}

// emptyBrowser takes from the browser what the session has stored in it, and ends the driver's session. Where there is no session any more to look with,
// the device must be looked at in another one before the next client has it.
func (s *session) emptyBrowser(died bool) (*wire.Wiped, error) {
	if s.driver == nil || s.driver.id == "" {
		return nil, nil
	}
	pages := s.visits.Pages()
	if died || s.gone() != "" || s.closing.byClient() {
		return s.inQuestion(pages), nil
	}
	var w sweep
	if s.used.Load() { // else it has been nowhere
		w = sweepUp(context.Background(), s.driver, pages, false, false)
	}
	s.met.question = w.question
	if w.cut() {
		s.met.needs |= proofWiped
	}
	there, err := s.driver.quit(context.Background())
	if err != nil && (s.driverDied() || s.gone() != "") {
		there, err = false, nil
	}
	switch {
	case err != nil && s.kind.contained():
		s.log.Debug("the driver did not delete its session", zap.Error(err)) // it is killed, and its browser
		err = nil
	case err != nil:
		s.log.Warn("the driver did not delete its session", zap.Error(err))
		s.inQuestion(append(pages, w.question...))
		s.met.needs |= proofSession
		err = errors.New("the driver did not end its session: the browser may have kept what that stored")
	case !there:
		s.inQuestion(append(pages, w.question...))
	}
	if w.Left > 0 {
		err = errors.Join(err, fmt.Errorf("the browser still has something of %d of the %d sites that the session was at", w.Left, w.Origins))
	}
	if w.Origins == 0 {
		return nil, err
	}
	s.log.Info("the browser was emptied", w.sites())
	return &w.Wiped, err
}

// inQuestion has the device looked at for what may be left at the pages.
func (s *session) inQuestion(pages []string) *wire.Wiped {
	t := inert.NewTour(pages)
	n := len(t.Origins)
	if n == 0 {
		return nil
	}
	s.met.question = nil
	for _, origin := range t.Origins {
		s.met.question = append(s.met.question, pagesOf(origin, t.Folders(origin))...)
	}
	s.met.needs |= proofWiped
	return &wire.Wiped{Origins: n, Unverified: n}
}

// inProcess is a fake driver that is served on a loopback port.
type inProcess struct {
	driver *drivertest.Driver
	addr   string
	server *http.Server
	over   chan struct{}
}

func serveFake(d *drivertest.Driver) (*inProcess, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("host: fake driver: %w", err)
	}
	p := &inProcess{
		driver: d, addr: l.Addr().String(), over: make(chan struct{}),
		server: &http.Server{Handler: d, ReadHeaderTimeout: 10 * time.Second},
	}
	served := make(chan struct{})
	go func() { // ends with the listener
		defer close(served)
		_ = p.server.Serve(l) // always an error, and always the one of Close
	}()
	go func() { // ends when the driver dies or the session is over
		defer close(p.over)
		select {
		case <-d.Dead():
			_ = p.server.Close()
		case <-served:
		}
		<-served
	}()
	return p, nil
}

func (p *inProcess) stop() error {
	err := p.server.Close()
	<-p.over
	return err
}
