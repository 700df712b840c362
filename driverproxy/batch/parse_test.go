package batch_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/webdriver"
)

func parse(t *testing.T, text string) *batch.Batch {
	t.Helper()
	b, err := batch.Parse([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return b
}

const find = `{"name":"a","method":"POST","path":"/element","body":{"using":"css selector","value":"#a"}}`

func TestParse(t *testing.T) {
	b := parse(t, `{"steps":[`+find+`,
		{"method":"POST","path":"/element/{a}/click"},
		{"method":"GET","path":"/element/{a}/attribute/href","body":null},
		{"method":"POST","path":"/execute/sync","body":{"script":"","args":[{"$ref":"a"}, {"$ref" : "a#/x~1y/0" }]}},
		{"wait":{"element":{"using":"css selector","value":"#b"}}},
		{"wait":{"script":"return arguments[0]","args":[{"$ref":"a"}],"timeout_ms":300000,"every_ms":5000}}]}`)
	want := []webdriver.Route{webdriver.RouteFindElement, webdriver.RouteElementClick, webdriver.RouteGetElementAttribute,
		webdriver.RouteExecuteScript, webdriver.RouteFindElement, webdriver.RouteExecuteScript}
	if b.Len() != len(want) || b.Waits() != 310*time.Second {
		t.Errorf("%d steps that wait %v", b.Len(), b.Waits())
	}
	for i, r := range want {
		if b.Route(i) != r {
			t.Errorf("steps[%d] is %v, want %v", i, b.Route(i), r)
		}
	}
	if b.Size(0) != len(`{"using":"css selector","value":"#a"}`) || b.Size(1) != len(`{}`) || b.Size(2) != 0 {
		t.Errorf("bodies of %d, %d and %d bytes", b.Size(0), b.Size(1), b.Size(2))
	}
}

// A batch that cannot be run whole is refused whole, and the error says where and why.
func TestRefused(t *testing.T) {
	many := strings.Repeat(`{"method":"GET","path":"/url"},`, batch.MaxSteps)
	refs := strings.Repeat(`{"$ref":"a"},`, batch.MaxReferences)
	for name, c := range map[string]struct{ text, says string }{
		"no JSON":                {`{`, "steps"},
		"nothing":                {``, "empty"},
		"no object":              {`[]`, "cannot be a array"},
		"no UTF-8":               {"{\"steps\":[{\"path\":\"\xff\"}]}", "UTF-8"},
		"more than an object":    {`{"steps":[` + find + `]}}`, "follows"},
		"unknown field":          {`{"steps":[` + find + `],"colour":"red"}`, "colour"},
		"name in another case":   {`{"Steps":[` + find + `]}`, `unknown field "Steps"`},
		"in another case below":  {`{"steps":[{"wait":{"element":{"using":"xpath","Value":"/a"}}}]}`, `unknown field "Value"`},
		"of a step":              {`{"steps":[{"METHOD":"GET","path":"/url"}]}`, `steps[0]: unknown field "METHOD"`},
		"no steps":               {`{}`, "at least one"},
		"null":                   {`null`, "at least one"},
		"empty steps":            {`{"steps":[]}`, "at least one"},
		"too many":               {`{"steps":[` + many + find + `]}`, "at most 256 steps, and this one 257"},
		"too large":              {strings.Repeat(" ", batch.MaxBody) + `{}`, "16 MiB"},
		"null step":              {`{"steps":[null]}`, "steps[0]: it has neither"},
		"unknown field of step":  {`{"steps":[` + find + `,{"name":"b","method":"GET","path":"/url","colour":1}]}`, `steps[1] "b": unknown field "colour"`},
		"unknown field of wait":  {`{"steps":[{"wait":{"script":"x","colour":1}}]}`, `steps[0]: unknown field "colour"`},
		"unknown field below":    {`{"steps":[{"wait":{"element":{"using":"xpath","value":"/a","colour":1}}}]}`, `colour`},
		"wrong type":             {`{"steps":[{"wait":{"script":"x","timeout_ms":"5s"}}]}`, `steps[0]: "wait.timeout_ms" cannot be a string`},
		"name only":              {`{"steps":[{"name":"b"}]}`, `steps[0] "b": it has neither`},
		"command and wait":       {`{"steps":[{"method":"GET","path":"/url","wait":{"script":"x"}}]}`, "two steps"},
		"body and wait":          {`{"steps":[{"body":{},"wait":{"script":"x"}}]}`, "two steps"},
		"quit":                   {`{"steps":[{"method":"DELETE"}]}`, "cannot quit"},
		"quit, spelled out":      {`{"steps":[{"method":"DELETE","path":""}]}`, "cannot quit"},
		"nested":                 {`{"steps":[{"method":"POST","path":"/driftstack/batch","body":{"steps":[]}}]}`, "steps here"},
		"bad method":             {`{"steps":[{"method":"PATCH","path":"/url"}]}`, "GET, POST or DELETE"},
		"method of another path": {`{"steps":[{"method":"DELETE","path":"/url"}]}`, "does not take DELETE"},
		"unknown command":        {`{"steps":[{"method":"GET","path":"/nonsense"}]}`, "no command GET /nonsense"},
		"no path":                {`{"steps":[{"method":"POST"}]}`, `path "" does not take POST`},
		"path with a query":      {`{"steps":[{"method":"GET","path":"/url?x"}]}`, "query"},
		"path that climbs":       {`{"steps":[{"method":"GET","path":"/element/../text"}]}`, `".."`},
		"body of a GET":          {`{"steps":[{"method":"GET","path":"/url","body":{}}]}`, "a GET has no body"},
		"name twice":             {`{"steps":[` + find + `,` + find + `]}`, `steps[1] "a": steps[0] has that name`},
		"name with a space":      {`{"steps":[{"name":"a b","method":"GET","path":"/url"}]}`, "begins with a letter"},
		"name with a digit":      {`{"steps":[{"name":"1a","method":"GET","path":"/url"}]}`, "begins with a letter"},
		"unknown reference":      {`{"steps":[{"method":"POST","path":"/element/{x}/click"}]}`, `steps[0]: it refers to "x", and no step`},
		"later reference":        {`{"steps":[{"method":"POST","path":"/element/{a}/click"},` + find + `]}`, `not an earlier step`},
		"reference to itself":    {`{"steps":[{"name":"s","method":"POST","path":"/element/{s}/element"}]}`, `not an earlier step`},
		"unknown, in a body":     {`{"steps":[{"method":"POST","path":"/url","body":{"url":{"$ref":"x"}}}]}`, `"x", and no step`},
		"unknown, in args":       {`{"steps":[{"wait":{"script":"x","args":[{"$ref":"x"}]}}]}`, `"x", and no step`},
		"not a reference":        {`{"steps":[{"method":"POST","path":"/url","body":{"$ref":"#/definitions/x"}}]}`, `"#/definitions/x" is no reference`},
		"bad pointer":            {`{"steps":[` + find + `,{"method":"POST","path":"/url","body":{"$ref":"a#x"}}]}`, "begins with a slash"},
		"bad escape":             {`{"steps":[` + find + `,{"method":"POST","path":"/url","body":{"$ref":"a#/~2"}}]}`, "~1 for /"},
		"half a segment":         {`{"steps":[` + find + `,{"method":"POST","path":"/element/x{a}/click"}]}`, "whole segment"},
		"half a segment, after":  {`{"steps":[` + find + `,{"method":"POST","path":"/element/{a}x/click"}]}`, "whole segment"},
		"open brace":             {`{"steps":[` + find + `,{"method":"GET","path":"/cookie/{a"}]}`, "whole segment"},
		"closing brace":          {`{"steps":[` + find + `,{"method":"GET","path":"/cookie/a}"}]}`, "whole segment"},
		"reference as a command": {`{"steps":[` + find + `,{"method":"GET","path":"/{a}"}]}`, "no command"},
		"too many references":    {`{"steps":[` + find + `,{"method":"POST","path":"/url","body":[` + refs + `{"$ref":"a"}]}]}`, "at most 1024 references"},
		"wait for nothing":       {`{"steps":[{"wait":{}}]}`, "either"},
		"wait for both":          {`{"steps":[{"wait":{"script":"x","element":{"using":"xpath","value":"/a"}}}]}`, "either"},
		"args of an element":     {`{"steps":[{"wait":{"args":[],"element":{"using":"xpath","value":"/a"}}}]}`, "args"},
		"timeout too long":       {`{"steps":[{"wait":{"script":"x","timeout_ms":300001}}]}`, "between 1 and 300000"},
		"timeout that overflows": {`{"steps":[{"wait":{"script":"x","timeout_ms":9223372036854775807}}]}`, "between 1 and 300000"},
		"negative timeout":       {`{"steps":[{"wait":{"script":"x","timeout_ms":-1}}]}`, "between 1 and 300000"},
		"asks too often":         {`{"steps":[{"wait":{"script":"x","every_ms":9}}]}`, "between 10 and 5000"},
		"asks too seldom":        {`{"steps":[{"wait":{"script":"x","every_ms":5001}}]}`, "between 10 and 5000"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := batch.Parse([]byte(c.text))
			if err == nil || b != nil || err.Code != webdriver.InvalidArgument {
				t.Fatalf("%.200s gave %v", c.text, err)
			}
			if !strings.Contains(err.Message, c.says) {
				t.Errorf("%q does not say %q", err.Message, c.says)
			}
		})
	}
}

// What is not exactly a reference is sent as it is.
func TestNoReferences(t *testing.T) {
	for _, body := range []string{`{"$ref":1}`, `{"$ref":"a","b":1}`, `{"b":1,"$ref":"a"}`, `{"$ref":"a","$ref":"a"}`, `{"\u0024ref":"a"}`, `{"x":"{\"$ref\":\"a\"}"}`,
		`"{ \"$ref\":\"a\"}"`, `{"$REF":"a"}`, `["$ref","a"]`, `{"$ref":{"$ref":"a","b":2}}`} {
		b := parse(t, `{"steps":[`+find+`,{"method":"POST","path":"/url","body":`+body+`}]}`)
		c, err := b.Command(1, []batch.Result{{Status: 200, Value: json.RawMessage(`7`)}})
		if err != nil || string(c.Body) != body {
			t.Errorf("%s is sent as %s, %v", body, c.Body, err)
		}
	}
}

func TestReferences(t *testing.T) {
	const element = `{"element-6066-11e4-a52e-4f735466cecf":"e 1"}`
	deep := strings.Repeat("[", 6000) + strings.Repeat("]", 6000)
	for _, c := range []struct{ value, path, body, wantPath, wantBody, fails string }{
		{value: element, path: "/element/{a}/click", wantPath: "/element/e%201/click", wantBody: `{}`},
		{value: `{"shadow-6066-11e4-a52e-4f735466cecf":"s1"}`, path: "/shadow/{a}/element", wantPath: "/shadow/s1/element", wantBody: `{}`},
		{value: `[1,{"a/b":` + element + `}]`, path: "/element/{a#/1/a~1b}/click", wantPath: "/element/e%201/click", wantBody: `{}`},
		{value: `"ä"`, path: "/element/{a}/click", wantPath: "/element/%C3%A4/click", wantBody: `{}`},
		{value: element, path: "/url", body: `{"x": {"$ref":"a"} , "y":[{ "$ref" :"a"},1e999]}`, wantPath: "/url", wantBody: `{"x": ` + element + ` , "y":[` + element + `,1e999]}`},
		{value: `{"n":123456789012345678901234567890,"s":"\ud800"}`, path: "/url", body: `[{"$ref":"a#/n"},{"$ref":"a#/s"},{"$ref":"a#"}]`, wantPath: "/url",
			wantBody: `[123456789012345678901234567890,"\ud800",{"n":123456789012345678901234567890,"s":"\ud800"}]`},
		{value: `{"":{"~":[10,11]}}`, path: "/url", body: `{"$ref":"a#//~0/1"}`, wantPath: "/url", wantBody: `11`},
		{value: `null`, path: "/url", body: `{"$ref":"a"}`, wantPath: "/url", wantBody: `null`},

		{value: `[]`, path: "/url", body: `{"$ref":"a#/0"}`, fails: "nothing at the pointer"},
		{value: `[1]`, path: "/url", body: `{"$ref":"a#/00"}`, fails: "nothing at the pointer"},
		{value: `[1]`, path: "/url", body: `{"$ref":"a#/-"}`, fails: "nothing at the pointer"},
		{value: `[1]`, path: "/url", body: `{"$ref":"a#/18446744073709551616"}`, fails: "nothing at the pointer"},
		{value: `"x"`, path: "/url", body: `{"$ref":"a#/0"}`, fails: "nothing at the pointer"},
		{value: `{"x":1}`, path: "/element/{a}/click", fails: "takes an element"},
		{value: `7`, path: "/element/{a}/click", fails: "takes an element"},
		{value: `null`, path: "/element/{a}/click", fails: "takes an element"},
		{value: `""`, path: "/element/{a}/click", fails: "cannot be part of a path"},
		{value: `".."`, path: "/element/{a}/click", fails: "cannot be part of a path"},
		{value: `"../../status"`, path: "/element/{a}/click", fails: "cannot be part of a path"},
		{value: `"` + strings.Repeat("x", 1<<16) + `"`, path: "/element/{a}/click", fails: "cannot be part of a path"},
		{value: deep, path: "/url", body: strings.Repeat("[", 6000) + `{"$ref":"a"}` + strings.Repeat("]", 6000), fails: "nested too deeply"},
		{value: `["` + strings.Repeat("x", batch.MaxLook) + `"]`, path: "/url", body: `{"$ref":"a#/0"}`, fails: "looks into at most"},
		{value: `"` + strings.Repeat("x", 1<<20) + `"`, path: "/url", body: `[` + strings.Repeat(`{"$ref":"a"},`, 100) + `1]`, fails: "more than 64 MiB"},
	} {
		text := `{"steps":[` + find + `,{"method":"POST","path":"` + c.path + `"`
		if c.body != "" {
			text += `,"body":` + c.body
		}
		b := parse(t, text+`}]}`)
		got, err := b.Command(1, []batch.Result{{Status: 200, Value: json.RawMessage(c.value)}})
		if c.fails != "" {
			if err == nil || err.Code != webdriver.InvalidArgument || !strings.Contains(err.Message, c.fails) || !strings.Contains(err.Message, "steps[1]") {
				t.Errorf("%.60s in %s %.60s: %v, want %q", c.value, c.path, c.body, err, c.fails)
			}
			continue
		}
		if err != nil || got.Path != c.wantPath || string(got.Body) != c.wantBody {
			t.Errorf("%.60s in %s %s: %s %s, %v", c.value, c.path, c.body, got.Path, got.Body, err)
		}
	}
}

// again encodes a request and parses what came out.
func again(t *testing.T, r batch.Request) (*batch.Batch, string) {
	t.Helper()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatalf("%+v cannot be encoded: %v", r, err)
	}
	next, refused := batch.Parse(b)
	if refused != nil {
		t.Fatalf("%s: %v", b, refused)
	}
	return next, string(b)
}

// FuzzParse: no input makes Parse panic, and what it takes is the same batch again when it is written out.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"steps":[` + find + `,{"method":"POST","path":"/element/{a#/x}/value","body":{"text":{"$ref":"a"},"<":"\u2028"}},{"wait":{"script":"<","args":[null,{"$ref":"a"}],"timeout_ms":1,"every_ms":10}}],"stop_on_error":false}`))
	f.Add([]byte(`{"STEPS":[{"Method":"GET","path":"/url","body":null},{"wait":{"element":{"using":"xpath","value":"\ud800"}}}]}`))
	f.Add([]byte(`{"steps":[{"method":"DELETE"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		parsed, err := batch.Parse(b)
		if err != nil {
			if err.Code != webdriver.InvalidArgument || err.Message == "" || parsed != nil {
				t.Fatalf("%q: %v", b, err)
			}
			return
		}
		next, text := again(t, parsed.Request())
		last, same := again(t, next.Request())
		if same != text || !reflect.DeepEqual(last, next) {
			t.Fatalf("%q is\n%s and then\n%s", b, text, same)
		}
		if next.Len() != parsed.Len() || next.Waits() != parsed.Waits() {
			t.Fatalf("%q has %d steps that wait %v, and then %d that wait %v", b, parsed.Len(), parsed.Waits(), next.Len(), next.Waits())
		}
		for i := range next.Len() {
			if next.Route(i) != parsed.Route(i) || parsed.Route(i) == webdriver.RouteDeleteSession || parsed.Route(i) == webdriver.RouteUnknown {
				t.Fatalf("%q: steps[%d] is %v and then %v", b, i, parsed.Route(i), next.Route(i))
			}
		}
	})
}

// FuzzReferences: whatever a driver answers and wherever it is referred to, what is sent is JSON below the session, of the same
// endpoint; and nothing is sent otherwise.
func FuzzReferences(f *testing.F) {
	f.Add([]byte(`{"element-6066-11e4-a52e-4f735466cecf":"e1"}`), "", `{"x":{"$ref":"a"}}`, "/element/{a}/value")
	f.Add([]byte(`[{"y":"../.."}]`), "#/0/y", `[{"$ref":"a#/0/y"},"{\"$ref\":\"a\"}"]`, "/cookie/{a#/0/y}")
	f.Add([]byte(`"\u0000/%2e"`), "#", `{"$ref":"a"}`, "/element/{a}/css/{a}")
	f.Add([]byte(`["\\"]`), "#/0", `[ {"$ref":"a#/0"} , {"$ref" : "a"}]`, "/shadow/{a#/0}/elements")
	f.Fuzz(func(t *testing.T, value []byte, pointer, body, path string) {
		if !json.Valid(value) {
			t.Skip() // results are JSON: the runner takes nothing else
		}
		results := []batch.Result{{Status: 200, Value: value}, {Status: 200, Value: value}, {Status: 200, Value: value}, {Status: 200, Value: value}}
		for _, method := range []string{"GET", "POST", "DELETE"} {
			step := batch.Step{Method: method, Path: path}
			if method == "POST" {
				step.Body = json.RawMessage(body)
			}
			whole := batch.Step{Method: "POST", Path: "/url", Body: json.RawMessage(fmt.Sprintf(`{"$ref":%q}`, "a"+pointer))}
			for _, second := range []batch.Step{step, whole} {
				b, refused := batch.Compile(batch.Request{Steps: []batch.Step{{Name: "a", Method: "GET", Path: "/url"}, second}})
				if refused != nil {
					continue
				}
				c, refused := b.Command(1, results)
				if refused != nil {
					continue
				}
				if err := c.Validate(); err != nil {
					t.Fatalf("%s as %q in %q: %v", value, c.Path, path, err)
				}
				if route, _ := webdriver.Match(c.Method, c.Path); route != b.Route(1) || route == webdriver.RouteDeleteSession {
					t.Fatalf("%s as %q in %q is %v, not %v", value, c.Path, path, route, b.Route(1))
				}
				if c.Method == "POST" && !json.Valid(c.Body) {
					t.Fatalf("%s in %s is %s", value, second.Body, c.Body)
				}
			}
		}
	})
}
