package tunnel

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
)

// Times of the watch. With heartbeats each second on every control socket, a gateway that was restarted is asked after
// 1.2 s, repaired after 1.6 s, and back with the first rung: well within 3 s even at a round trip of 130 ms.
const (
	silenceLimit = 1200 * time.Millisecond // nothing read on open connections for so long is suspicious
	lookEvery    = 500 * time.Millisecond  // at the clocks
	pulseEvery   = 15 * time.Second
	pulseRetry   = 2 * time.Second // while a gateway is heard that does not answer pulses
	pathEvery    = 30 * time.Second
	pathRetry    = 5 * time.Second        // while nothing passes
	askLimit     = 400 * time.Millisecond // of a pulse that only asks whether the gateway is there; longer when round trips are
	slowAsk      = 4 * time.Second        // the longest of these
	probeLimit   = time.Second            // of a fresh dial and its pulse, at most
	napLimit     = 3 * time.Second        // a shorter pause is a busy machine
	sleepLimit   = 30 * time.Second       // after a longer one every orchestrator has given this host up
	deadAfter    = 5 * time.Second        // of silence both ends have given their control sockets up, and TCP sends again too seldom
	speakLimit   = 2 * time.Second        // for a connection to show that it has outlived a silence: TCP sends again after 1 s at most
)

// keeper is the goroutine that keeps one gateway heard:
//
//	         silence, a dial without answer, no pulse, a nap, the device gone
//	watch ─────────────────────────────────────────────────────────────────────▶ mend: rung, probe, rung, probe …
//	  ▲                                                                             │ the probe is answered
//	  └──────────── connections that died are closed, the path is measured ◀────────┘
type keeper struct {
	l      *Link
	g      *remoteGateway
	log    *zap.Logger
	pulser *pulser
	clocks *clocks

	pulseAt, pathAt time.Duration // when they are due
	epoch           string        // of the last beat
	beatAt          time.Duration // when that was asked for
	judgeAt         time.Duration // when connections must have spoken; 0: none is judged
	judged          func(*tracked) bool
	measuredAt      time.Duration // when the path was
	probed          time.Duration // limit of the last probe of it
	slept           bool          // since then
	unanswered      bool          // the last pulse, by a gateway that is heard
}

// trouble is why a gateway has to be repaired.
type trouble struct {
	what  string
	below rung          // the first rung is above this one
	heard time.Duration // connections opened until then may be dead
	slept bool          // for so long that they certainly are
	since time.Duration // repairs have begun
	lost  error         // the device is gone or hung
	gen   int           // number of the device that is lost: another keeper may have replaced it by now
}

// startKeeper starts g's keeper. It must not be called after Close has begun to wait, but from a keeper.
func (l *Link) startKeeper(g *remoteGateway) {
	k := &keeper{l: l, g: g, log: l.cfg.Log.With(zap.Stringer("gateway", g.addr)), pulser: newPulser(l, g), clocks: newClocks(l.cfg.Now)}
	l.keepers.Go(func() {
		defer g.stop()
		k.run(g.kept)
	})
}

func (k *keeper) run(ctx context.Context) {
	defer k.pulser.close()
	defer k.g.setMending(false)
	if k.g.isNew() {
		if err := k.l.handshake(ctx, k.g, time.Time{}); err != nil {
			k.log.Warn("gateway is not set up", zap.Error(err))
		}
	}
	t := k.ask(ctx, "at the start")
	if t == nil {
		t = k.measure(ctx)
	}
	close(k.g.ready)
	for ctx.Err() == nil {
		if t != nil {
			k.mend(ctx, *t)
		}
		t = k.watch(ctx)
	}
}

// watch waits until something is to be done, does it, and says what is wrong.
func (k *keeper) watch(ctx context.Context) *trouble {
	wait, began := k.untilNext(), time.Now()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	h := k.l.held()
	kicked := false
	select {
	case <-ctx.Done():
		return nil
	case <-h.dev.gone():
		if ctx.Err() != nil {
			return nil
		}
		return &trouble{what: "the device is gone", heard: k.g.since(), lost: ErrDeviceGone, gen: h.gen}
	case <-k.g.kick:
		kicked = true
	case <-timer.C:
	}
	// What was opened during the wait was opened when this machine was awake again, or a moment before it slept.
	now, before := k.g.since(), k.g.since()-time.Since(began)
	if nap := k.clocks.nap(wait, time.Since(began)); nap > napLimit {
		return &trouble{what: "this machine or process stood still for " + nap.Round(time.Second).String(), below: rungHandshake, heard: before, slept: nap >= sleepLimit}
	}
	silence, waiting := k.g.silent()
	turn, scheduled := k.g.untilTurn()
	switch {
	case scheduled && turn <= 0 && k.g.turn():
		k.log.Info("the gateway has its next key now", zap.Stringer("key", k.g.get().PublicKey))
		if err := k.l.handshake(ctx, k.g, time.Time{}); err != nil {
			return &trouble{what: "its next key: " + err.Error(), heard: now}
		}
		return k.ask(ctx, "no answer to the gateway's next key")
	case kicked:
		if err := h.dev.check(ctx); broken(err) {
			return &trouble{what: "the device is not what it was", heard: now, lost: err, gen: h.gen}
		}
		return k.ask(ctx, "a dial got no answer")
	case waiting && silence >= silenceLimit:
		return k.ask(ctx, "nothing was read on open connections for "+silence.Round(time.Millisecond).String())
	case k.judgeAt > 0 && now >= k.judgeAt:
		k.judge()
	case now >= k.pulseAt:
		return k.ask(ctx, "no answer to a pulse")
	case now >= k.pathAt, k.l.sizes().sizedAt > k.measuredAt:
		return k.measure(ctx)
	}
	return nil
}

// untilNext is how long there is nothing to do.
func (k *keeper) untilNext() time.Duration {
	now := k.g.since()
	wait := min(lookEvery, k.pulseAt-now, k.pathAt-now)
	if silence, waiting := k.g.silent(); waiting {
		wait = min(wait, silenceLimit-silence)
	}
	if k.judgeAt > 0 {
		wait = min(wait, k.judgeAt-now)
	}
	if turn, scheduled := k.g.untilTurn(); scheduled {
		wait = min(wait, turn)
	}
	return max(wait, 0)
}

// ask sends a pulse on the open connection. No answer is trouble.
func (k *keeper) ask(ctx context.Context, why string) *trouble {
	heard, asked := time.Duration(k.g.heard.Load()), k.g.since()
	b, err := k.pulser.pulse(ctx, k.pulser.limit())
	if ctx.Err() != nil {
		return nil
	}
	if err != nil && !spoke(err) && k.g.quiet() >= silenceLimit {
		return &trouble{what: why + ": " + err.Error(), heard: max(heard, 0)}
	}
	k.g.setMending(false)
	k.answered(err)
	k.took(ctx, b, asked, 0)
	return nil
}

// answered plans the next pulse after one that the gateway has answered, or not although it is heard: it is busy then,
// and a repair would only add to that.
func (k *keeper) answered(err error) {
	silent := err != nil && !spoke(err)
	if silent && !k.unanswered {
		k.log.Warn("gateway is heard, but does not answer pulses; nothing is repaired for that", zap.Error(err))
	}
	k.unanswered, k.pulseAt = silent, k.g.since()+pulseEvery
	if silent {
		k.pulser.drop()
		k.pulseAt = k.g.since() + pulseRetry
	}
}

// took acts on a beat: a gateway of another epoch knows nothing of the connections that were opened before until.
// Those opened between its last beat and this one are judged by whether they speak.
func (k *keeper) took(ctx context.Context, b *beat, asked, until time.Duration) {
	if b == nil {
		return
	}
	if k.epoch != "" && b.Epoch != k.epoch {
		dead := max(k.beatAt, until)
		n := k.g.closeConns(func(c *tracked) bool { return !c.own && c.opened <= dead })
		k.log.Info("the gateway was started anew", zap.String("epoch", b.Epoch), zap.Int("closed_connections", n))
		k.judgeLater(func(c *tracked) bool { return c.opened < asked && time.Duration(c.read.Load()) < asked })
	}
	k.epoch, k.beatAt = b.Epoch, asked
	k.l.heed(ctx, k.g, b.Beat)
}

func (k *keeper) judgeLater(dead func(*tracked) bool) {
	k.judgeAt, k.judged = k.g.since()+speakLimit, dead
}

func (k *keeper) judge() {
	if n := k.g.closeConns(func(c *tracked) bool { return !c.own && k.judged(c) }); n > 0 {
		k.log.Info("connections stay silent after a repair and are closed", zap.Int("closed_connections", n))
	}
	k.judgeAt, k.judged = 0, nil
}

// mend climbs the ladder until the gateway answers.
func (k *keeper) mend(ctx context.Context, t trouble) {
	k.g.setMending(true)
	began, last, rounds := time.Now(), t.below, 0
	t.since = k.g.since()
	p := k.pulser.pace()
	k.log.Warn("gateway is not heard, repairing", zap.String("why", t.what))
	for {
		step, asked, gen := time.Now(), k.g.since(), k.l.held().gen
		turned := rounds%otherKey == 1 && k.g.turn() // it may have replaced its key meanwhile
		rounds++
		limit := p.try(rounds, time.Since(began))
		r, err := k.repair(ctx, last, t, rounds == 1)
		repaired := err == nil
		var b *beat
		if repaired {
			last, t.lost = r, nil
			b, err = k.listen(ctx, p, limit, asked)
		} else if broken(err) {
			t.lost, t.gen = err, gen
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil || spoke(err) || repaired && k.g.heardSince(asked) {
			k.log.Info("gateway is heard again", zap.Stringer("rung", r), zap.Int("tries", rounds), zap.Duration("after", time.Since(began)),
				zap.String("why", t.what), zap.Any("repairs", k.l.Repairs()))
			k.healed(ctx, t, b, asked)
			k.answered(err)
			return
		}
		if turned {
			k.g.turn()
		}
		if rounds == 1 || rounds%60 == 0 {
			k.log.Warn("gateway is still not heard, trying further", zap.Stringer("rung", r), zap.Int("tries", rounds), zap.Error(err))
		}
		if pause(ctx, limit-time.Since(step)) != nil {
			return
		}
	}
}

// listen waits for what a gateway says to a repair, and for as long as p allows when it only answers handshakes.
func (k *keeper) listen(ctx context.Context, p *pace, limit, asked time.Duration) (*beat, error) {
	k.pulser.drop() // its connection is as old as the trouble
	b, err := k.pulser.pulse(ctx, limit)
	if err == nil || spoke(err) || ctx.Err() != nil || k.g.heardSince(asked) {
		return b, err
	}
	if !k.g.answeredSince(asked) {
		k.l.met(ctx, k.g)
	}
	if !k.g.answeredSince(asked) {
		return b, err
	}
	wait := p.wait()
	k.log.Info("gateway answers handshakes and nothing else yet: it is given more time", zap.Duration("time", wait))
	k.pulser.drop()
	return k.pulser.pulse(ctx, wait)
}

// otherKey: one try in so many is for the other key of a gateway that has announced a next one. It is announced for days,
// and used for a moment of them.
const otherKey = 4

// broken says of an error that the device itself is the trouble.
func broken(err error) bool {
	return lost(err) || errors.Is(err, ErrNotVerified)
}

// repair takes the rung after last, or makes a new device for one that is lost.
func (k *keeper) repair(ctx context.Context, last rung, t trouble, first bool) (rung, error) {
	l, h := k.l, k.l.held()
	checked := h.dev.check(ctx)
	if t.lost == nil && broken(checked) { // handshakes pass by an interface that someone has brought down
		t.lost, t.gen = checked, h.gen
	}
	if t.lost != nil {
		return rungDevice, l.restore(ctx, t.gen, t.lost)
	}
	s := l.situation(k.g)
	s.silence = k.g.since() - t.since
	if k.g.answeredSince(max(t.since, k.g.since()-slowRecent)) && checked == nil {
		s.shared = true // by the gateway's own handshakes
	}
	if first && t.below > 0 {
		s.shared = false // that a gateway was heard was before this machine slept
	}
	r := last.next(s)
	if first && r > rungSocket {
		r = rungHandshake // another keeper has just opened the socket for the same reason
	}
	l.count(r)
	switch r {
	case rungSocket:
		if err := l.newSocket(ctx); err != nil {
			return r, err
		}
	case rungResolve:
		// Without the network there are no names either: the address of before is then the best there is.
		look, cancel := context.WithTimeout(ctx, probeLimit)
		defer cancel()
		if err := l.resolve(look, k.g); err != nil {
			k.log.Info("the gateway's endpoint cannot be looked up now", zap.Error(err))
		}
	case rungDevice:
		return r, l.restore(ctx, h.gen, errNothingElse)
	}
	return r, l.handshake(ctx, k.g, time.Time{})
}

func (l *Link) situation(g *remoteGateway) situation {
	now := time.Since(l.began)
	device, socket := l.openedAt()
	s := situation{deviceAge: now - device, socketAge: now - socket}
	for _, other := range l.all() {
		if other != g && other.isMending() == nil && other.since()-time.Duration(other.heard.Load()) < pulseEvery+silenceLimit {
			s.shared = true
		}
	}
	return s
}

func (l *Link) count(r rung) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch r {
	case rungHandshake:
		l.repairs.Handshake++
	case rungSocket:
		l.repairs.Socket++
	case rungResolve:
		l.repairs.Resolve++
	case rungDevice: // restore counts: there are other reasons for a new device
	}
}

// healed closes what died with the trouble. In the same epoch a connection may have lived through a short one: if it wrote
// meanwhile it must hear something back soon, and with nothing under way it is left alone.
func (k *keeper) healed(ctx context.Context, t trouble, b *beat, asked time.Duration) {
	now := k.g.since()
	if t.slept || asked-t.heard >= deadAfter {
		n := k.g.closeConns(func(c *tracked) bool { return !c.own && c.opened <= t.heard })
		k.log.Info("connections from before the silence are closed", zap.Int("closed_connections", n))
	}
	k.judgeLater(func(c *tracked) bool {
		return c.opened <= asked && time.Duration(c.wrote.Load()) > t.heard && time.Duration(c.read.Load()) < now
	})
	k.took(ctx, b, asked, t.heard)
	k.g.heal() // before those that wait are let go
	k.g.setMending(false)
	k.pathAt, k.slept = now, k.slept || t.slept
}
