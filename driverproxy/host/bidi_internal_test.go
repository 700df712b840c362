package host

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/driftstack/fleet/driverproxy/socket"
)

func TestBiDiCapabilities(t *testing.T) {
	client := json.RawMessage(`{"browserName":"chrome","webSocketUrl":true,"goog:chromeOptions":{"binary":"/bin/sh"},"goog:loggingPrefs":{}}`)
	got, err := forDriver(chromeDriver{}, "/s", client)
	b, _ := json.Marshal(got)
	if err == nil && (!strings.Contains(string(b), `"webSocketUrl":true`) || !strings.Contains(string(b), "--user-data-dir=/s/data/") || strings.Contains(string(b), "/bin/sh") || strings.Contains(string(b), "Prefs")) { // where Chromium is installed
		t.Errorf("chromedriver gets %s", b)
	}
	told, err := forClient(chromeDriver{}, Device{PlatformName: "linux"}, json.RawMessage(`{"browserName":"chromium","platformName":"linux","webSocketUrl":"ws://localhost:1/session/1",
		"goog:chromeOptions":{"debuggerAddress":"localhost:2"},"goog:processID":3,"chrome":{"userDataDir":"/state"},"setWindowRect":true}`))
	if err != nil || string(told) != `{"browserName":"chrome","platformName":"linux","setWindowRect":true,"webSocketUrl":true}` {
		t.Errorf("the client is told %s %v", told, err)
	}
	for _, none := range []string{`{}`, `{"webSocketUrl":false}`, `{"webSocketUrl":true}`, `{"webSocketUrl":""}`, `{"webSocketUrl":null}`} {
		if told, err := forClient(safariDriver{}, Device{}, json.RawMessage(none)); err != nil || string(told) != `{"browserName":"safari"}` {
			t.Errorf("%s gave %s %v", none, told, err)
		}
	}
}

func TestBiDiEndpoint(t *testing.T) {
	for matched, want := range map[string]string{
		`{"webSocketUrl":"ws://localhost:4444/session/x"}`:      "ws://127.0.0.1:9515/session/x",
		`{"webSocketUrl":"ws://evil.example/session/x?a=b#c"}`:  "ws://127.0.0.1:9515/session/x?a=b", // only ever the driver
		`{"webSocketUrl":"ws://user:word@localhost:1/session"}`: "ws://127.0.0.1:9515/session",
		`{"webSocketUrl":"http://localhost:1/session/x"}`:       "",
		`{"webSocketUrl":"ws:opaque"}`:                          "",
		`{"webSocketUrl":"ws://localhost:1"}`:                   "",
		`{"webSocketUrl":"ws://[/"}`:                            "",
		`{"webSocketUrl":true}`:                                 "",
		`{}`:                                                    "",
		`null`:                                                  "",
	} {
		b := newBiDi()
		err := b.find(json.RawMessage(matched), "127.0.0.1:9515")
		got := ""
		begun := b.begin(func(endpoint string, _ *relaysEnd) { got = endpoint })
		b.close()
		b.close() // harmless
		if got != want || begun != (want != "") || (err == nil) != begun {
			t.Errorf("%s: %q %v, want %q", matched, got, err, want)
		}
		if b.begin(func(string, *relaysEnd) { t.Error("a relay ran") }) {
			t.Error("a session that is over took a connection")
		}
	}
}

// Who has the session now is not relayed beside who had it.
func TestBiDiOfTheFormerOrchestratorEnds(t *testing.T) {
	b := newBiDi()
	if err := b.find(json.RawMessage(`{"webSocketUrl":"ws://localhost:1/session/x"}`), "127.0.0.1:9515"); err != nil {
		t.Fatal(err)
	}
	heard := make(chan int, 2)
	relay := func(_ string, end *relaysEnd) {
		<-end.told
		heard <- end.how.Code
	}
	b.begin(relay)
	b.handOver()
	if code := <-heard; code != socket.CloseAgain {
		t.Errorf("the former's relay ends with %d", code)
	}
	b.begin(relay)
	select {
	case code := <-heard:
		t.Errorf("the next one's relay ends with %d", code)
	default:
	}
	b.close()
	b.handOver() // harmless
	if code := <-heard; code != socket.CloseGoingAway {
		t.Errorf("the next one's relay ends with %d", code)
	}
}

func FuzzBiDiEndpoint(f *testing.F) {
	f.Add("ws://localhost:4444/session/x")
	f.Add("ws://a@b/c?d#e")
	f.Add("ws:////x")
	f.Fuzz(func(t *testing.T, url string) {
		matched, err := json.Marshal(map[string]string{"webSocketUrl": url})
		if err != nil {
			t.Fatal(err)
		}
		b := newBiDi()
		if b.find(matched, "127.0.0.1:9515") == nil && !strings.HasPrefix(b.url, "ws://127.0.0.1:9515/") {
			t.Fatalf("%q became %q", url, b.url)
		}
	})
}
