package batch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// template is a text with holes that values go into.
type template struct {
	text  []byte
	holes []hole // in order
}

type hole struct {
	from, to int // in the text
	ref      reference
}

// reference points at the value of an earlier step, or into it.
type reference struct {
	text    string // as it was written
	step    int
	pointer []string // member names and indices; none: the whole value
}

// reference reads "name" or "name#/json/pointer".
func (c *compiler) reference(text string) (r reference, err error) {
	name, pointer, _ := strings.Cut(text, "#")
	step, known := c.named[name]
	switch {
	case !isName(name):
		return r, fmt.Errorf("%q is no reference: it is the name of an earlier step, or name#/json/pointer", text)
	case !known && c.comes(name):
		return r, fmt.Errorf("it refers to %q, which is not an earlier step", name)
	case !known:
		return r, fmt.Errorf("it refers to %q, and no step has that name", name)
	}
	if c.references++; c.references > MaxReferences {
		return r, fmt.Errorf("a batch has at most %d references", MaxReferences)
	}
	r = reference{text: text, step: step}
	r.pointer, err = tokens(pointer)
	return r, err
}

func (c *compiler) comes(name string) bool {
	for _, s := range c.steps {
		if s.Name == name {
			return true
		}
	}
	return false
}

// tokens takes a JSON pointer apart (RFC 6901, section 4).
func tokens(pointer string) (list []string, err error) {
	if pointer == "" {
		return nil, nil
	}
	if pointer[0] != '/' {
		return nil, fmt.Errorf("%q is no JSON pointer: it begins with a slash", pointer)
	}
	for t := range strings.SplitSeq(pointer[1:], "/") {
		plain := strings.NewReplacer("~0", "", "~1", "").Replace(t)
		if strings.Contains(plain, "~") {
			return nil, fmt.Errorf("%q is no JSON pointer: write ~0 for ~ and ~1 for /", pointer)
		}
		list = append(list, strings.NewReplacer("~0", "~", "~1", "/").Replace(t))
	}
	return list, nil
}

// path finds the references of a path, each a whole segment in braces.
func (c *compiler) path(p string) (template, error) {
	t := template{text: []byte(p)}
	for at := 0; ; {
		brace := strings.IndexAny(p[at:], "{}")
		if brace < 0 {
			return t, nil
		}
		from := at + brace
		length := strings.IndexByte(p[from:], '}') + 1
		at = from + length
		if length <= 1 || from == 0 || p[from-1] != '/' || at < len(p) && p[at] != '/' {
			return t, errors.New("in a path, braces are for a reference, which is a whole segment: /element/{name}/click; write %7B and %7D for others")
		}
		ref, err := c.reference(p[from+1 : at-1])
		if err != nil {
			return t, err
		}
		t.holes = append(t.holes, hole{from, at, ref})
	}
}

// refObject is {"$ref": "…"}. It is looked for in JSON only, where a match is always a whole object: if its first brace were part
// of a string, the quote after it would end that string, and $ref could not follow. An object whose key is spelled otherwise
// ("\u0024ref") is the same JSON and no reference.
var refObject = regexp.MustCompile(`\{\s*"\$ref"\s*:\s*("(?:[^"\\]|\\.)*")\s*\}`)

// body finds the references of a body.
func (c *compiler) body(b []byte) (template, error) {
	t := template{text: b}
	if !json.Valid(b) {
		return t, errors.New("its body is no JSON")
	}
	if !bytes.Contains(b, []byte(`"$ref"`)) {
		return t, nil
	}
	for _, at := range refObject.FindAllSubmatchIndex(b, MaxReferences+1) {
		var text string
		if err := json.Unmarshal(b[at[2]:at[3]], &text); err != nil {
			return t, errors.New("its body is no JSON")
		}
		ref, err := c.reference(text)
		if err != nil {
			return t, err
		}
		t.holes = append(t.holes, hole{at[0], at[1], ref})
	}
	return t, nil
}

// with is the text with the same in all holes.
func (t template) with(v string) string {
	b, _ := t.fill(func(reference) ([]byte, error) { return []byte(v), nil }) // it is no error, and short
	return string(b)
}

// fill puts values into the holes.
func (t template) fill(value func(reference) ([]byte, error)) ([]byte, error) {
	if len(t.holes) == 0 {
		return t.text, nil
	}
	size, values := len(t.text), make([][]byte, len(t.holes))
	for i, h := range t.holes {
		v, err := value(h.ref)
		if err != nil {
			return nil, fmt.Errorf("reference %q: %w", h.ref.text, err)
		}
		if values[i], size = v, size+len(v); size > MaxResults {
			return nil, fmt.Errorf("its references stand for more than %d MiB", MaxResults>>20)
		}
	}
	b, at := make([]byte, 0, size), 0
	for i, h := range t.holes {
		b = append(append(b, t.text[at:h.from]...), values[i]...)
		at = h.to
	}
	return append(b, t.text[at:]...), nil
}

// maxLooked bounds what the pointers of one step look through: each token of a pointer reads all that is below it.
const maxLooked = 64 << 20

// find is the value that a reference points at; looked counts what the references of a step have looked through.
func (r reference) find(results []Result, looked *int) (json.RawMessage, error) {
	v := results[r.step].Value
	if len(r.pointer) > 0 && len(v) > MaxLook {
		return nil, fmt.Errorf("the value has %d bytes, and a pointer looks into at most %d", len(v), MaxLook)
	}
	for _, token := range r.pointer {
		if *looked += len(v); *looked > maxLooked {
			return nil, fmt.Errorf("the step's pointers look through more than %d MiB", maxLooked>>20)
		}
		if v = child(v, token); v == nil {
			return nil, errors.New("there is nothing at the pointer")
		}
	}
	return v, nil
}

// child is a member of an object or an item of an array, nil if there is none.
func child(v json.RawMessage, token string) json.RawMessage {
	var members map[string]json.RawMessage
	var items []json.RawMessage
	switch {
	case bytes.HasPrefix(v, []byte("{")) && json.Unmarshal(v, &members) == nil:
		return members[token]
	case bytes.HasPrefix(v, []byte("[")) && json.Unmarshal(v, &items) == nil:
		i, err := strconv.ParseUint(token, 10, 31)
		if err == nil && int(i) < len(items) && strconv.FormatUint(i, 10) == token { // no 01, no +1
			return items[i]
		}
	}
	return nil
}

// segment is the value as it stands in a path.
func (r reference) segment(results []Result, looked *int) ([]byte, error) {
	v, err := r.find(results, looked)
	if err != nil {
		return nil, err
	}
	var text string
	if json.Unmarshal(v, &text) == nil && v[0] == '"' {
		return []byte(url.PathEscape(text)), nil
	}
	var members map[string]json.RawMessage
	if len(v) <= MaxLook && json.Unmarshal(v, &members) == nil {
		for _, key := range references() {
			if json.Unmarshal(members[key], &text) == nil && text != "" {
				return []byte(url.PathEscape(text)), nil
			}
		}
	}
	return nil, errors.New("a path takes an element, shadow root, frame, window or text, and the value is none")
}

// references are the keys of W3C WebDriver's web references.
func references() [4]string {
	return [...]string{
		"element-6066-11e4-a52e-4f735466cecf", "shadow-6066-11e4-a52e-4f735466cecf",
		"frame-075b-4da1-b6ba-e579c2d3230a", "window-fcc6-11e5-b4f8-330a88ab9d7f",
	}
}

// waitsFor says why the step cannot run: something it refers to has no value. Empty: it can.
func (b *Batch) waitsFor(i int, results []Result) string {
	for _, holes := range [][]hole{b.steps[i].path.holes, b.steps[i].body.holes} {
		for _, h := range holes {
			switch r := results[h.ref.step]; {
			case r.ok():
			case r.Outcome == NotRun:
				return "it refers to " + b.steps[h.ref.step].label + ", which was not run"
			default:
				return "it refers to " + b.steps[h.ref.step].label + ", which failed"
			}
		}
	}
	return ""
}

// Command is the command of step i, or what its wait asks, with the values that its references have in results. The error is
// an "invalid argument".
func (b *Batch) Command(i int, results []Result) (webdriver.Command, *webdriver.Error) {
	s := b.steps[i]
	if why := b.waitsFor(i, results); why != "" {
		return webdriver.Command{}, invalid("%s: %s", s.label, why)
	}
	looked := 0
	path, err := s.path.fill(func(r reference) ([]byte, error) { return r.segment(results, &looked) })
	if err != nil {
		return webdriver.Command{}, invalid("%s: %v", s.label, err)
	}
	body, err := s.body.fill(func(r reference) ([]byte, error) { return r.find(results, &looked) })
	if err != nil {
		return webdriver.Command{}, invalid("%s: %v", s.label, err)
	}
	c := webdriver.Command{Method: s.method, Path: string(path), Body: body}
	if len(s.path.holes) > 0 {
		if route, _ := webdriver.Match(c.Method, c.Path); route != s.route || c.Validate() != nil {
			return webdriver.Command{}, invalid("%s: what its path refers to cannot be part of a path", s.label)
		}
	}
	if len(s.body.holes) > 0 && !json.Valid(body) { // each part is JSON, but Go's decoder takes 10,000 levels only
		return webdriver.Command{}, invalid("%s: what its body refers to is nested too deeply", s.label)
	}
	return c, nil
}
