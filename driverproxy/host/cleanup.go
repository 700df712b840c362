package host

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

// cleanUp undoes the session and checks that nothing of it is left. A failure quarantines the device.
func (s *session) cleanUp() *wire.Failure {
	if s.driverDied() {
		s.met.bad = append(s.met.bad, gradeCrashes)
	}
	s.bidi.close() // before the driver closes its end for a reason of its own
	if s.recording != nil {
		s.recording.end()
	}
	s.deleteSession()
	s.drop() // with a goodbye
	err := s.takeDown()
	s.running.Wait() // each of them is bounded
	if err == nil {
		return nil
	}
	s.log.Error("the device could not be cleaned up", zap.Error(err))
	s.met.bad = append(s.met.bad, gradeWiped)
	s.met.residue = append(s.met.residue, s.residue())
	return failed(wire.FailureCleanup, "%v", err)
}

// deleteSession lets the driver close its browser, which on a phone is what ends the automation. A driver that cannot is killed anyway.
func (s *session) deleteSession() {
	if s.driver == nil || s.driver.id == "" || s.closing.byClient() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), deleteLimit)
	defer cancel()
	if _, err := s.driver.do(ctx, webdriver.Command{Method: http.MethodDelete}); err != nil {
		s.log.Debug("the driver did not delete its session", zap.Error(err))
	}
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
