package host

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/driftstack/fleet/driverproxy/wire"
)

// FuzzDriverAnswer reads bytes as a driver's answer: there is one that fits the stream, or an error, and a client gets W3C.
func FuzzDriverAnswer(f *testing.F) {
	for _, s := range []string{
		answered("x"), "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.0 200\r\n\r\n{\"value\":1}", "HTTP/1.1 103 Early\r\n\r\n" + answered("y"),
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\n{} \r\n0\r\nX: y\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		src := &bounded{r: bytes.NewReader(b)}
		a, _, err := (&connection{src: src, in: bufio.NewReader(src)}).read()
		if err != nil {
			return
		}
		if len(a.Body) > wire.MaxMessage-answerRoom {
			t.Fatalf("an answer of %d bytes", len(a.Body))
		}
		if told := w3c(a); told.Status != http.StatusOK && told.Err() == nil || told.Status == http.StatusOK && !strings.HasPrefix(string(bytes.TrimSpace(told.Body)), "{") {
			t.Fatalf("%d %q became %d %q", a.Status, a.Body, told.Status, told.Body)
		}
	})
}

// FuzzForDriver has a client ask for anything: the device stays the host's to choose, and so does the program that is run.
func FuzzForDriver(f *testing.F) {
	f.Add([]byte(`{"browserName":"safari","safari:deviceUDID":"other","safari:diagnose":true,"timeouts":{"script":null}}`))
	f.Add([]byte(`{"webkitgtk:browserOptions":{"binary":"/bin/sh"},"browserVersion":"18"}`))
	f.Fuzz(func(t *testing.T, client []byte) {
		if !json.Valid(client) {
			return
		}
		got, err := forDriver(safariDriver{udid: "mine"}, "/s", client)
		if err != nil {
			return
		}
		if got["safari:deviceUDID"] != "mine" || got["safari:useSimulator"] != false || got["browserName"] != "safari" || got["platformName"] != "iOS" {
			t.Fatalf("%s became %v", client, got)
		}
		for name := range got {
			switch name {
			case "safari:deviceUDID", "safari:useSimulator", "safari:automaticInspection", "safari:automaticProfiling", "safari:diagnose":
			default:
				if strings.HasPrefix(name, "safari:") || name == "webSocketUrl" {
					t.Fatalf("%s passes %s", client, name)
				}
			}
		}
		got, err = forDriver(webkitGTK{}, "/s", client)
		if err != nil { // where there is no MiniBrowser
			return
		}
		options, ok := got["webkitgtk:browserOptions"].(map[string]any)
		if binary, _ := options["binary"].(string); !ok || !strings.HasSuffix(binary, "/MiniBrowser") {
			t.Fatalf("%s became %v", client, got)
		}
		for name := range got {
			if name != "webkitgtk:browserOptions" && strings.Contains(name, ":") {
				t.Fatalf("%s passes %s", client, name)
			}
		}
	})
}
