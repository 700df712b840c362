package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"image/png"
	"net/http"
	"slices"
	"time"
)

// doer sends one W3C command of a session, path below the session, and returns the answer's value.
type doer func(ctx context.Context, method, path string, body any) (json.RawMessage, error)

// browser is a session as a customer's program sees it, with the time that each command took.
type browser struct {
	do   doer
	took []time.Duration
}

const (
	elementKey = "element-6066-11e4-a52e-4f735466cecf" // of the W3C WebDriver specification
	pageLimit  = 15 * time.Second                      // for a page to show what it should
	commandGap = 60 * time.Millisecond                 // so that the recording has something to show
)

func (b *browser) send(ctx context.Context, method, path string, in, out any) error {
	began := time.Now()
	value, err := b.do(ctx, method, path, in)
	b.took = append(b.took, time.Since(began))
	if err != nil {
		return fmt.Errorf("command %s %s: %w", method, path, err)
	}
	pause(ctx, commandGap)
	if out == nil {
		return nil
	}
	return json.Unmarshal(value, out)
}

// p50 is the median time of a command.
func (b *browser) p50() time.Duration {
	if len(b.took) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(b.took))
	return sorted[len(sorted)/2]
}

func (b *browser) open(ctx context.Context, url string) error {
	return b.send(ctx, http.MethodPost, "/url", map[string]string{"url": url}, nil)
}

func (b *browser) quit(ctx context.Context) error {
	return b.send(ctx, http.MethodDelete, "", nil, nil)
}

func (b *browser) find(ctx context.Context, css string) (string, error) {
	var found map[string]string
	err := b.send(ctx, http.MethodPost, "/element", map[string]string{"using": "css selector", "value": css}, &found)
	return found[elementKey], err
}

func (b *browser) click(ctx context.Context, css string) error {
	e, err := b.find(ctx, css)
	if err != nil {
		return err
	}
	return b.send(ctx, http.MethodPost, "/element/"+e+"/click", struct{}{}, nil)
}

func (b *browser) write(ctx context.Context, css, text string) error {
	e, err := b.find(ctx, css)
	if err != nil {
		return err
	}
	return b.send(ctx, http.MethodPost, "/element/"+e+"/value", map[string]string{"text": text}, nil)
}

func (b *browser) text(ctx context.Context, css string) (text string, err error) {
	e, err := b.find(ctx, css)
	if err != nil {
		return "", err
	}
	err = b.send(ctx, http.MethodGet, "/element/"+e+"/text", nil, &text)
	return text, err
}

// waitText reads an element until it says what is wanted, and returns what it said last. A page that is being replaced
// has no such element for a moment.
func (b *browser) waitText(ctx context.Context, css, want string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, pageLimit)
	defer cancel()
	for {
		got, err := b.text(ctx, css)
		if err == nil && got == want {
			return got, nil
		}
		if ctx.Err() != nil {
			return got, errors.Join(fmt.Errorf("%s says %q, not %q, after %s", css, got, want, pageLimit), err)
		}
		pause(ctx, pollEvery)
	}
}

type cookie struct {
	Name     string `json:"name"`
	Value    string `json:"value"`
	HTTPOnly bool   `json:"httpOnly"`
}

// cookie returns the named cookie of the current page, the zero cookie when there is none.
func (b *browser) cookie(ctx context.Context, name string) (cookie, error) {
	var all []cookie
	if err := b.send(ctx, http.MethodGet, "/cookie", nil, &all); err != nil {
		return cookie{}, err
	}
	for _, c := range all {
		if c.Name == name {
			return c, nil
		}
	}
	return cookie{}, nil
}

// screenshot returns the size of a screenshot that decodes whole.
func (b *browser) screenshot(ctx context.Context) (width, height int, err error) {
	var encoded string
	if err := b.send(ctx, http.MethodGet, "/screenshot", nil, &encoded); err != nil {
		return 0, 0, err
	}
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return 0, 0, fmt.Errorf("screenshot: %w", err)
	}
	img, err := png.Decode(bytes.NewReader(raw))
	if err != nil {
		return 0, 0, fmt.Errorf("screenshot: %w", err)
	}
	return img.Bounds().Dx(), img.Bounds().Dy(), nil
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
