package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
)

type recordingsCmd struct {
	Ls struct {
		Account string        `help:"Only this account's."`
		Session string        `help:"Only of this session."`
		State   string        `help:"Only in this state: recording, sealed, uploading, available, replicated, empty, lost or quarantined."`
		Within  time.Duration `placeholder:"DURATION" help:"Only those that began so long ago at most, for example 24h."`
		Limit   int           `default:"50" help:"At most so many, 1 to 1000."`
		Cursor  string        `help:"Older ones: what the page before ended with."`
	} `cmd:"" help:"List recordings, newest first: state, length, size, and where each copy is."`
	Show struct {
		Session string `arg:"" help:"Session, or recording as recordings ls shows it."`
	} `cmd:"" help:"Show all that is known of a recording, with each copy's size, checksum and when it was verified."`
	Get struct {
		Session string `arg:"" help:"Session, or recording as recordings ls shows it."`
		Output  string `short:"o" placeholder:"FILE" help:"File to write; RECORDING.webm if it is not given. It must not be there yet."`
		Region  string `default:"eu" enum:"eu,us" help:"Copy to fetch: eu or us."`
	} `cmd:"" help:"Download a recording, and check its size and SHA-256. What is there of it so far is in FILE.part; run again, it goes on from there."`
	Open struct {
		Session string `arg:"" help:"Session, or recording as recordings ls shows it."`
		Region  string `default:"eu" enum:"eu,us" help:"Copy to open: eu or us."`
		Print   bool   `help:"Print the URL instead. It is valid for an hour, for whoever has it."`
	} `cmd:"" help:"Open a recording in the browser, by a presigned URL that is valid for an hour."`
}

func (c *recordingsCmd) run(ctx context.Context, command string, fleet *client.Client, p printer) error {
	switch command {
	case "ls":
		return c.ls(ctx, fleet, p)
	case "show <session>":
		r, err := findRecording(ctx, fleet, c.Show.Session)
		return p.objectOr(r, err)
	case "get <session>":
		r, err := findRecording(ctx, fleet, c.Get.Session)
		if err != nil {
			return err
		}
		d := download{name: cmp.Or(c.Get.Output, r.ID+".webm"), progress: os.Stderr, locate: func(ctx context.Context) (api.RecordingURL, error) {
			return fleet.RecordingURL(ctx, r.ID, c.Get.Region, urlLife)
		}}
		got, err := d.run(ctx)
		if err != nil {
			return err
		}
		if p.json {
			return p.object(got)
		}
		_, err = fmt.Fprintf(p.out, "%s: %d bytes, SHA-256 %s as recorded\n", got.File, got.Bytes, got.SHA256)
		return err
	case "open <session>":
		r, err := findRecording(ctx, fleet, c.Open.Session)
		if err != nil {
			return err
		}
		u, err := fleet.RecordingURL(ctx, r.ID, c.Open.Region, urlLife)
		if err != nil {
			return err
		}
		return c.open(ctx, u, p)
	}
	return fmt.Errorf("command recordings %q has no implementation", command)
}

const urlLife = time.Hour

// findRecording takes a session or a recording.
func findRecording(ctx context.Context, fleet *client.Client, id string) (api.Recording, error) {
	l, err := fleet.Recordings(ctx, url.Values{"session": {id}, "limit": {"1"}})
	if err != nil {
		return api.Recording{}, err
	}
	if len(l.Recordings) == 1 {
		return l.Recordings[0], nil
	}
	return fleet.RecordingByID(ctx, id)
}

func (c *recordingsCmd) ls(ctx context.Context, fleet *client.Client, p printer) error {
	q := url.Values{"limit": {strconv.Itoa(c.Ls.Limit)}}
	set(q, "account", c.Ls.Account)
	set(q, "session", c.Ls.Session)
	set(q, "state", c.Ls.State)
	set(q, "cursor", c.Ls.Cursor)
	if c.Ls.Within > 0 {
		q.Set("since", p.now().Add(-c.Ls.Within).UTC().Format(time.RFC3339))
	}
	l, err := fleet.Recordings(ctx, q)
	if err == nil && l.Next != "" && !p.json {
		defer fmt.Fprintf(p.out, "\nolder: --cursor %s\n", l.Next)
	}
	return list(p, err, recordingColumns(), l.Recordings, p.recordingRow)
}

func recordingColumns() table.Row {
	return table.Row{"SESSION", "RECORDING", "ACCOUNT", "STATE", "LENGTH", "SIZE", "COPIES", "BEGAN"}
}

func (p printer) recordingRow(r api.Recording) table.Row {
	state := r.State
	if r.Partial {
		state += ", partial"
	}
	if r.Cause != "" {
		state += " (" + r.Cause + ")"
	}
	var copies []string
	for _, c := range r.Copies {
		copies = append(copies, c.Region+" "+c.State)
	}
	length, bytes := "-", "-"
	if r.Bytes > 0 {
		length, bytes = round(time.Duration(r.DurationMS)*time.Millisecond).String(), size(r.Bytes)
	}
	return table.Row{r.Session, r.ID, r.Account, state, length, bytes, orDash(strings.Join(copies, ", ")), short(p.now().Sub(r.StartedAt)) + " ago"}
}

// open hands the URL to whatever opens URLs here, and prints it where nothing does.
func (c *recordingsCmd) open(ctx context.Context, u api.RecordingURL, p printer) error {
	if p.json {
		return p.object(u)
	}
	opener := "xdg-open"
	if runtime.GOOS == "darwin" {
		opener = "open"
	}
	if !c.Open.Print {
		if path, err := exec.LookPath(opener); err == nil {
			if err := exec.CommandContext(ctx, path, u.URL).Run(); err == nil {
				return nil
			}
		}
		_, _ = io.WriteString(p.out, "Nothing here opens a URL; it is:\n")
	}
	_, err := fmt.Fprintln(p.out, u.URL)
	return err
}
