package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jedib0t/go-pretty/v6/progress"

	"github.com/driftstack/fleet/orchestrator/api"
)

const (
	downloadTries = 5                // in a row that bring nothing
	downloadStall = 30 * time.Second // without a byte
)

// download fetches one copy of a recording into a file. What has arrived is in NAME.part until all of it is there and has been checked.
type download struct {
	name     string
	progress io.Writer // a bar goes there, if it is a terminal
	locate   func(context.Context) (api.RecordingURL, error)
}

// downloaded is what a download came to.
type downloaded struct {
	File   string `json:"file"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

func (d download) run(ctx context.Context) (_ downloaded, err error) {
	if _, err := os.Lstat(d.name); err == nil {
		return downloaded{}, fmt.Errorf("%s is there already: move it away, or name another file with -o", d.name)
	}
	u, err := d.locate(ctx)
	if err != nil {
		return downloaded{}, err
	}
	part := d.name + ".part"
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return downloaded{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	have, err := f.Seek(0, io.SeekEnd)
	if err == nil && have > u.Bytes { // of something else
		have, err = 0, empty(f)
	}
	if err != nil {
		return downloaded{}, err
	}
	show, stop := d.bar(u.Bytes, have)
	err = d.fill(ctx, f, u, have, show)
	stop(err == nil)
	if err != nil {
		return downloaded{}, fmt.Errorf("%w; what has arrived is in %s: run it again to go on", err, part)
	}
	return d.check(f, u, part)
}

func seekStart(f *os.File) error {
	_, err := f.Seek(0, io.SeekStart)
	return err
}

func empty(f *os.File) error { return errors.Join(f.Truncate(0), seekStart(f)) }

// fill appends what is missing. A connection that breaks is made again, with a new URL: the one before may have expired.
func (d download) fill(ctx context.Context, f *os.File, u api.RecordingURL, have int64, show func(int64)) error {
	pause := backoff.NewExponentialBackOff()
	for tries := 1; have < u.Bytes; tries++ {
		n, err := fetchFrom(ctx, f, u, have, show)
		if n > have {
			tries = 0
			pause.Reset()
		}
		have = n
		var p *permanent
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case tries >= downloadTries, errors.As(err, &p):
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause.NextBackOff()):
		}
		if next, err := d.locate(ctx); err == nil {
			if next.SHA256 != u.SHA256 {
				return errors.New("the recording is another one than when the download began")
			}
			u = next
		}
	}
	return nil
}

// permanent is an answer that will not be another one the next time.
type permanent struct{ error }

// fetchFrom makes one request for the bytes from have on, and gives how many there are then.
func fetchFrom(ctx context.Context, f *os.File, u api.RecordingURL, have int64, show func(int64)) (int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(downloadStall, func() { cancel(fmt.Errorf("not a byte for %s", downloadStall)) })
	defer stalled.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.URL, nil)
	if err != nil {
		return have, &permanent{err}
	}
	if have > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return have, errors.Join(errors.New("the storage does not answer"), context.Cause(ctx))
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK: // all of it
		if err := empty(f); err != nil {
			return have, &permanent{err}
		}
		have = 0
	case http.StatusPartialContent:
		var from int64
		if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &from); err != nil || from != have {
			return have, &permanent{fmt.Errorf("the storage gave the range %q, from byte %d was asked for", resp.Header.Get("Content-Range"), have)}
		}
	case http.StatusNotFound:
		return have, &permanent{errors.New("the storage has no such object any more")}
	default:
		return have, fmt.Errorf("the storage answers %s", resp.Status)
	}
	body := io.TeeReader(io.LimitReader(resp.Body, u.Bytes-have), writerFunc(func(n int) {
		stalled.Reset(downloadStall)
		have += int64(n)
		show(have)
	}))
	at := have
	n, err := io.Copy(f, body)
	have = at + n
	if err == nil && have < u.Bytes {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		err = fmt.Errorf("the download broke off at byte %d: %w", have, errors.Join(context.Cause(ctx), err))
	}
	return have, err
}

type writerFunc func(n int)

func (w writerFunc) Write(b []byte) (int, error) {
	w(len(b))
	return len(b), nil
}

// check reads the whole file again, as it is on disk, and gives it its name.
func (d download) check(f *os.File, u api.RecordingURL, part string) (downloaded, error) {
	hash := sha256.New()
	if err := seekStart(f); err != nil {
		return downloaded{}, err
	}
	n, err := io.Copy(hash, f)
	if err != nil {
		return downloaded{}, err
	}
	sum := hex.EncodeToString(hash.Sum(nil))
	if n != u.Bytes || sum != u.SHA256 {
		return downloaded{}, errors.Join(fmt.Errorf("what has arrived is not the recording: %d bytes with SHA-256 %s, want %d and %s; %s is deleted: run it again", n, sum, u.Bytes, u.SHA256, part),
			os.Remove(part))
	}
	if err := f.Sync(); err != nil {
		return downloaded{}, err
	}
	if _, err := os.Lstat(d.name); err == nil {
		return downloaded{}, fmt.Errorf("%s has come up meanwhile; the recording is in %s", d.name, part)
	}
	if err := os.Rename(part, d.name); err != nil {
		return downloaded{}, err
	}
	return downloaded{File: d.name, Bytes: n, SHA256: sum}, nil
}

// bar shows on a terminal how far it is. stop ends it.
func (d download) bar(total, have int64) (show func(int64), stop func(done bool)) {
	if !isTerminal(d.progress) {
		return func(int64) {}, func(bool) {}
	}
	w := progress.NewWriter()
	w.SetOutputWriter(d.progress)
	w.SetAutoStop(true)
	w.SetStyle(progress.StyleBlocks)
	w.Style().Visibility.ETA = true
	w.Style().Visibility.Speed = true
	t := &progress.Tracker{Message: filepath.Base(d.name), Total: total, Units: progress.UnitsBytes}
	t.SetValue(have)
	w.AppendTracker(t)
	rendered := make(chan struct{})
	go func() { // ends with the tracker
		defer close(rendered)
		w.Render()
	}()
	return t.SetValue, func(done bool) {
		if done {
			t.MarkAsDone()
		} else {
			t.MarkAsErrored()
		}
		<-rendered
	}
}
