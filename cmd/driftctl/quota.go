package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
)

type quotaCmd struct {
	ID         string `arg:"" help:"Account."`
	Concurrent string `placeholder:"N" help:"Sessions that have a device at once, or default."`
	Queued     string `placeholder:"N" help:"Sessions that wait at once, or default."`
	Creates    string `placeholder:"N" help:"Sessions that are created within 60 s, or default."`
	Weight     *int   `placeholder:"N" help:"1 to 1000: how many sessions it is given devices for each one of an account with weight 1."`
	Reason     string `help:"Why; it goes into the audit log."`
}

// change is the quota with what the flags say; asked says that they say something.
func (c *quotaCmd) change(q api.Quota) (_ api.Quota, asked bool, err error) {
	for _, f := range []struct {
		name, value string
		to          **int
	}{{"concurrent", c.Concurrent, &q.Concurrent}, {"queued", c.Queued, &q.Queued}, {"creates", c.Creates, &q.CreatesPerMinute}} {
		switch f.value {
		case "":
			continue
		case "default":
			*f.to = nil
		default:
			n, err := strconv.Atoi(f.value)
			if err != nil || n < 0 || n > 1_000_000 {
				return q, false, fmt.Errorf("--%s: a number from 0 to 1000000, or default", f.name)
			}
			*f.to = &n
		}
		asked = true
	}
	if c.Weight != nil {
		if *c.Weight < 1 || *c.Weight > 1000 {
			return q, false, errors.New("--weight: 1 to 1000")
		}
		q.Weight, asked = *c.Weight, true
	}
	return q, asked, nil
}

func (c *quotaCmd) run(ctx context.Context, fleet *client.Client, p printer) error {
	if _, _, err := c.change(api.Quota{}); err != nil { // before anything is asked
		return err
	}
	v, err := fleet.Quota(ctx, c.ID)
	if err != nil {
		return err
	}
	if q, asked, _ := c.change(v.Quota); asked {
		if v, err = fleet.PutQuota(ctx, c.ID, api.PutQuota{Quota: q, Reason: c.Reason}); err != nil {
			return err
		}
	}
	if p.json {
		return p.object(v)
	}
	var b strings.Builder
	w := columns(&b)
	fmt.Fprintln(w, "QUOTA\tMOST\tNOW")
	for _, l := range []struct {
		name string
		most *int
		now  int
	}{{"concurrent", v.Concurrent, v.Active}, {"queued", v.Queued, v.QueuedNow}, {"creates per minute", v.CreatesPerMinute, v.CreatedLately}} {
		most := "default"
		if l.most != nil {
			most = strconv.Itoa(*l.most)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\n", l.name, most, l.now)
	}
	_ = w.Flush() // into a Builder
	_, err = fmt.Fprintf(p.out, "%sweight %d\n", b.String(), v.Weight)
	return err
}
