package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
)

type explainCmd struct {
	Account   string            `help:"Account that the session would belong to."`
	Kind      string            `help:"Driver kind, for example safaridriver."`
	Model     string            `help:"Device model, for example \"iPhone 15\"."`
	OSVersion string            `name:"os-version" placeholder:"RANGE" help:"For example \">=17.4 <18\", or 17."`
	Platform  string            `help:"Platform name, for example iOS."`
	Country   string            `help:"Country that the device is in, for example US."`
	Host      string            `help:"Name of the host."`
	Label     map[string]string `mapsep:"none" placeholder:"KEY=VALUE" help:"Label that the device must carry; repeatable."`
	Profile   string            `help:"Profile that the session would use."`
	Body      string            `placeholder:"FILE" help:"Body of POST /v1/sessions as a file, - is the standard input; flags go over what it says."`
	Devices   int               `default:"20" help:"List at most so many devices, 0 to 1000."`
}

// request is the body with what the flags say over it.
func (c *explainCmd) request(stdin io.Reader) (r api.CreateSession, err error) {
	if c.Body != "" {
		in := stdin
		if c.Body != "-" {
			f, err := os.Open(c.Body)
			if err != nil {
				return r, fmt.Errorf("--body: %w", err)
			}
			defer f.Close()
			in = f
		}
		d := json.NewDecoder(in)
		d.DisallowUnknownFields()
		if err := d.Decode(&r); err != nil {
			return r, fmt.Errorf("--body: %w", err)
		}
	}
	for _, f := range []struct {
		to   *string
		flag string
	}{
		{&r.Account, c.Account}, {&r.Device.Kind, c.Kind}, {&r.Device.Model, c.Model}, {&r.Device.OSVersion, c.OSVersion}, {&r.Device.Platform, c.Platform},
		{&r.Device.Country, c.Country}, {&r.Device.Host, c.Host}, {&r.Profile, c.Profile},
	} {
		if f.flag != "" {
			*f.to = f.flag
		}
	}
	for key, value := range c.Label {
		if r.Device.Labels == nil {
			r.Device.Labels = map[string]string{}
		}
		r.Device.Labels[key] = value
	}
	if r.Account == "" {
		return r, errors.New("--account: name the account that the session would belong to")
	}
	return r, nil
}

func (c *explainCmd) run(ctx context.Context, fleet *client.Client, p printer) error {
	r, err := c.request(os.Stdin)
	if err != nil {
		return err
	}
	v, err := fleet.Explain(ctx, r, c.Devices)
	if err != nil {
		return err
	}
	return p.explanation(v)
}

// explanation prints the verdict, then why in numbers, then device by device.
func (p printer) explanation(v api.Explanation) error {
	if p.json {
		return p.object(v)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", v.Says)
	fmt.Fprintf(&b, "\n%d enrolled, %d fit, %d free", v.Enrolled, v.Fit, v.Free)
	var not []string
	for _, c := range v.Reasons {
		not = append(not, fmt.Sprintf("%s %d", c.Key, c.Devices))
	}
	if len(not) > 0 {
		fmt.Fprintf(&b, "; not now for: %s", strings.Join(not, ", "))
	}
	b.WriteByte('\n')
	if len(v.Devices) > 0 {
		b.WriteByte('\n')
		w := columns(&b)
		fmt.Fprintln(w, "\tDEVICE\tFITS\tKEY\tWANTED\tHAS")
		for _, d := range v.Devices {
			mark, name, fits := "", d.Host+"/"+d.Device, "no"
			if d.Chosen {
				mark = "→"
			}
			if d.Fits {
				fits = "yes"
			}
			if len(d.Reasons) == 0 {
				fmt.Fprintf(w, "%s\t%s\t%s\t-\t-\t%s\n", mark, name, fits, d.Says)
			}
			for _, r := range d.Reasons {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", mark, name, fits, r.Key, orDash(r.Wanted), orDash(cut(r.Has, reasonWidth)))
				mark, name, fits = "", "", ""
			}
		}
		_ = w.Flush()
	}
	if v.More > 0 {
		fmt.Fprintf(&b, "and %s more: --devices %d\n", counted(v.More, "device"), min(v.More+len(v.Devices), 1000))
	}
	_, err := io.WriteString(p.out, b.String())
	return err
}

// queuePlace says where a session waits.
func queuePlace(q *api.QueuePlace) string {
	says := fmt.Sprintf("position %d", q.Position)
	if q.OrMore {
		says += " or further back"
	}
	switch {
	case q.WaitsFor == api.WaitsForQuota:
		says += "; its account has as many sessions at once as it may"
	case q.Devices == 0:
		says += "; no device that fits takes sessions now: `driftctl sessions explain` says why"
	default:
		says += "; " + counted(q.Devices, "device") + map[bool]string{true: " fits", false: " fit"}[q.Devices == 1]
	}
	if q.ExpectedWaitSeconds != nil {
		says += "; about " + short(time.Duration(*q.ExpectedWaitSeconds)*time.Second) + " to go"
	}
	return says
}
