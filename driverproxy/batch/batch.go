// Package batch is a list of W3C commands that runs beside the driver, in one round trip: what it is in JSON, which lists
// are sound, how a step refers to what an earlier one answered, and how the list is run.
//
//	{"steps": [
//	  {"method": "POST", "path": "/url", "body": {"url": "https://shop.example/login"}},
//	  {"name": "user", "method": "POST", "path": "/element", "body": {"using": "css selector", "value": "#user"}},
//	  {"method": "POST", "path": "/element/{user}/value", "body": {"text": "ada"}},
//	  {"method": "POST", "path": "/execute/sync", "body": {"script": "…", "args": [{"$ref": "user"}]}},
//	  {"name": "hello", "wait": {"element": {"using": "css selector", "value": "#welcome"}, "timeout_ms": 5000}}
//	], "stop_on_error": true}
//
//	{"results": [{"status": 200, "value": null, "took_us": 81234}, …, {"outcome": "not_run", "reason": "…"}], "ok": false}
//
// # References
//
// A reference is the name of an earlier step, or name#pointer with a JSON pointer (RFC 6901, as text: nothing in it is
// percent-encoded) into its value. In a path it is a whole segment in braces, {links#/2}, and stands for the id of the
// element, shadow root, frame or window that the value is, or for the text of a string, percent-escaped. In a body, and in the
// args of a wait, an object that is exactly {"$ref": "links#/2"} is replaced by the value, byte for byte.
//
// A reference to a step that is unknown or comes later makes the batch invalid. One that finds nothing when its turn comes is
// an "invalid argument" of the step that has it, which is then not sent. A step that refers to one that failed, or was not
// run, is not run.
//
// # Waits
//
// A wait with an element asks Find Element again and again, as long as the answer is "no such element", and has the element as
// its value. A wait with a script asks Execute Script until the value is truthy, as JavaScript has it, and has that as
// its value; a "javascript error" is asked again too, since what a script looks for may not be there yet. Every other error ends
// the wait at once and is its result. It asks at once, then every_ms after each answer, and a last time when timeout_ms is over; then
// it is a "timeout". An answer that takes longer than the timeout is waited for: a driver cannot take a command back.
//
// # What a step can come to
//
//	status < 400           the driver's answer
//	status >= 400          the driver's error, or ours: a reference found nothing, a wait timed out, the results grew too large
//	outcome "not_run"      never reached the driver: an earlier step failed, within_ms is over, or the driver is gone. reason says which
//	outcome "unknown"      the driver was lost while it ran; value is the W3C error that a single command would get
//
// A batch cannot quit its session, nor close its last window, which is the same: it is the orchestrator that ends sessions.
//
// Out of scope: who carries a batch to the driver, deadlines of whole batches, logs.
package batch

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// Limits of a batch.
const (
	MaxSteps      = 256
	MaxBody       = 16 << 20 // bytes of the request
	MaxResults    = 64 << 20 // bytes of all values together
	MaxReferences = 1024     // in all steps together
	MaxLook       = 1 << 20  // bytes of a value that a pointer can look into

	DefaultWait  = 10 * time.Second
	MaxWait      = 300 * time.Second
	MaxWithin    = time.Hour
	DefaultEvery = 50 * time.Millisecond
	MinEvery     = 10 * time.Millisecond
	MaxEvery     = 5 * time.Second
)

// Request is a batch as a client sends it.
type Request struct {
	Steps       []Step `json:"steps"`
	StopOnError *bool  `json:"stop_on_error,omitempty"` // nil: true
	WithinMS    int    `json:"within_ms,omitempty"`     // after so long no step is begun any more; 0: however long it takes
}

// Step is a command or a wait.
type Step struct {
	Name   string          `json:"name,omitempty"`   // [A-Za-z_][A-Za-z0-9_-]*, for references
	Method string          `json:"method,omitempty"` // GET, POST or DELETE
	Path   string          `json:"path,omitempty"`   // below /session/{session id}
	Body   json.RawMessage `json:"body,omitempty"`   // of a POST; absent: {}
	Wait   *Wait           `json:"wait,omitempty"`
}

// Wait is a condition: an element that is present, or a script that returns something truthy.
type Wait struct {
	Element   *Locator          `json:"element,omitempty"`
	Script    string            `json:"script,omitempty"`
	Args      []json.RawMessage `json:"args,omitempty"`       // of the script
	TimeoutMS int               `json:"timeout_ms,omitempty"` // 0: DefaultWait
	EveryMS   int               `json:"every_ms,omitempty"`   // 0: DefaultEvery
}

// Locator says which element, as the body of Find Element does.
type Locator struct {
	Using string `json:"using"` // css selector, xpath, link text, …
	Value string `json:"value"`
}

// Outcome says that a step has no answer of the driver's, and why.
type Outcome string

// Outcomes. The zero Outcome stands for an answer.
const (
	NotRun  Outcome = "not_run" // the driver never saw it
	Unknown Outcome = "unknown" // the driver may have executed it
)

// Response is what became of a batch.
type Response struct {
	Results []Result `json:"results"` // one a step, in order
	OK      bool     `json:"ok"`      // every step has a status below 400
}

// Result is what became of a step.
type Result struct {
	Status  int             `json:"status,omitempty"` // HTTP status; 0 for a step that was not run
	Value   json.RawMessage `json:"value,omitempty"`  // of the W3C envelope
	TookUS  int64           `json:"took_us,omitempty"`
	Outcome Outcome         `json:"outcome,omitempty"`
	Reason  string          `json:"reason,omitempty"` // why it was not run
}

func (r Result) ok() bool { return r.Outcome == "" && r.Status < 400 }

// Err is nil for a step that succeeded, a *[webdriver.Error] for one that failed, and another error for one that was not run.
func (r Result) Err() error {
	switch {
	case r.ok():
		return nil
	case r.Outcome == NotRun:
		return fmt.Errorf("batch: the step was not run: %s", r.Reason)
	}
	var e webdriver.Error
	if err := json.Unmarshal(r.Value, &e); err != nil || e.Code == "" {
		return &webdriver.Error{Code: webdriver.UnknownError, Message: fmt.Sprintf("a step was answered with HTTP %d without a W3C error", r.Status)}
	}
	return &e
}

// Decode decodes the value of a step that succeeded, or returns its error.
func (r Result) Decode(v any) error {
	if err := r.Err(); err != nil {
		return err
	}
	if err := json.Unmarshal(r.Value, v); err != nil {
		return fmt.Errorf("batch: value of a step: %w", err)
	}
	return nil
}

// Err is the error of the first step that did not succeed, with its place.
func (r Response) Err() error {
	for i, v := range r.Results {
		if err := v.Err(); err != nil {
			return fmt.Errorf("steps[%d]: %w", i, err)
		}
	}
	return nil
}

// Answer is the response in a W3C envelope.
func (r Response) Answer() webdriver.Answer {
	size := 64
	for _, v := range r.Results {
		size += len(v.Value) + len(v.Reason) + 128
	}
	b := append(make([]byte, 0, size), `{"value":{"results":[`...)
	for i, v := range r.Results {
		if i > 0 {
			b = append(b, ',')
		}
		b = v.append(b)
	}
	return webdriver.Answer{Status: 200, Body: fmt.Appendf(b, `],"ok":%t}}`, r.OK)}
}

// append renders the result after b. The value is copied as it is: it may be large, and was found to be JSON.
func (r Result) append(b []byte) []byte {
	value := r.Value
	r.Value = nil
	rest, _ := json.Marshal(r) // numbers and text
	if value == nil {
		return append(b, rest...)
	}
	b = append(append(b, `{"value":`...), value...)
	if len(rest) > len("{}") {
		b = append(b, ',')
	}
	return append(b, rest[1:]...)
}
