// Package webdriver is what W3C WebDriver says about messages: commands and answers, error codes, the closed table of
// endpoints, and the processing of New Session's capabilities.
//
// It depends on the standard library only. Out of scope: sockets, HTTP servers and clients, sessions, devices, and
// the meaning of any command beyond its endpoint.
//
// Source of the rules: https://www.w3.org/TR/webdriver2/ (sections 3 Protocol, 7 Capabilities) and
// https://www.w3.org/TR/webdriver-bidi/ (the webSocketUrl capability).
package webdriver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// Command is one driver command of a session.
type Command struct {
	Method string // GET, POST or DELETE
	Path   string // below /session/{session id}, with its leading slash; "" is the session itself
	Body   []byte
}

// Answer is a driver's answer: Body is the W3C envelope {"value": …} as the driver sent it.
type Answer struct {
	Status int // HTTP status
	Body   []byte
}

// Err returns an *[Error] when Status is 400 or above, else nil. A body that is no W3C error gives an unknown error:
// what the peer wrote instead is not repeated.
func (a Answer) Err() error {
	if a.Status < 400 {
		return nil
	}
	var e Error
	if err := a.Value(&e); err != nil || e.Code == "" {
		return &Error{Code: UnknownError, Message: fmt.Sprintf("the driver answered HTTP %d without a W3C error", a.Status)}
	}
	return &e
}

// Raw is the value of the envelope as it is, or the error that the answer is.
func (a Answer) Raw() (json.RawMessage, error) {
	if err := a.Err(); err != nil {
		return nil, err
	}
	var v json.RawMessage
	err := a.Value(&v)
	return v, err
}

// Value decodes the value of the envelope into v.
func (a Answer) Value(v any) error {
	var envelope struct {
		Value json.RawMessage `json:"value"`
	}
	if err := json.Unmarshal(a.Body, &envelope); err != nil {
		return fmt.Errorf("webdriver: an answer is not a JSON object: %w", err)
	}
	if envelope.Value == nil {
		return errors.New(`webdriver: an answer has no "value"`)
	}
	if err := json.Unmarshal(envelope.Value, v); err != nil {
		return fmt.Errorf("webdriver: value of an answer: %w", err)
	}
	return nil
}

// ValueAnswer is the successful answer that carries v.
func ValueAnswer(v any) (Answer, error) {
	body, err := json.Marshal(struct {
		Value any `json:"value"`
	}{v})
	if err != nil {
		return Answer{}, fmt.Errorf("webdriver: value of an answer: %w", err)
	}
	return Answer{Status: 200, Body: body}, nil
}

// Validate checks what a proxy relies on before it passes a command on: the method, and that the path stays below
// the session it is put under.
func (c Command) Validate() *Error {
	switch c.Method {
	case http.MethodGet, http.MethodPost, http.MethodDelete:
	default:
		return &Error{Code: UnknownMethod, Message: "a command is a GET, POST or DELETE"}
	}
	if c.Path == "" {
		return nil
	}
	if c.Path[0] != '/' || len(c.Path) > maxPath || !plainPath(c.Path) {
		return &Error{Code: InvalidArgument, Message: "a command's path begins with a slash, is percent-encoded, at most 65535 bytes long " +
			`and has no query, fragment or ".." segment`}
	}
	return nil
}

// Parameters checks what the specification has a remote end check before it runs any command: the body of a POST is a JSON
// object. Of a body above 64 KiB only the ends are looked at: the driver reads it anyway, and finds the rest.
func (c Command) Parameters() *Error {
	if c.Method != http.MethodPost {
		return nil
	}
	b := bytes.Trim(c.Body, " \t\r\n")
	if len(b) > 1 && b[0] == '{' && b[len(b)-1] == '}' && (len(b) > 64<<10 || json.Valid(b)) {
		return nil
	}
	return &Error{Code: InvalidArgument, Message: "the body of a POST must be a JSON object: send {} where a command has no parameters"}
}

const maxPath = 1<<16 - 1

func plainPath(p string) bool {
	for i := range len(p) {
		if p[i] <= ' ' || p[i] >= 0x7f || strings.IndexByte("?#\\\"<>^`{|}", p[i]) >= 0 { // RFC 3986 has none of them in a path
			return false
		}
	}
	for s := range strings.SplitSeq(p[1:], "/") {
		s, err := url.PathUnescape(s)
		if err != nil || s == "." || s == ".." || strings.ContainsAny(s, "/\\") {
			return false
		}
	}
	return true
}
