package webdriver

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// OptionsName is the capability that carries Driftstack's own options.
const OptionsName = "driftstack:options"

// NewSession is a validated New Session request.
type NewSession struct {
	Options    json.RawMessage   // driftstack:options, a JSON object; nil when absent. Its content is not looked at here.
	Candidates []json.RawMessage // merged capability objects, in order of preference; never empty
}

// ParseNewSession does the capability processing of WebDriver, section 7.2: it validates alwaysMatch and each
// firstMatch, refuses collisions, and merges. driftstack:options may be in alwaysMatch or in one firstMatch, applies to
// the whole request, and is in no candidate. Every error is an *[Error] with code [InvalidArgument].
func ParseNewSession(body []byte) (NewSession, error) {
	var request map[string]json.RawMessage // names in it differ by case, unlike those of a struct
	if err := decodeObject(body, &request); err != nil {
		return NewSession{}, invalid("the body of New Session must be a JSON object")
	}
	if request["capabilities"] == nil && request["desiredCapabilities"] != nil {
		return NewSession{}, invalid(`"desiredCapabilities" is the protocol from before W3C WebDriver: send "capabilities" ` +
			`with "alwaysMatch" and "firstMatch" (a Selenium client of version 4 or newer does)`)
	}
	var capabilities map[string]json.RawMessage
	if err := decodeObject(request["capabilities"], &capabilities); err != nil {
		return NewSession{}, invalid(`"capabilities" must be a JSON object`)
	}
	always := map[string]json.RawMessage{}
	if raw, ok := capabilities["alwaysMatch"]; ok {
		var err error
		if always, err = validate("alwaysMatch", raw); err != nil {
			return NewSession{}, err
		}
	}
	first := []json.RawMessage{json.RawMessage("{}")}
	if raw, ok := capabilities["firstMatch"]; ok {
		first = nil
		if err := json.Unmarshal(raw, &first); err != nil || len(first) == 0 {
			return NewSession{}, invalid(`"firstMatch" must be a non-empty JSON array`)
		}
	}
	return merge(always, first)
}

func merge(always map[string]json.RawMessage, first []json.RawMessage) (NewSession, error) {
	n := NewSession{Options: always[OptionsName]}
	for i, raw := range first {
		where := fmt.Sprintf("firstMatch[%d]", i)
		one, err := validate(where, raw)
		if err != nil {
			return NewSession{}, err
		}
		for _, name := range slices.Sorted(maps.Keys(one)) {
			if _, both := always[name]; both {
				return NewSession{}, invalid("%q is in alwaysMatch and in %s: it may be in one of them", name, where)
			}
		}
		if options, ok := one[OptionsName]; ok {
			if n.Options != nil {
				return NewSession{}, invalid("%q is in more than one firstMatch: put it into alwaysMatch", OptionsName)
			}
			n.Options = options
		}
		maps.Copy(one, always)
		delete(one, OptionsName)
		candidate, err := json.Marshal(one)
		if err != nil {
			return NewSession{}, invalid("%s: %v", where, err)
		}
		n.Candidates = append(n.Candidates, candidate)
	}
	return n, nil
}

// Match returns the first candidate that Safari on a device with one of the platform names can meet; no name given
// stands for any platform. Names are compared without case. The error is an *[Error] with code [SessionNotCreated] that says
// of each candidate why it does not fit. Whether the browser's version fits is left to the caller, who knows its devices.
func (n NewSession) Match(platforms ...string) (json.RawMessage, error) {
	var reasons []string
	for i, candidate := range n.Candidates {
		reason := mismatch(candidate, platforms)
		if reason == "" {
			return candidate, nil
		}
		if len(n.Candidates) > 1 {
			reason = fmt.Sprintf("firstMatch[%d]: %s", i, reason)
		}
		reasons = append(reasons, reason)
	}
	return nil, &Error{Code: SessionNotCreated, Message: "no device can meet the capabilities: " + strings.Join(reasons, "; ")}
}

func mismatch(candidate json.RawMessage, platforms []string) string {
	var c struct {
		BrowserName  *string `json:"browserName"`
		PlatformName *string `json:"platformName"`
		WebSocketURL bool    `json:"webSocketUrl"`
	}
	if err := json.Unmarshal(candidate, &c); err != nil {
		return "it is not a capability object"
	}
	if c.WebSocketURL {
		return "webSocketUrl: Safari has no WebDriver BiDi; leave webSocketUrl out"
	}
	if c.BrowserName != nil && !strings.EqualFold(*c.BrowserName, "safari") {
		return fmt.Sprintf("browserName %q: the browser is %q", *c.BrowserName, "safari")
	}
	if c.PlatformName == nil || len(platforms) == 0 || strings.EqualFold(*c.PlatformName, "any") {
		return ""
	}
	if !slices.ContainsFunc(platforms, func(p string) bool { return strings.EqualFold(p, *c.PlatformName) }) {
		return fmt.Sprintf("platformName %q: there is %s", *c.PlatformName, strings.Join(platforms, ", "))
	}
	return ""
}

func invalid(format string, args ...any) *Error {
	return &Error{Code: InvalidArgument, Message: fmt.Sprintf(format, args...)}
}

// decodeObject decodes a JSON object: unlike encoding/json it refuses null.
func decodeObject(b []byte, v any) error {
	b = bytes.TrimLeft(b, " \t\r\n")
	if len(b) == 0 || b[0] != '{' {
		return fmt.Errorf("not a JSON object")
	}
	return json.Unmarshal(b, v)
}
