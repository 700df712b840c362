package host

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/socket"
	"github.com/driftstack/fleet/driverproxy/wire"
)

const (
	welcomeLimit = 15 * time.Second // for the orchestrator to record the host
	stuckLimit   = 5 * time.Second  // for a control message to be taken
	postLimit    = 1024             // control messages that may wait: more means that the socket is as good as dead
	steady       = 5 * time.Second  // a socket that held for so long is redialled without delay
)

// link is one control socket.
type link struct {
	addr  string
	epoch string // of the orchestrator, guarded by agent.mu; "" before it has said welcome
	conn  *socket.Conn
	ended chan struct{} // closed when the socket is given up
	once  sync.Once
	wake  chan struct{} // buffered: something is in out

	probe uint64 // the orchestrator's probe that has no answer yet; 0: none. agent.mu guards it, and ask
	ask   uint64 // what the devices must have proved for it

	mu    sync.Mutex // guards what follows
	out   []wire.Control
	seq   uint64        // of the last heartbeat
	timed uint64        // the heartbeat whose round trip is being measured; 0: none
	sent  time.Time     // when it was sent
	round time.Duration // how long the one measured last took; 0: not known
}

func (l *link) end() {
	l.once.Do(func() { close(l.ended) })
	l.conn.Close()
}

func (l *link) alive() bool {
	select {
	case <-l.ended:
		return false
	default:
		return true
	}
}

// post sends a message without waiting; it goes nowhere when the link is gone.
func (l *link) post(m wire.Control) {
	l.mu.Lock()
	l.out = append(l.out, m)
	full := len(l.out) > postLimit
	l.mu.Unlock()
	if full {
		l.once.Do(func() { close(l.ended) })
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// beat is the next heartbeat. It tells how long the last one took that was measured, or has been waiting for its answer.
func (l *link) beat(now time.Time) wire.Control {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	m := wire.Heartbeat{Seq: l.seq, RoundTrip: l.round}
	if l.timed == 0 {
		l.timed, l.sent = l.seq, now
	} else {
		m.RoundTrip = max(l.round, now.Sub(l.sent))
	}
	return wire.Control{Heartbeat: &m}
}

// beaten notes the answer to a heartbeat.
func (l *link) beaten(seq uint64, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if seq == l.timed {
		l.timed, l.round = 0, now.Sub(l.sent)
	}
}

// flush writes what was posted.
func (l *link) flush() error {
	l.mu.Lock()
	out := l.out
	l.out = nil
	l.mu.Unlock()
	for _, m := range out {
		b, err := m.Encode()
		if err != nil {
			return fmt.Errorf("host: %w", err)
		}
		if err := l.conn.WriteText(context.Background(), b); err != nil {
			return err
		}
	}
	return nil
}

// talk runs one control socket to its end.
func (a *agent) talk(ctx context.Context, addr string, dial uint64, log *zap.Logger) (welcomed bool, err error) {
	conn, err := a.endpoint.Dial(ctx, socket.DialFunc(a.cfg.Dial), "ws://"+addr+wire.PathControl, socket.Limits{
		MaxMessage: wire.MaxControl, Silence: welcomeLimit, Stuck: stuckLimit,
	})
	if err != nil {
		return false, err
	}
	l := &link{addr: addr, conn: conn, ended: make(chan struct{}), wake: make(chan struct{}, 1)}
	defer l.end()
	a.rederive(ctx)
	hello := a.hello(l)
	hello.Dial = dial
	defer a.lost(l)
	b, err := wire.Control{Hello: &hello}.Encode()
	if err != nil {
		return false, err
	}
	if err := conn.WriteText(ctx, b); err != nil {
		return false, err
	}
	stop := context.AfterFunc(ctx, func() { // after Welcome the writer hangs up, with a goodbye
		conn.Expire(lingerLimit)
	})
	defer stop()
	welcome, err := readWelcome(conn)
	if err != nil {
		return false, err
	}
	a.welcomed(l, welcome.Epoch)
	log.Info("control socket up", zap.String("name", welcome.Orchestrator), zap.String("epoch", welcome.Epoch))
	conn.SetSilence(max(welcome.HeartbeatLimit, 50*time.Millisecond))
	var writer sync.WaitGroup
	writer.Go(func() {
		l.write(ctx, a.cfg.Name, min(max(welcome.HeartbeatEvery, 10*time.Millisecond), socket.MaxPing))
	})
	err = a.listen(l)
	l.end()
	writer.Wait()
	return true, err
}

func readWelcome(conn *socket.Conn) (*wire.Welcome, error) {
	b, err := conn.ReadText()
	if err != nil {
		return nil, err
	}
	m, err := wire.DecodeControl(b)
	if err != nil {
		return nil, err
	}
	switch {
	case m.Welcome == nil:
		return nil, errors.New("host: the orchestrator's first message is not welcome")
	case m.Welcome.Protocol != wire.Version:
		return nil, fmt.Errorf("host: the orchestrator speaks protocol version %d and this agent %d: update the older one",
			m.Welcome.Protocol, wire.Version)
	}
	return m.Welcome, nil
}

// write sends heartbeats and what is posted, until the link ends; when ctx ends it says goodbye.
func (l *link) write(ctx context.Context, host string, every time.Duration) {
	defer l.end()
	offset := beatOffset(host, every)
	beat := time.NewTimer(untilBeat(time.Now(), every, offset))
	defer beat.Stop()
	for {
		if err := l.flush(); err != nil {
			return
		}
		select {
		case <-l.wake:
		case <-beat.C:
			beat.Reset(untilBeat(time.Now(), every, offset))
			l.post(l.beat(time.Now()))
		case <-l.ended:
			return
		case <-ctx.Done():
			if l.flush() == nil {
				l.conn.Bye("the agent is shutting down")
			}
			select { // the reader ends when the orchestrator closes
			case <-l.ended:
			case <-time.After(lingerLimit):
			}
			return
		}
	}
}

// listen acts on the orchestrator's messages until the socket ends.
func (a *agent) listen(l *link) error {
	for {
		b, err := l.conn.ReadText()
		if err != nil {
			return err
		}
		m, err := wire.DecodeControl(b)
		if err != nil {
			return err
		}
		switch {
		case m.Heartbeat != nil:
			l.beaten(m.Heartbeat.Seq, time.Now())
		case m.Assign != nil:
			a.assign(l, *m.Assign)
		case m.StopRecording != nil:
			if s := a.session(m.StopRecording.Session); s != nil && s.has(m.StopRecording.Term) {
				s.stopRecording()
			}
		case m.Adopt != nil:
			a.adopt(l, *m.Adopt)
		case m.Release != nil:
			a.release(l, *m.Release)
		case m.OpenBiDi != nil:
			a.openBiDi(*m.OpenBiDi)
		case m.Probe != nil:
			a.onProbe(l, *m.Probe)
		default:
			return errors.New("host: the orchestrator sent a message that only a host sends")
		}
	}
}
