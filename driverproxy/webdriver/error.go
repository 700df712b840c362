package webdriver

import (
	"encoding/json"
	"net/http"
)

// Code is the "error" of a W3C error answer.
type Code string

// All codes of WebDriver, section 6.6.
const (
	ElementClickIntercepted Code = "element click intercepted"
	ElementNotInteractable  Code = "element not interactable"
	InsecureCertificate     Code = "insecure certificate"
	InvalidArgument         Code = "invalid argument"
	InvalidCookieDomain     Code = "invalid cookie domain"
	InvalidElementState     Code = "invalid element state"
	InvalidSelector         Code = "invalid selector"
	InvalidSessionID        Code = "invalid session id"
	JavascriptError         Code = "javascript error"
	MoveTargetOutOfBounds   Code = "move target out of bounds"
	NoSuchAlert             Code = "no such alert"
	NoSuchCookie            Code = "no such cookie"
	NoSuchElement           Code = "no such element"
	NoSuchFrame             Code = "no such frame"
	NoSuchWindow            Code = "no such window"
	NoSuchShadowRoot        Code = "no such shadow root"
	ScriptTimeout           Code = "script timeout"
	SessionNotCreated       Code = "session not created"
	StaleElementReference   Code = "stale element reference"
	DetachedShadowRoot      Code = "detached shadow root"
	Timeout                 Code = "timeout"
	UnableToSetCookie       Code = "unable to set cookie"
	UnableToCaptureScreen   Code = "unable to capture screen"
	UnexpectedAlertOpen     Code = "unexpected alert open"
	UnknownCommand          Code = "unknown command"
	UnknownError            Code = "unknown error"
	UnknownMethod           Code = "unknown method"
	UnsupportedOperation    Code = "unsupported operation"
)

// Codes lists every code of the specification.
func Codes() []Code {
	return []Code{
		ElementClickIntercepted, ElementNotInteractable, InsecureCertificate, InvalidArgument, InvalidCookieDomain,
		InvalidElementState, InvalidSelector, InvalidSessionID, JavascriptError, MoveTargetOutOfBounds, NoSuchAlert,
		NoSuchCookie, NoSuchElement, NoSuchFrame, NoSuchWindow, NoSuchShadowRoot, ScriptTimeout, SessionNotCreated,
		StaleElementReference, DetachedShadowRoot, Timeout, UnableToSetCookie, UnableToCaptureScreen,
		UnexpectedAlertOpen, UnknownCommand, UnknownError, UnknownMethod, UnsupportedOperation,
	}
}

// HTTPStatus is the status that the specification gives to the code; 500 for a code it does not know.
func (c Code) HTTPStatus() int {
	switch c {
	case ElementClickIntercepted, ElementNotInteractable, InsecureCertificate, InvalidArgument, InvalidCookieDomain,
		InvalidElementState, InvalidSelector:
		return http.StatusBadRequest
	case InvalidSessionID, NoSuchAlert, NoSuchCookie, NoSuchElement, NoSuchFrame, NoSuchWindow, NoSuchShadowRoot,
		StaleElementReference, DetachedShadowRoot, UnknownCommand:
		return http.StatusNotFound
	case UnknownMethod:
		return http.StatusMethodNotAllowed
	}
	return http.StatusInternalServerError
}

// Error is a W3C error. Message may quote what the client sent: it goes back to that client and nowhere else.
type Error struct {
	Code       Code           `json:"error"`
	Message    string         `json:"message"`
	Stacktrace string         `json:"stacktrace"`
	Data       map[string]any `json:"data,omitempty"`
}

// Error implements error.
func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

// Answer renders the error as a driver would.
func (e *Error) Answer() Answer {
	body, err := json.Marshal(struct {
		Value *Error `json:"value"`
	}{e})
	if err != nil { // only Data can fail to marshal, and the client is owed a W3C error all the same
		return (&Error{Code: e.Code, Message: e.Message, Stacktrace: e.Stacktrace}).Answer()
	}
	return Answer{Status: e.Code.HTTPStatus(), Body: body}
}
