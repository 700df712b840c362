package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
)

const (
	drainLook = time.Second
	// drainSlack is how long sessions may take to end once they are told to: their profiles are saved, and their devices cleaned.
	drainSlack = 5 * time.Minute
	// drainAway is how long an orchestrator that does not answer is asked again: it may be restarted meanwhile, or its database.
	drainAway = 5 * time.Minute
	// drainAsk is how long it has for one answer.
	drainAsk = 5 * time.Second
)

// drain waits until no session is on a host any more. It writes a line for each change, and on a terminal one that is
// kept up to date.
type drain struct {
	host     string
	out      io.Writer
	terminal bool
	now      func() time.Time
	look     <-chan time.Time
	get      func(ctx context.Context) (api.HostDetail, error)
}

func (c *cli) drain(ctx context.Context, fleet *client.Client, p printer) error {
	o := c.Hosts.Drain
	if o.Deadline < time.Second || o.Deadline > 24*time.Hour {
		return errors.New("--deadline: 1s to 24h")
	}
	begin, cancel := context.WithTimeout(ctx, 6*drainAsk)
	h, err := fleet.DrainHost(begin, o.Name, o.Reason, o.Deadline)
	cancel()
	if err != nil {
		return err
	}
	if !o.Wait {
		if p.json {
			return p.object(h)
		}
		_, err := io.WriteString(p.out, drainBegun(h))
		return err
	}
	t := time.NewTicker(drainLook)
	defer t.Stop()
	d := drain{host: o.Name, out: p.out, terminal: isTerminal(p.out) && !p.json, now: time.Now, look: t.C,
		get: func(ctx context.Context) (api.HostDetail, error) {
			ctx, cancel := context.WithTimeout(ctx, drainAsk)
			defer cancel()
			return fleet.Host(ctx, o.Name)
		}}
	if p.json {
		d.out = io.Discard
	}
	last, err := d.wait(ctx)
	if err == nil && p.json {
		return p.object(last.Host)
	}
	return err
}

func drainBegun(h api.Host) string {
	if h.Sessions == 0 {
		return fmt.Sprintf("%s is drained: no session is on it. `driftctl hosts uncordon %s` opens it again.\n", h.Name, h.Name)
	}
	until := ""
	if h.Cordon != nil && h.Cordon.Until != nil {
		until = " until " + h.Cordon.Until.Local().Format("15:04:05 MST") + "; what is left then ends as drained"
	}
	return fmt.Sprintf("%s takes no new sessions. %s on it may go on%s. `driftctl hosts drain %s --wait` watches, `driftctl hosts uncordon %s` undoes it.\n",
		h.Name, count(h.Sessions), until, h.Name, h.Name)
}

func count(n int) string { return counted(n, "session") }

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// wait returns the host once it is drained.
func (d drain) wait(ctx context.Context) (h api.HostDetail, err error) {
	shown, silent := "", time.Time{} // the latter is since when nobody answers
	for {
		h, err = d.get(ctx)
		line, key, over := "", "", false
		switch {
		case ctx.Err() != nil:
			err = fmt.Errorf("not waiting any more; the drain goes on, and `driftctl hosts uncordon %s` undoes it", d.host)
		case err == nil:
			silent = time.Time{}
			line, over, err = d.progress(h)
			key = d.key(h)
		case !refused(err):
			if silent.IsZero() {
				silent = d.now()
			}
			if left := drainAway - d.now().Sub(silent); left > 0 {
				line, key, err = fmt.Sprintf("%s: no answer, trying for %s more: %s", d.host, short(left), unanswered(err)), "no answer", nil
			} else {
				err = fmt.Errorf("not waiting any more: no answer for %s (%s); the drain goes on, and `driftctl hosts get %s` shows how far it is", short(drainAway), unanswered(err), d.host)
			}
		}
		switch {
		case err != nil:
			d.clear()
			return h, err
		case over:
			d.clear()
			_, err = fmt.Fprintln(d.out, line)
			return h, err
		}
		if err := d.show(line, key, &shown); err != nil {
			return h, err
		}
		select {
		case <-ctx.Done():
		case <-d.look:
		}
	}
}

// unanswered is why there is no answer, without the request that there is none to.
func unanswered(err error) string {
	var u *url.Error
	switch {
	case errors.As(err, &u) && u.Timeout():
		return "nothing within " + short(drainAsk)
	case errors.As(err, &u):
		return u.Err.Error()
	}
	return err.Error()
}

// refused says that asking again would be answered the same.
func refused(err error) bool {
	var p *client.Problem
	return errors.As(err, &p) && p.Status < 500 && p.Status != 429
}

// progress is the line that tells how far the drain is, and whether it is over.
func (d drain) progress(h api.HostDetail) (line string, over bool, err error) {
	switch {
	case h.State == api.HostRevoked:
		return "", false, fmt.Errorf("%s was removed meanwhile", h.Name)
	case h.Cordon == nil:
		return "", false, fmt.Errorf("%s was uncordoned meanwhile: the drain is undone, and it takes new sessions", h.Name)
	case h.Sessions == 0:
		return fmt.Sprintf("%s is drained: no session is on it", h.Name), true, nil
	case h.Cordon.Until == nil:
		return fmt.Sprintf("%s: %s left, no deadline", h.Name, count(h.Sessions)), false, nil
	}
	left := h.Cordon.Until.Sub(d.now())
	switch {
	case left < -drainSlack:
		return "", false, fmt.Errorf("%s left on %s %s after the deadline; `driftctl hosts get %s` shows on which device, `driftctl devices release` takes it",
			count(h.Sessions), h.Name, short(-left), h.Name)
	case left <= 0:
		return fmt.Sprintf("%s: %s left, ending: the deadline has passed", h.Name, count(h.Sessions)), false, nil
	}
	return fmt.Sprintf("%s: %s left, %s to the deadline", h.Name, count(h.Sessions), left.Round(time.Second)), false, nil
}

// key changes when something but the time has.
func (d drain) key(h api.HostDetail) string {
	return fmt.Sprint(h.Sessions, h.Cordon != nil && h.Cordon.Until != nil && h.Cordon.Until.After(d.now()))
}

// show writes the line: over the one before on a terminal, and elsewhere when the key has changed.
func (d drain) show(line, key string, shown *string) error {
	if d.terminal {
		if r := []rune(line); len(r) >= 80 { // one that goes on in the next row would stay there
			line = string(r[:78]) + "…"
		}
		_, err := fmt.Fprintf(d.out, "\r\x1b[K%s", line)
		return err
	}
	if key == *shown {
		return nil
	}
	*shown = key
	_, err := fmt.Fprintln(d.out, line)
	return err
}

// clear takes the line off a terminal.
func (d drain) clear() {
	if d.terminal {
		_, _ = io.WriteString(d.out, "\r\x1b[K")
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
