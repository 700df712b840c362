package webdriver

import (
	"encoding/json"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// validate checks one capability object (section 7.2, "validate capabilities") and drops members that are null.
func validate(where string, raw json.RawMessage) (map[string]json.RawMessage, error) {
	var in map[string]json.RawMessage
	if err := decodeObject(raw, &in); err != nil {
		return nil, invalid("%s must be a JSON object", where)
	}
	out := make(map[string]json.RawMessage, len(in))
	for name, value := range in {
		if string(value) == "null" {
			continue
		}
		if problem := check(name, value); problem != "" {
			return nil, invalid("%s: %q %s", where, name, problem)
		}
		out[name] = value
	}
	return out, nil
}

// check returns what is wrong with a capability, or "".
func check(name string, value json.RawMessage) string {
	switch name {
	case "acceptInsecureCerts", "setWindowRect", "strictFileInteractability", "webSocketUrl":
		return want[bool](value, "must be true or false")
	case "browserName", "browserVersion", "platformName", "userAgent":
		return want[string](value, "must be a string")
	case "pageLoadStrategy":
		return oneOf(value, "none", "eager", "normal")
	case "proxy":
		return checkProxy(value)
	case "timeouts":
		return checkTimeouts(value)
	case "unhandledPromptBehavior":
		return checkPrompts(value)
	case OptionsName:
		if decodeObject(value, &map[string]json.RawMessage{}) != nil {
			return "must be a JSON object"
		}
		return ""
	}
	if strings.Contains(name, ":") { // an extension capability: its driver knows it
		return ""
	}
	return "is neither a standard capability nor one with a vendor prefix (as in \"vendor:name\")"
}

func want[T any](value json.RawMessage, otherwise string) string {
	var v T
	if json.Unmarshal(value, &v) != nil {
		return otherwise
	}
	return ""
}

func oneOf(value json.RawMessage, allowed ...string) string {
	var s string
	if json.Unmarshal(value, &s) != nil || !slices.Contains(allowed, s) {
		return `must be one of "` + strings.Join(allowed, `", "`) + `"`
	}
	return ""
}

func checkPrompts(value json.RawMessage) string {
	handlers := []string{"dismiss", "accept", "dismiss and notify", "accept and notify", "ignore"}
	var byType map[string]json.RawMessage
	if decodeObject(value, &byType) != nil {
		return oneOf(value, handlers...)
	}
	for kind, handler := range byType {
		if !slices.Contains([]string{"alert", "beforeUnload", "confirm", "default", "file", "prompt"}, kind) {
			return `has a member that is no prompt type`
		}
		if problem := oneOf(handler, handlers...); problem != "" {
			return problem
		}
	}
	return ""
}

// maxSafeInteger is the largest timeout of the specification, 2^53-1 ms.
const maxSafeInteger = 1<<53 - 1

func checkTimeouts(value json.RawMessage) string {
	var timeouts map[string]json.RawMessage
	if decodeObject(value, &timeouts) != nil {
		return "must be a JSON object"
	}
	for _, name := range []string{"script", "pageLoad", "implicit"} { // others mean nothing, and are no error
		ms, ok := timeouts[name]
		if !ok || string(ms) == "null" { // no limit
			continue
		}
		if !whole(ms, maxSafeInteger) {
			return "must hold whole milliseconds from 0 to 2^53-1, or null for no limit"
		}
	}
	return ""
}

// whole says whether a value is a whole number from 0 to most; 5.0 is one.
func whole(value json.RawMessage, most float64) bool {
	var n *float64
	return json.Unmarshal(value, &n) == nil && n != nil && *n >= 0 && *n <= most && *n == math.Trunc(*n)
}

func checkProxy(value json.RawMessage) string {
	var proxy map[string]json.RawMessage
	if decodeObject(value, &proxy) != nil {
		return "must be a JSON object"
	}
	var kind string
	if json.Unmarshal(proxy["proxyType"], &kind) != nil ||
		!slices.Contains([]string{"pac", "direct", "autodetect", "system", "manual"}, kind) {
		return `needs a "proxyType" that is one of "pac", "direct", "autodetect", "system", "manual"`
	}
	for name, v := range proxy {
		if problem := checkProxyMember(name, v); problem != "" {
			return problem
		}
	}
	if _, ok := proxy["proxyAutoconfigUrl"]; kind == "pac" && !ok {
		return `of type "pac" needs "proxyAutoconfigUrl"`
	}
	_, socks := proxy["socksProxy"]
	if _, version := proxy["socksVersion"]; socks && !version {
		return `with "socksProxy" needs "socksVersion"`
	}
	return ""
}

func checkProxyMember(name string, value json.RawMessage) string {
	switch name {
	case "proxyType":
		return ""
	case "proxyAutoconfigUrl":
		return want[string](value, `needs a string as "proxyAutoconfigUrl"`)
	case "httpProxy", "sslProxy", "socksProxy":
		var host string
		if json.Unmarshal(value, &host) != nil || !hostAndPort(host) {
			return `needs host or host:port as "` + name + `"`
		}
		return ""
	case "noProxy":
		return want[[]string](value, `needs an array of strings as "noProxy"`)
	case "socksVersion":
		if !whole(value, 255) {
			return `needs a whole number from 0 to 255 as "socksVersion"`
		}
		return ""
	}
	return "has a member that the specification does not know"
}

// hostAndPort says whether s is a "host and optional port" of the specification; it may carry credentials.
func hostAndPort(s string) bool {
	u, err := url.Parse("//" + s)
	if err != nil || u.Hostname() == "" || u.Path != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(s, "#") {
		return false
	}
	if u.Port() == "" {
		return !strings.HasSuffix(u.Host, ":")
	}
	_, err = strconv.ParseUint(u.Port(), 10, 16)
	return err == nil
}
