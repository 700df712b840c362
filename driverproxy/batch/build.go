package batch

import (
	"encoding/json"
	"fmt"
	"math"
	"time"
)

// Builder puts a request together, step by step:
//
//	request, err := new(batch.Builder).
//		Post("/url", map[string]string{"url": "https://shop.example/login"}).
//		Find("#user").As("user").
//		Post("/element/{user}/value", map[string]string{"text": "ada"}).
//		WaitFor("#welcome", 5*time.Second).As("hello").
//		Get("/element/{hello}/text").
//		Request()
//
// The first mistake is kept, and is what Request returns. The zero Builder is ready.
type Builder struct {
	request Request
	err     error
}

// Ref is a value in a body or among a script's arguments that stands for what an earlier step has: "name" or
// "name#/json/pointer".
type Ref string

// MarshalJSON implements json.Marshaler.
func (r Ref) MarshalJSON() ([]byte, error) { return json.Marshal(map[string]string{"$ref": string(r)}) }

// Get adds a GET of a path below the session.
func (b *Builder) Get(path string) *Builder { return b.add(Step{Method: "GET", Path: path}) }

// Delete adds a DELETE of a path below the session.
func (b *Builder) Delete(path string) *Builder { return b.add(Step{Method: "DELETE", Path: path}) }

// Post adds a POST with a body that becomes JSON; nil is {}.
func (b *Builder) Post(path string, body any) *Builder {
	s := Step{Method: "POST", Path: path}
	if body != nil {
		s.Body = b.json(body)
	}
	return b.add(s)
}

// Find adds Find Element by CSS selector.
func (b *Builder) Find(css string) *Builder { return b.Post("/element", byCSS(css)) }

// Script adds Execute Script.
func (b *Builder) Script(script string, args ...any) *Builder {
	return b.Post("/execute/sync", map[string]any{"script": script, "args": append([]any{}, args...)})
}

// WaitFor adds a wait for an element, by CSS selector; a timeout of 0 is DefaultWait.
func (b *Builder) WaitFor(css string, timeout time.Duration) *Builder {
	return b.add(Step{Wait: &Wait{Element: byCSS(css), TimeoutMS: millis(timeout)}})
}

// WaitUntil adds a wait until a script returns something truthy; a timeout of 0 is DefaultWait.
func (b *Builder) WaitUntil(script string, timeout time.Duration, args ...any) *Builder {
	w := &Wait{Script: script, TimeoutMS: millis(timeout)}
	for _, v := range args {
		w.Args = append(w.Args, b.json(v))
	}
	return b.add(Step{Wait: w})
}

// As names the step that was added last.
func (b *Builder) As(name string) *Builder {
	if n := len(b.request.Steps); n > 0 {
		b.request.Steps[n-1].Name = name
	} else if b.err == nil {
		b.err = fmt.Errorf("batch: there is no step yet to be named %q", name)
	}
	return b
}

// GoOn runs the steps after one that failed, but for those that refer to it.
func (b *Builder) GoOn() *Builder {
	stop := false
	b.request.StopOnError = &stop
	return b
}

// Request is the batch, checked.
func (b *Builder) Request() (Request, error) {
	if b.err != nil {
		return Request{}, b.err
	}
	if _, err := Compile(b.request); err != nil {
		return Request{}, err
	}
	return b.request, nil
}

func (b *Builder) add(s Step) *Builder {
	b.request.Steps = append(b.request.Steps, s)
	return b
}

func (b *Builder) json(v any) json.RawMessage {
	raw, err := json.Marshal(v)
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("batch: %s: %w", label(len(b.request.Steps), ""), err)
	}
	return raw
}

func byCSS(selector string) *Locator { return &Locator{Using: "css selector", Value: selector} }

// millis rounds up, so that a short timeout is not the default.
func millis(d time.Duration) int { return int(math.Ceil(float64(d) / float64(time.Millisecond))) }
