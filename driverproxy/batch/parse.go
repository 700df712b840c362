package batch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// Batch is a request that was found to be sound. Nothing changes it any more.
type Batch struct {
	request Request
	steps   []step
	stop    bool          // on the first error
	within  time.Duration // 0: for ever
}

// step is a Step made ready to run. A wait is the command that it asks again and again.
type step struct {
	label  string // for errors, as in: steps[1] "user"
	method string
	route  webdriver.Route
	path   template
	body   template
	wait   *Wait         // nil for a command
	limit  time.Duration // of the wait
	every  time.Duration
}

// Parse reads a batch and checks everything that can be known before it runs. The error, "invalid argument", names the step.
func Parse(b []byte) (*Batch, *webdriver.Error) {
	if len(b) > MaxBody {
		return nil, invalid("a batch is at most %d MiB: send what is large as a command of its own", MaxBody>>20)
	}
	if !utf8.Valid(b) {
		return nil, invalid("a batch is JSON, in UTF-8")
	}
	var list struct {
		Steps       []json.RawMessage `json:"steps"`
		StopOnError *bool             `json:"stop_on_error"`
		WithinMS    int               `json:"within_ms"`
	}
	if err := strict(b, &list); err != nil {
		return nil, invalid(`a batch is {"steps": […], "stop_on_error": true}: %v`, err)
	}
	if err := count(len(list.Steps)); err != nil {
		return nil, err
	}
	r := Request{Steps: make([]Step, len(list.Steps)), StopOnError: list.StopOnError, WithinMS: list.WithinMS}
	for i, s := range list.Steps {
		if err := strict(s, &r.Steps[i]); err != nil {
			return nil, invalid("%s: %v", label(i, r.Steps[i].Name), err)
		}
	}
	return Compile(r)
}

// strict decodes one JSON value with known fields only.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	var mismatch *json.UnmarshalTypeError
	switch {
	case errors.As(err, &mismatch) && mismatch.Field != "":
		return fmt.Errorf("%q cannot be a %s", mismatch.Field, mismatch.Value)
	case errors.As(err, &mismatch):
		return fmt.Errorf("it cannot be a %s", mismatch.Value)
	case errors.Is(err, io.EOF):
		return errors.New("it is empty")
	case err != nil:
		return errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON object")
	}
	return webdriver.ExactNames(b, v)
}

func count(steps int) *webdriver.Error {
	switch {
	case steps == 0:
		return invalid("a batch has at least one step")
	case steps > MaxSteps:
		return invalid("a batch has at most %d steps, and this one %d: make it several", MaxSteps, steps)
	}
	return nil
}

// Compile checks a request, as Parse does.
func Compile(r Request) (*Batch, *webdriver.Error) {
	if err := count(len(r.Steps)); err != nil {
		return nil, err
	}
	r.Steps = slices.Clone(r.Steps)
	within, err := span("within_ms", r.WithinMS, 0, time.Millisecond, MaxWithin)
	if err != nil {
		return nil, invalid("%v", err)
	}
	b := &Batch{request: r, stop: r.StopOnError == nil || *r.StopOnError, within: within}
	c := compiler{steps: r.Steps, named: map[string]int{}}
	for i := range r.Steps {
		s, err := c.step(i)
		if err != nil {
			return nil, invalid("%s: %v", label(i, r.Steps[i].Name), err)
		}
		s.label = label(i, r.Steps[i].Name)
		b.steps = append(b.steps, s)
	}
	return b, nil
}

// Request is what the batch was made of.
func (b *Batch) Request() Request { return b.request }

// Len is the number of steps.
func (b *Batch) Len() int { return len(b.steps) }

// Route is the endpoint of step i; for a wait, of what it asks.
func (b *Batch) Route(i int) webdriver.Route { return b.steps[i].route }

// Size is how many bytes the body of step i has, as it was written.
func (b *Batch) Size(i int) int { return len(b.steps[i].body.text) }

// Waits is how long all its waits may take together.
func (b *Batch) Waits() time.Duration {
	var sum time.Duration
	for _, s := range b.steps {
		sum += s.limit
	}
	return sum
}

func invalid(format string, args ...any) *webdriver.Error {
	return &webdriver.Error{Code: webdriver.InvalidArgument, Message: fmt.Sprintf(format, args...)}
}

func label(i int, name string) string {
	if name == "" {
		return fmt.Sprintf("steps[%d]", i)
	}
	return fmt.Sprintf("steps[%d] %q", i, name)
}

// compiler knows what the steps before the one it looks at are called.
type compiler struct {
	steps      []Step
	named      map[string]int
	references int
}

func (c *compiler) step(i int) (step, error) {
	s := &c.steps[i]
	if bytes.Equal(s.Body, []byte("null")) {
		s.Body = nil
	}
	command := s.Method != "" || s.Path != "" || s.Body != nil
	var made step
	var err error
	switch {
	case s.Wait != nil && command:
		return made, errors.New("it has a command and a wait: make them two steps")
	case s.Wait != nil:
		made, err = c.wait(*s.Wait)
	case command:
		made, err = c.command(*s)
	default:
		return made, errors.New("it has neither a command (method, path, body) nor a wait")
	}
	if err != nil || s.Name == "" {
		return made, err
	}
	if !isName(s.Name) {
		return made, fmt.Errorf("a name begins with a letter or _, has letters, digits, _ and -, and at most %d of them", maxName)
	}
	if earlier, taken := c.named[s.Name]; taken {
		return made, fmt.Errorf("steps[%d] has that name already", earlier)
	}
	c.named[s.Name] = i // only now: a step cannot refer to itself
	return made, nil
}

// maxName bounds names: results say which step they did not wait for.
const maxName = 64

func isName(s string) bool {
	if len(s) > maxName {
		return false
	}
	for i, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c != '-' && (c < '0' || c > '9')) {
			return false
		}
	}
	return s != ""
}

func (c *compiler) command(s Step) (made step, err error) {
	made = step{method: s.Method}
	if made.path, err = c.path(s.Path); err != nil {
		return made, err
	}
	plain := made.path.with("x")
	if err := (webdriver.Command{Method: s.Method, Path: plain}).Validate(); err != nil {
		return made, errors.New(err.Message)
	}
	var known bool
	made.route, known = webdriver.Match(s.Method, plain)
	switch {
	case !known && len(webdriver.Methods(plain)) > 0:
		return made, fmt.Errorf("the path %q does not take %s", s.Path, s.Method)
	case !known:
		return made, fmt.Errorf("there is no command %s %s", s.Method, s.Path)
	case made.route == webdriver.RouteDeleteSession:
		return made, errors.New("a batch cannot quit its session: quit when the batch is done, by DELETE of the session")
	case made.route == webdriver.RouteBatch:
		return made, errors.New("a batch cannot have a batch in it: put its steps here")
	case s.Method != http.MethodPost && s.Body != nil:
		return made, fmt.Errorf("a %s has no body", s.Method)
	case s.Method != http.MethodPost:
		return made, nil
	}
	body := s.Body
	if body == nil {
		body = json.RawMessage("{}") // what every POST of W3C WebDriver has at least
	}
	made.body, err = c.body(body)
	return made, err
}

func (c *compiler) wait(w Wait) (made step, err error) {
	switch {
	case (w.Element != nil) == (w.Script != ""):
		return made, errors.New(`a wait has either "element" or "script"`)
	case w.Element != nil && w.Args != nil:
		return made, errors.New(`"args" go with a script`)
	}
	made = step{method: http.MethodPost, wait: &w}
	if made.limit, err = span("timeout_ms", w.TimeoutMS, DefaultWait, time.Millisecond, MaxWait); err != nil {
		return made, err
	}
	if made.every, err = span("every_ms", w.EveryMS, DefaultEvery, MinEvery, MaxEvery); err != nil {
		return made, err
	}
	made.route, made.path.text = webdriver.RouteFindElement, []byte("/element")
	var asks any = w.Element
	if w.Element == nil {
		made.route, made.path.text = webdriver.RouteExecuteScript, []byte("/execute/sync")
		asks = struct {
			Script string            `json:"script"`
			Args   []json.RawMessage `json:"args"`
		}{w.Script, append([]json.RawMessage{}, w.Args...)}
	}
	body, err := json.Marshal(asks)
	if err != nil {
		return made, errors.New(`"args" are no JSON`)
	}
	made.body, err = c.body(body)
	return made, err
}

// span is a field in milliseconds as a time within its limits; 0 stands for the default.
func span(field string, ms int, without, least, most time.Duration) (time.Duration, error) {
	switch {
	case ms == 0:
		return without, nil
	case int64(ms) < least.Milliseconds() || int64(ms) > most.Milliseconds():
		return 0, fmt.Errorf("%s is between %d and %d", field, least.Milliseconds(), most.Milliseconds())
	}
	return time.Duration(ms) * time.Millisecond, nil
}
