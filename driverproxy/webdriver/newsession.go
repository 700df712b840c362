package webdriver

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
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

// Offer is what some device has to offer.
type Offer struct {
	Browser  string // its browserName
	BiDi     bool   // its driver offers WebDriver BiDi
	Platform string // its platformName
}

// Matched is a candidate that some device can meet.
type Matched struct {
	Capabilities json.RawMessage
	Browser      string // of the offer that it fits
	BiDi         bool   // it asks for WebDriver BiDi
	Platform     string // that it asks for, as it writes it; empty: any
}

// Match returns the first candidate that one of the offers meets. Names are compared without case, chromium is chrome, and the
// platform any is every one. A candidate that names no browser gets Safari, or where no Safari meets it, the first browser that does.
//
// The error is an *[Error] with code [SessionNotCreated] that says of each candidate why it does not fit. Whether the browser's
// version fits is left to the caller, who knows its devices.
func (n NewSession) Match(offers []Offer) (Matched, error) {
	var reasons []string
	for i, candidate := range n.Candidates {
		m, reason := match(candidate, offers)
		if reason == "" {
			return m, nil
		}
		if len(n.Candidates) > 1 {
			reason = fmt.Sprintf("firstMatch[%d]: %s", i, reason)
		}
		reasons = append(reasons, reason)
	}
	return Matched{}, &Error{Code: SessionNotCreated, Message: "no device can meet the capabilities: " + strings.Join(reasons, "; ")}
}

// match returns the candidate with what it fits, or why it fits nothing.
func match(candidate json.RawMessage, offers []Offer) (Matched, string) {
	var c struct {
		BrowserName  *string `json:"browserName"`
		PlatformName string  `json:"platformName"`
		WebSocketURL bool    `json:"webSocketUrl"`
	}
	if err := json.Unmarshal(candidate, &c); err != nil {
		return Matched{}, "it is not a capability object"
	}
	if len(offers) == 0 {
		return Matched{}, "there is no device"
	}
	if c.BrowserName != nil {
		named := which(offers, func(o Offer) bool { return browser(o.Browser) == browser(*c.BrowserName) })
		if len(named) == 0 {
			return Matched{}, fmt.Sprintf("browserName %q: %s", *c.BrowserName, there(offers, func(o Offer) string { return strconv.Quote(o.Browser) }))
		}
		offers = named
	}
	if strings.EqualFold(c.PlatformName, "any") {
		c.PlatformName = ""
	}
	if c.PlatformName != "" {
		on := which(offers, func(o Offer) bool { return strings.EqualFold(o.Platform, c.PlatformName) })
		if len(on) == 0 {
			return Matched{}, fmt.Sprintf("platformName %q: %s", c.PlatformName, there(offers, func(o Offer) string { return o.Platform }))
		}
		offers = on
	}
	if c.WebSocketURL {
		offers = which(offers, func(o Offer) bool { return o.BiDi })
	}
	if len(offers) == 0 {
		return Matched{}, "webSocketUrl: Safari has no WebDriver BiDi, and no enrolled device that fits offers it; leave webSocketUrl out"
	}
	i := max(0, slices.IndexFunc(offers, func(o Offer) bool { return browser(o.Browser) == "safari" }))
	return Matched{Capabilities: candidate, Browser: offers[i].Browser, BiDi: c.WebSocketURL, Platform: c.PlatformName}, ""
}

func which(offers []Offer, fits func(Offer) bool) []Offer {
	return slices.DeleteFunc(slices.Clone(offers), func(o Offer) bool { return !fits(o) })
}

// browser is a browserName as it is compared.
func browser(name string) string {
	name = strings.ToLower(name)
	if name == "chromium" {
		return "chrome"
	}
	return name
}

// there says what is offered instead.
func there(offers []Offer, name func(Offer) string) string {
	var names []string
	for _, o := range offers {
		names = append(names, name(o))
	}
	slices.Sort(names)
	return "there is " + strings.Join(slices.Compact(names), ", ")
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
