package webdriver

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestParseNewSession(t *testing.T) {
	for _, test := range []struct{ name, body, options, candidates string }{
		{"empty", `{"capabilities":{}}`, ``, `[{}]`},
		{"extra members", `{"capabilities":{"x":1},"desiredCapabilities":{"a":1}}`, ``, `[{}]`},
		{"merge", `{"capabilities":{"alwaysMatch":{"browserName":"safari","b:c":null},"firstMatch":[{"platformName":"iOS"},{"b:c":{"d":1}}]}}`,
			``, `[{"browserName":"safari","platformName":"iOS"},{"b:c":{"d":1},"browserName":"safari"}]`},
		{"options always", `{"capabilities":{"alwaysMatch":{"driftstack:options":{"account":"a"},"v:x":1}}}`, `{"account":"a"}`, `[{"v:x":1}]`},
		{"options in one", `{"capabilities":{"firstMatch":[{},{"driftstack:options":{"account":"a"}}]}}`, `{"account":"a"}`, `[{},{}]`},
		{"everything", `{"capabilities":{"alwaysMatch":{"acceptInsecureCerts":true,"browserVersion":"18","pageLoadStrategy":"none",` +
			`"proxy":{"proxyType":"manual","httpProxy":"h:1","socksProxy":"s","socksVersion":5,"noProxy":["a"]},"setWindowRect":false,` +
			`"timeouts":{"script":null,"pageLoad":0,"implicit":9007199254740991},"strictFileInteractability":true,` +
			`"unhandledPromptBehavior":{"alert":"accept","default":"ignore"},"webSocketUrl":false}}}`, ``, ``},
		{"prompt as string", `{"capabilities":{"alwaysMatch":{"unhandledPromptBehavior":"dismiss and notify"}}}`, ``, ``},
		{"names differ by case", `{"CAPABILITIES":1,"capabilities":{"ALWAYSMATCH":1,"FirstMatch":2}}`, ``, `[{}]`},
		{"timeouts", `{"capabilities":{"alwaysMatch":{"timeouts":{"script":null,"pageLoad":null,"implicit":2.0,"other":"x"}}}}`, ``, ``},
		{"no timeouts", `{"capabilities":{"alwaysMatch":{"timeouts":{}}}}`, ``, ``},
		{"proxies", `{"capabilities":{"alwaysMatch":{"proxy":{"proxyType":"manual","httpProxy":"user:pass@h.example:65535","sslProxy":"[::1]:80","socksProxy":"10.0.0.1","socksVersion":5.0}}}}`, ``, ``},
		{"a version without a proxy", `{"capabilities":{"alwaysMatch":{"proxy":{"proxyType":"manual","socksVersion":4}}}}`, ``, ``},
		{"pac", `{"capabilities":{"alwaysMatch":{"proxy":{"proxyType":"pac","proxyAutoconfigUrl":"http://x"}}}}`, ``, ``},
	} {
		n, err := ParseNewSession([]byte(test.body))
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		got, err := json.Marshal(n.Candidates)
		if err != nil || (test.candidates != "" && string(got) != test.candidates) || string(n.Options) != test.options {
			t.Errorf("%s: options %s candidates %s", test.name, n.Options, got)
		}
	}
}

func TestParseNewSessionRefuses(t *testing.T) {
	always := func(member string) string { return `{"capabilities":{"alwaysMatch":{` + member + `}}}` }
	for _, test := range []struct{ body, says string }{
		{``, "JSON object"}, {`[]`, "JSON object"}, {`null`, "JSON object"}, {`{`, "JSON object"},
		{`{}`, `"capabilities"`}, {`{"capabilities":null}`, `"capabilities"`}, {`{"capabilities":[]}`, `"capabilities"`},
		{`{"desiredCapabilities":{"browserName":"safari"}}`, "before W3C"},
		{`{"capabilities":{"alwaysMatch":1}}`, "alwaysMatch"}, {`{"capabilities":{"firstMatch":{}}}`, "firstMatch"},
		{`{"capabilities":{"firstMatch":[]}}`, "firstMatch"}, {`{"capabilities":{"firstMatch":[1]}}`, "firstMatch[0]"},
		{`{"capabilities":{"firstMatch":[{},null]}}`, "firstMatch[1]"},
		{`{"capabilities":{"alwaysMatch":{"browserName":"safari"},"firstMatch":[{},{"browserName":"safari"}]}}`, "alwaysMatch and in firstMatch[1]"},
		{`{"capabilities":{"firstMatch":[{"driftstack:options":{}},{"driftstack:options":{}}]}}`, "more than one"},
		{always(`"driftstack:options":[]`), "JSON object"},
		{always(`"javascriptEnabled":true`), "vendor prefix"}, {always(`"acceptInsecureCerts":"true"`), "true or false"},
		{always(`"browserName":1`), "string"}, {always(`"platformName":{}`), "string"}, {always(`"webSocketUrl":"x"`), "true or false"},
		{always(`"pageLoadStrategy":"fast"`), "eager"}, {always(`"unhandledPromptBehavior":"shrug"`), "dismiss and notify"},
		{always(`"unhandledPromptBehavior":{"alarm":"accept"}`), "prompt type"}, {always(`"unhandledPromptBehavior":{"alert":"shrug"}`), "ignore"},
		{always(`"timeouts":1`), "JSON object"}, {always(`"timeouts":{"pageLoad":"1"}`), "whole milliseconds"}, {always(`"timeouts":{"implicit":-1}`), "whole milliseconds"},
		{always(`"timeouts":{"implicit":1.5}`), "whole milliseconds"}, {always(`"timeouts":{"implicit":[]}`), "whole milliseconds"},
		{always(`"timeouts":{"script":9007199254740992}`), "whole milliseconds"},
		{always(`"proxy":{}`), "proxyType"}, {always(`"proxy":{"proxyType":"magic"}`), "proxyType"}, {always(`"proxy":{"proxyType":"pac"}`), "proxyAutoconfigUrl"},
		{always(`"proxy":{"proxyType":"manual","httpProxy":"http://x/"}`), "host:port"}, {always(`"proxy":{"proxyType":"manual","socksProxy":"x"}`), "needs \"socksVersion\""},
		{always(`"proxy":{"proxyType":"manual","httpProxy":""}`), "host:port"}, {always(`"proxy":{"proxyType":"manual","httpProxy":"h:"}`), "host:port"},
		{always(`"proxy":{"proxyType":"manual","httpProxy":"h:65536"}`), "host:port"}, {always(`"proxy":{"proxyType":"manual","httpProxy":"h:-1"}`), "host:port"},
		{always(`"proxy":{"proxyType":"manual","httpProxy":"h?x"}`), "host:port"}, {always(`"proxy":{"proxyType":"manual","httpProxy":"h#"}`), "host:port"},
		{always(`"proxy":{"proxyType":"manual","httpProxy":"h h"}`), "host:port"}, {always(`"proxy":{"proxyType":"manual","httpProxy":"http://h"}`), "host:port"},
		{`{"Capabilities":{}}`, `"capabilities"`}, {always(`"BrowserName":"safari"`), "vendor prefix"}, {always(`"proxy":{"PROXYTYPE":"system"}`), "proxyType"},
		{always(`"proxy":{"proxyType":"manual","socksProxy":"x","socksVersion":null}`), "255"},
		{always(`"proxy":{"proxyType":"manual","socksProxy":"x","socksVersion":256}`), "255"}, {always(`"proxy":{"proxyType":"direct","ftpProxy":"x"}`), "does not know"},
		{always(`"proxy":{"proxyType":"manual","noProxy":"x"}`), "array"},
	} {
		_, err := ParseNewSession([]byte(test.body))
		var e *Error
		if !errors.As(err, &e) || e.Code != InvalidArgument || !strings.Contains(e.Message, test.says) {
			t.Errorf("%s: %v, want an invalid argument that says %q", test.body, err, test.says)
		}
	}
}

func TestMatching(t *testing.T) {
	for _, test := range []struct{ first, want, says string }{
		{`[{}]`, `{}`, ``},
		{`[{"browserName":"safari","platformName":"ios"}]`, `{"browserName":"safari","platformName":"ios"}`, ``},
		{`[{"browserName":"chrome"},{"browserName":"Safari"}]`, `{"browserName":"Safari"}`, ``},
		{`[{"platformName":"ANY"}]`, `{"platformName":"ANY"}`, ``},
		{`[{"webSocketUrl":false}]`, `{"webSocketUrl":false}`, ``},
		{`[{"webSocketUrl":true}]`, ``, "no WebDriver BiDi"},
		{`[{"browserName":"chrome"},{"platformName":"android"}]`, ``, `firstMatch[1]: platformName "android"`},
	} {
		n, err := ParseNewSession([]byte(`{"capabilities":{"firstMatch":` + test.first + `}}`))
		if err != nil {
			t.Fatal(err)
		}
		m, err := n.Match(safariOnly())
		got := m.Capabilities
		var e *Error
		switch {
		case test.says == "" && (err != nil || string(got) != test.want):
			t.Errorf("%s: %s %v, want %s", test.first, got, err, test.want)
		case test.says != "" && (!errors.As(err, &e) || e.Code != SessionNotCreated || !strings.Contains(e.Message, test.says)):
			t.Errorf("%s: %v, want session not created that says %q", test.first, err, test.says)
		}
	}
}

func safariOnly() []Offer { return []Offer{{Browser: "safari", Platform: "iOS"}} }

func TestMatchingOffers(t *testing.T) {
	chrome := Offer{Browser: "chrome", BiDi: true, Platform: "linux"}
	both := []Offer{chrome, {Browser: "safari", Platform: "iOS"}}
	for _, test := range []struct {
		first, browser string
		offers         []Offer
		bidi           bool
		says           string
	}{
		{`[{}]`, "safari", both, false, ``},
		{`[{}]`, "chrome", []Offer{chrome}, false, ``},
		{`[{"webSocketUrl":true}]`, "chrome", both, true, ``},
		{`[{"webSocketUrl":true}]`, "Safari", []Offer{chrome, {Browser: "Safari", BiDi: true}}, true, ``},
		{`[{"browserName":"Chromium"}]`, "chrome", both, false, ``},
		{`[{"platformName":"Linux"}]`, "chrome", both, false, ``},
		{`[{"platformName":"iOS","webSocketUrl":true},{"browserName":"safari","platformName":"linux"},{"platformName":"any"}]`, "safari", both, false, ``},
		{`[{"browserName":"safari","platformName":"linux"}]`, "", both, false, `platformName "linux": there is iOS`},
		{`[{"platformName":"mac"}]`, "", both, false, `platformName "mac": there is iOS, linux`},
		{`[{"platformName":"iOS","webSocketUrl":true}]`, "", both, false, "no enrolled device that fits offers it"},
		{`[{"browserName":"chrome","webSocketUrl":true}]`, "chrome", both, true, ``},
		{`[{"browserName":"safari","webSocketUrl":true},{"browserName":"safari"}]`, "safari", both, false, ``},
		{`[{"browserName":"firefox"},{"webSocketUrl":true},{}]`, "chrome", both, true, ``},
		{`[{"browserName":"safari","webSocketUrl":true}]`, "", both, false, "Safari has no WebDriver BiDi"},
		{`[{"browserName":"chrome","webSocketUrl":true}]`, "", []Offer{{Browser: "chrome"}, {Browser: "safari"}}, false, "no enrolled device that fits offers it"},
		{`[{"browserName":"firefox"}]`, "", both, false, `there is "chrome", "safari"`},
		{`[{"browserName":"firefox"}]`, "", nil, false, `there is no device`},
		{`[{}]`, "", nil, false, `there is no device`},
	} {
		n, err := ParseNewSession([]byte(`{"capabilities":{"firstMatch":` + test.first + `}}`))
		if err != nil {
			t.Fatal(err)
		}
		m, err := n.Match(test.offers)
		var e *Error
		switch {
		case test.says == "" && (err != nil || m.Browser != test.browser || m.BiDi != test.bidi):
			t.Errorf("%s of %v: %+v %v, want %s", test.first, test.offers, m, err, test.browser)
		case test.says != "" && (!errors.As(err, &e) || e.Code != SessionNotCreated || !strings.Contains(e.Message, test.says)):
			t.Errorf("%s of %v: %v, want session not created that says %q", test.first, test.offers, err, test.says)
		}
	}
}

func FuzzParseNewSession(f *testing.F) {
	f.Add([]byte(`{"capabilities":{"alwaysMatch":{"driftstack:options":{"a":1}},"firstMatch":[{"browserName":"safari"},{"timeouts":{"script":1}}]}}`))
	f.Add([]byte(`{"capabilities":{"alwaysMatch":{"proxy":{"proxyType":"manual"},"unhandledPromptBehavior":{"alert":"accept"}}}}`))
	f.Add([]byte(`{"desiredCapabilities":{}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		n, err := ParseNewSession(body)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Code != InvalidArgument || !json.Valid(e.Answer().Body) {
				t.Fatalf("error %v is no W3C invalid argument", err)
			}
			return
		}
		if len(n.Candidates) == 0 || (n.Options != nil && !json.Valid(n.Options)) {
			t.Fatalf("%+v", n)
		}
		for _, c := range n.Candidates {
			if !json.Valid(c) || bytes.Contains(c, []byte(`"`+OptionsName+`":`)) && json.Unmarshal(c, &map[string]json.RawMessage{}) != nil {
				t.Fatalf("candidate %s", c)
			}
			again, err := ParseNewSession([]byte(`{"capabilities":{"alwaysMatch":` + string(c) + `}}`))
			if err != nil || again.Options != nil {
				t.Fatalf("candidate %s does not stand on its own: %v", c, err)
			}
		}
		if _, err := n.Match(append(safariOnly(), Offer{Browser: "chrome", BiDi: true, Platform: "linux"})); err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Code != SessionNotCreated {
				t.Fatalf("Match: %v", err)
			}
		}
	})
}

func FuzzMatch(f *testing.F) {
	f.Add("POST", "/url")
	f.Add("GET", "/element/1/attribute/a")
	f.Fuzz(func(t *testing.T, method, path string) {
		r, ok := Match(method, path)
		if ok != (r != RouteUnknown) || (ok && !slices.Contains(Methods(path), method)) {
			t.Fatalf("Match = %v %v", r, ok)
		}
		if known := r.String(); ok && (len(path) > 40 && strings.Contains(known, path)) {
			t.Fatalf("%q says what was asked", known)
		}
		_ = Command{Method: method, Path: path}.Validate()
	})
}
