package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/webdriver"
)

const (
	oceanRTT      = 100 * time.Millisecond // injected between orchestrator and host, half of it each way
	oceanCommands = 50                     // each even one finds an element, and the next clicks it
	oceanOneByOne = 3                      // rounds, of 5 s each
	oceanRounds   = 15
)

// benchBatch measures what dependent commands cost across an ocean: sent one by one, over the stream without waiting (which a client
// can only if it knows the elements already), and as one batch. The unit is the injected round trip.
func benchBatch(ctx context.Context) (_ []figure, err error) {
	var relay delayed
	f, err := openFleet(ctx, fakes(1), relay.to)
	if err != nil {
		return nil, errors.Join(err, relay.close())
	}
	defer func() { err = errors.Join(err, f.close(), relay.close()) }()
	id, err := f.session(ctx)
	if err != nil {
		return nil, err
	}
	single, err := rounds(oceanOneByOne, func() error { return f.oneByOne(ctx, id) })
	if err != nil {
		return nil, fmt.Errorf("one by one: %w", err)
	}
	pipelined, err := rounds(oceanOneByOne, func() error { return f.pipelined(ctx, id) })
	if err != nil {
		return nil, fmt.Errorf("pipelined: %w", err)
	}
	batched, err := rounds(oceanRounds, func() error { return f.batched(ctx, id) })
	if err != nil {
		return nil, fmt.Errorf("batch: %w", err)
	}
	return []figure{
		atMost("stream/batch-rtts", rtts(batched), rtts(single), rtts(batched), "rtt", 1.1),
		atMost("stream/pipelined-rtts", rtts(pipelined), rtts(single), rtts(pipelined), "rtt", 1.5),
	}, nil
}

func rtts(d time.Duration) float64 { return d.Seconds() / oceanRTT.Seconds() }

// rounds is the median of how long something takes, after it was done once to warm up.
func rounds(n int, do func() error) (time.Duration, error) {
	var took []time.Duration
	for range n + 1 {
		begin := time.Now()
		if err := do(); err != nil {
			return 0, err
		}
		took = append(took, time.Since(begin))
	}
	return median(took[1:]), nil
}

// selector of the element that a pair of commands is about; the fake driver calls elements as they were looked for.
func selector(pair int) string { return fmt.Sprintf("e%d", pair) }

func findCommand(pair int) webdriver.Command {
	return webdriver.Command{Method: "POST", Path: "/element", Body: fmt.Appendf(nil, `{"using":"css selector","value":%q}`, selector(pair))}
}

func clickCommand(element string) webdriver.Command {
	return webdriver.Command{Method: "POST", Path: "/element/" + element + "/click", Body: []byte(`{}`)}
}

func (f *fleet) oneByOne(ctx context.Context, session string) error {
	for pair := range oceanCommands / 2 {
		a, err := f.client.Do(ctx, session, findCommand(pair))
		if err != nil {
			return err
		}
		var element map[string]string
		if err := a.Value(&element); err != nil {
			return err
		}
		for _, name := range element {
			if err := second(f.client.Do(ctx, session, clickCommand(name))); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *fleet) pipelined(ctx context.Context, session string) error {
	c, err := f.client.Stream(ctx, session)
	if err != nil {
		return err
	}
	defer c.Close()
	errs := make([]error, oceanCommands)
	var all sync.WaitGroup
	for i := range oceanCommands {
		cmd := findCommand(i / 2)
		if i%2 == 1 {
			cmd = clickCommand(selector(i / 2))
		}
		all.Go(func() {
			a, err := c.Do(ctx, cmd)
			errs[i] = errors.Join(err, a.Err())
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func (f *fleet) batched(ctx context.Context, session string) error {
	var b batch.Builder
	for pair := range oceanCommands / 2 {
		b.Find(selector(pair)).As(selector(pair)).Post("/element/{"+selector(pair)+"}/click", nil)
	}
	r, err := b.Request()
	if err != nil {
		return err
	}
	response, err := f.client.Batch(ctx, session, r)
	if err == nil && len(response.Results) != oceanCommands {
		err = fmt.Errorf("%d results", len(response.Results))
	}
	return errors.Join(err, response.Err())
}

// delayed relays TCP connections, and holds every byte for half a round trip, however many are on their way.
type delayed struct {
	undo
	mu    sync.Mutex // guards what follows
	conns []net.Conn
	over  bool
}

// to listens where the other side of a connection to addr is.
func (d *delayed) to(addr string) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", addr)
			if err != nil {
				_ = near.Close() // told by that
				continue
			}
			d.keep(near, far)
			all.Go(func() { hold(far, near) })
			all.Go(func() { hold(near, far) })
		}
	})
	d.add(func() error {
		err := l.Close()
		d.mu.Lock()
		d.over = true
		d.mu.Unlock()
		d.keep() // and close what there is
		all.Wait()
		return err
	})
	return l.Addr().String(), nil
}

// keep remembers connections for the end, or closes them if that has come.
func (d *delayed) keep(c ...net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conns = slices.Concat(d.conns, c)
	if !d.over {
		return
	}
	for _, c := range d.conns {
		_ = c.Close() // it may be closed already
	}
}

// hold copies from one connection to another, each piece half a round trip after it came.
func hold(to, from net.Conn) {
	type piece struct {
		due time.Time
		b   []byte
	}
	pieces := make(chan piece, 1024)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for p := range pieces {
			time.Sleep(time.Until(p.due))
			if _, err := to.Write(p.b); err != nil {
				_ = from.Close() // ends the reader
				break
			}
		}
		for range pieces { // lets the reader end
		}
		_ = to.Close() // it may be closed already
	}()
	for {
		b := make([]byte, 32<<10)
		n, err := from.Read(b)
		if n > 0 {
			pieces <- piece{time.Now().Add(oceanRTT / 2), b[:n]}
		}
		if err != nil {
			break
		}
	}
	close(pieces)
	<-done
}
