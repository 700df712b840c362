package stream

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strconv"
)

// Token names a stream within its session. The zero Token names none.
type Token [16]byte

// NewToken makes up a token that nobody can guess.
func NewToken() Token {
	var t Token
	_, _ = rand.Read(t[:]) // never fails
	return t
}

func (t Token) String() string { return hex.EncodeToString(t[:]) }

func parseToken(s string) (Token, error) {
	var t Token
	b, err := hex.DecodeString(s)
	if err != nil || copy(t[:], b) != len(t) || len(b) != len(t) || t == (Token{}) {
		return Token{}, errors.New("token is not the 32 hex digits that a stream began with")
	}
	return t, nil
}

// Resume says which stream a socket goes on with, and that its client has every answer up to Answered. The zero Resume
// begins a new stream.
type Resume struct {
	Token    Token
	Answered uint64
}

// ParseResume reads the query of a stream's request.
func ParseResume(q url.Values) (Resume, error) {
	var r Resume
	if !q.Has("resume") {
		if q.Has("answered") {
			return r, errors.New("answered goes with resume, the token of the stream")
		}
		return r, nil
	}
	var err error
	if r.Token, err = parseToken(q.Get("resume")); err != nil {
		return Resume{}, fmt.Errorf("resume: the %w", err)
	}
	if !q.Has("answered") {
		return r, nil
	}
	if r.Answered, err = strconv.ParseUint(q.Get("answered"), 10, 63); err != nil {
		return Resume{}, errors.New("answered is not the id of a command, or 0")
	}
	return r, nil
}

func (r Resume) query() string {
	if r.Token == (Token{}) {
		return ""
	}
	return "?" + url.Values{"resume": {r.Token.String()}, "answered": {strconv.FormatUint(r.Answered, 10)}}.Encode()
}
