package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/driftstack/fleet/orchestrator/api"
)

const (
	recordingLimit = 90 * time.Second
	tolerance      = time.Second // of a recording's length
)

// checkSealed looks for the customer's secrets on every disk of the stack, in plain and in the usual encodings. The
// origin may stand in our own notes, but in no profile file.
func (p *sample) checkSealed(dir string) {
	profiles := filepath.Join(dir, "orchestrator", "profiles")
	origin := strings.TrimPrefix(p.stack.site.origin, "http://")
	nonce, _, _ := strings.Cut(p.cookie, ".")
	files, found, err := searchFiles(profiles, []string{nonce, p.note, origin})
	p.out.check(err == nil && files > 0 && found == "", "the profile is sealed: neither cookie, localStorage nor origin in its %d files%s", files, because(found, err))
	files, found, err = searchFiles(dir, []string{nonce, p.note})
	p.out.check(err == nil && files > 0 && found == "", "nor cookie or localStorage anywhere else: database, logs, spools, buckets (%d files)%s", files, because(found, err))
}

// checkResidency has the register looked at: everything is where it has to be, and nothing of the account with EU recordings is in the US.
func (p *sample) checkResidency(ctx context.Context) error {
	for account, want := range map[string][]string{"": {"eu", "us"}, accountA: {"eu", "us"}, accountB: {"eu"}} {
		v, err := p.stack.fleet.Residency(ctx, account, true)
		if err != nil {
			return err
		}
		var regions []string // with objects
		for _, c := range v.Categories {
			for _, at := range c.Places {
				if c.Name == "recordings" && slices.ContainsFunc(at.Holds, func(h api.ResidencyHolding) bool { return h.What == "objects listed" && h.Count > 0 }) {
					regions = append(regions, at.Region)
				}
			}
		}
		p.out.check(len(v.Problems) == 0 && slices.Equal(regions, want), "everything of %s is where the register has it, recordings in %s%s",
			cmp.Or(account, "everybody"), strings.Join(regions, " and "), because(strings.Join(v.Problems, "; "), nil))
	}
	return nil
}

func because(found string, err error) string {
	switch {
	case err != nil:
		return ": " + err.Error()
	case found != "":
		return ": found in " + found
	}
	return ""
}

// searchFiles looks for the needles in all files below dir and says how many it read and the first that has one.
func searchFiles(dir string, needles []string, but ...string) (files int, found string, err error) {
	var forms [][]byte
	for _, n := range needles {
		if n == "" {
			return 0, "", errors.New("nothing to look for")
		}
		forms = append(forms, encodings(n)...)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the stack is running: files come and go
		}
		if err == nil && slices.Contains(but, path) {
			return fs.SkipDir
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		files++
		if slices.ContainsFunc(forms, func(f []byte) bool { return bytes.Contains(raw, f) }) {
			found = path
			return fs.SkipAll
		}
		return nil
	})
	return files, found, err
}

// encodings are the forms in which a text could lie in a file: as it is, escaped for a URL or JSON, by those who escape everything as well,
// as UTF-16, hexadecimal, and base64 of it and of UTF-16 at each of the three offsets that it can have in a larger text.
func encodings(s string) [][]byte {
	var little, big []byte
	var percent, escaped strings.Builder
	for _, u := range utf16.Encode([]rune(s)) {
		little, big = append(little, byte(u), byte(u>>8)), append(big, byte(u>>8), byte(u))
		fmt.Fprintf(&escaped, `\u%04x`, u)
	}
	for _, c := range []byte(s) {
		fmt.Fprintf(&percent, "%%%02X", c)
	}
	quoted := strings.Trim(strconv.Quote(s), `"`)
	forms := [][]byte{[]byte(s), []byte(url.QueryEscape(s)), []byte(percent.String()), []byte(quoted), []byte(escaped.String()),
		[]byte(hex.EncodeToString([]byte(s))), []byte(strings.ToUpper(hex.EncodeToString([]byte(s)))), little, big}
	for _, text := range [][]byte{[]byte(s), little} {
		for offset := range 3 {
			whole := append(make([]byte, offset), text...)
			from, to := (offset*8+5)/6, len(whole)*8/6
			for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				forms = append(forms, []byte(e.EncodeToString(whole)[from:to]))
			}
		}
	}
	return forms
}

// checkRecording fetches each copy of a session's recording, decodes it, and compares it with what is in the buckets.
func (p *sample) checkRecording(ctx context.Context, v *visit, regions []string) error {
	rec, err := p.waitRecording(ctx, v.session.ID, regions)
	if err != nil {
		return err
	}
	var have []string
	for _, c := range rec.Copies {
		have = append(have, c.Region)
	}
	slices.Sort(have)
	p.out.check(slices.Equal(have, regions) && !rec.Partial, "session %s: recording of %d bytes, copies in %s", v.session.ID, rec.Bytes, strings.Join(have, ", "))
	for _, c := range rec.Copies {
		if err := p.checkCopy(ctx, v, rec, c); err != nil {
			return err
		}
	}
	for region, o := range p.stack.objects {
		n, err := countObjects(o.data, rec.SHA256)
		want := 0
		if slices.Contains(regions, region) {
			want = 1
		}
		p.out.check(err == nil && n == want, "the %s bucket's disk holds %d of this hash, as it should%s", region, n, because("", err))
	}
	for i := range p.rows {
		if p.rows[i].Session == v.session.ID {
			p.rows[i].RecordingBytes, p.rows[i].RecordingMS, p.rows[i].RecordingPlace = rec.Bytes, rec.DurationMS, have
		}
	}
	return nil
}

func (p *sample) waitRecording(ctx context.Context, session string, regions []string) (api.Recording, error) {
	ctx, cancel := context.WithTimeout(ctx, recordingLimit)
	defer cancel()
	want := "available"
	if len(regions) > 1 {
		want = "replicated"
	}
	for {
		rec, err := p.stack.fleet.Recording(ctx, session)
		if err != nil {
			return rec, err
		}
		if rec.State == want {
			return rec, nil
		}
		if ctx.Err() != nil || rec.State == "empty" || rec.State == "lost" || rec.State == "quarantined" {
			return rec, fmt.Errorf("recording of session %s is %q, not %q", session, rec.State, want)
		}
		pause(ctx, pollEvery)
	}
}

func (p *sample) checkCopy(ctx context.Context, v *visit, rec api.Recording, c api.RecordingCopy) error {
	f, err := os.CreateTemp(p.stack.cfg.dir, "recording-*.webm")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	sum, err := fetch(ctx, c.URL, f)
	if err != nil {
		return fmt.Errorf("fetch the %s copy: %w", c.Region, err)
	}
	p.out.check(sum == rec.SHA256, "the %s copy, fetched through its presigned URL, has the SHA-256 %.12s…", c.Region, sum)
	signed, err := url.Parse(c.URL)
	if err != nil {
		return err
	}
	p.out.check(signed.Query().Get("X-Amz-Expires") == "3600", "the URL is valid for 1 h")
	signed.RawQuery = ""
	_, err = fetch(ctx, signed.String(), io.Discard)
	p.out.check(err != nil, "and is refused without its signature")
	probed, err := probe(ctx, f.Name())
	if err != nil {
		return fmt.Errorf("the %s copy does not decode: %w", c.Region, err)
	}
	least, most := recordedTime(v.events)
	claimed := time.Duration(rec.DurationMS) * time.Millisecond
	p.out.check(probed.codec == "vp8" && near(probed.header, claimed) && near(probed.decoded, claimed) && least-tolerance <= claimed && claimed <= most+tolerance,
		"ffprobe decodes all %d frames of it: %.1fs, header %.1fs, claimed %.1fs, by the log %.1fs to %.1fs", probed.frames, probed.decoded.Seconds(), probed.header.Seconds(), claimed.Seconds(), least.Seconds(), most.Seconds())
	return nil
}

func near(a, b time.Duration) bool { return (a - b).Abs() <= tolerance }

// recordedTime is how long the log says that the screen was recorded. At least while commands were taken; at most from
// the moment at which the host started the encoder to the first thing that finishing did after it had stopped it. (How
// long an encoder takes to its first frame depends on what else the machine does.)
func recordedTime(events []api.Event) (least, most time.Duration) {
	var from, running, finishing, next time.Time
	for _, e := range events {
		switch {
		case e.Kind == "recording":
			from = e.At.Add(-time.Duration(e.TookUS) * time.Microsecond) // how long it recorded already
		case e.Kind == "running":
			running = e.At
		case e.Kind == "finishing":
			finishing = e.At
		case !finishing.IsZero() && next.IsZero():
			next = e.At
		}
	}
	return finishing.Sub(running), next.Sub(from)
}

// fetch gets a URL with no credentials but what is in it.
func fetch(ctx context.Context, from string, to io.Writer) (sum string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return "", err
	}
	client := &http.Client{Timeout: time.Minute}
	defer client.CloseIdleConnections()
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return "", errors.New(res.Status)
	}
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(h, to), res.Body); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// countObjects hashes what an object store has on its disk, so that nothing is taken on anybody's word.
func countObjects(dir, sum string) (n int, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		if hex.EncodeToString(h.Sum(nil)) == sum {
			n++
		}
		return nil
	})
	return n, err
}

// probed is what ffprobe found by decoding every frame.
type probed struct {
	codec           string
	frames          int
	header, decoded time.Duration
}

func probe(ctx context.Context, path string) (probed, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "ffprobe", "-v", "error", "-count_frames", "-select_streams", "v:0",
		"-show_entries", "format=duration:stream=codec_name,nb_read_frames:frame=best_effort_timestamp_time", "-of", "json", path)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return probed{}, fmt.Errorf("ffprobe: %w: %s", err, stderr.String())
	}
	if stderr.Len() > 0 { // ffprobe exits 0 on a damaged file and complains
		return probed{}, fmt.Errorf("ffprobe: %s", stderr.String())
	}
	var out struct {
		Frames []struct {
			At string `json:"best_effort_timestamp_time"`
		} `json:"frames"`
		Streams []struct {
			Codec  string `json:"codec_name"`
			Frames string `json:"nb_read_frames"`
		} `json:"streams"`
		Format struct {
			Duration string `json:"duration"`
		} `json:"format"`
	}
	if err := json.Unmarshal(stdout.Bytes(), &out); err != nil {
		return probed{}, fmt.Errorf("ffprobe: %w", err)
	}
	if len(out.Streams) != 1 || len(out.Frames) == 0 {
		return probed{}, fmt.Errorf("ffprobe: %d video streams, %d frames", len(out.Streams), len(out.Frames))
	}
	frames, err := strconv.Atoi(out.Streams[0].Frames)
	header, errHeader := seconds(out.Format.Duration)
	last, errLast := seconds(out.Frames[len(out.Frames)-1].At)
	if err := errors.Join(err, errHeader, errLast); err != nil {
		return probed{}, fmt.Errorf("ffprobe: %w", err)
	}
	return probed{out.Streams[0].Codec, frames, header, last}, nil
}

func seconds(s string) (time.Duration, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return 0, fmt.Errorf("%q is no time", s)
	}
	return time.Duration(f * float64(time.Second)), nil
}
