package batch_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/webdriver"
)

func TestBuilder(t *testing.T) {
	r, err := new(batch.Builder).
		Post("/url", map[string]string{"url": "https://shop.example/"}).
		Find("#user").As("user").
		Post("/element/{user}/click", nil).
		Script("x", batch.Ref("user"), 1).As("s").
		WaitFor("#hello", 1500*time.Microsecond).
		WaitUntil("y", 0, batch.Ref("s#/a~1b")).
		Get("/title").
		Delete("/cookie/{s}").
		GoOn().
		Request()
	if err != nil {
		t.Fatal(err)
	}
	_, text := again(t, r)
	want := `{"steps":[{"method":"POST","path":"/url","body":{"url":"https://shop.example/"}},` +
		`{"name":"user","method":"POST","path":"/element","body":{"using":"css selector","value":"#user"}},` +
		`{"method":"POST","path":"/element/{user}/click"},` +
		`{"name":"s","method":"POST","path":"/execute/sync","body":{"args":[{"$ref":"user"},1],"script":"x"}},` +
		`{"wait":{"element":{"using":"css selector","value":"#hello"},"timeout_ms":2}},` +
		`{"wait":{"script":"y","args":[{"$ref":"s#/a~1b"}]}},` +
		`{"method":"GET","path":"/title"},{"method":"DELETE","path":"/cookie/{s}"}],"stop_on_error":false}`
	if text != want {
		t.Errorf("built\n%s, want\n%s", text, want)
	}
	if !json.Valid([]byte(text)) {
		t.Error("no JSON")
	}
}

func TestBuilderTellsTheFirstMistake(t *testing.T) {
	if _, err := new(batch.Builder).As("x").Post("/url", func() {}).Request(); err == nil || !strings.Contains(err.Error(), `no step yet to be named "x"`) {
		t.Errorf("%v", err)
	}
	if _, err := new(batch.Builder).Get("/url").Post("/url", func() {}).As("x").Request(); err == nil || !strings.Contains(err.Error(), "steps[1]: json") {
		t.Errorf("%v", err)
	}
	if _, err := new(batch.Builder).WaitUntil("x", 0, make(chan int)).Request(); err == nil || !strings.Contains(err.Error(), "steps[0]: json") {
		t.Errorf("%v", err)
	}
	var e *webdriver.Error
	if _, err := new(batch.Builder).Post("/element/{x}/click", nil).Request(); !errors.As(err, &e) || e.Code != webdriver.InvalidArgument {
		t.Errorf("%v", err)
	}
}
