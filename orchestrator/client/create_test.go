package client_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/client"
)

// TestCreateSessionTriesAgain: where that is safe, always under the same key, and not for ever.
func TestCreateSessionTriesAgain(t *testing.T) {
	t.Parallel()
	lost := func(w http.ResponseWriter) { panic(http.ErrAbortHandler) } // it may have been made
	says := func(status int, after string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", after)
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"status":%d,"title":"no"}`, status)
		}
	}
	made := func(w http.ResponseWriter) { _ = json.NewEncoder(w).Encode(api.Session{ID: "s1"}) }
	type answers []func(http.ResponseWriter)
	for name, c := range map[string]struct {
		answers
		tries  int
		status int // of the error; 0: none
	}{
		"connection lost":      {answers{lost, lost, made}, 3, 0},
		"not available":        {answers{says(503, ""), says(502, ""), made}, 3, 0},
		"in a moment":          {answers{says(503, "1"), made}, 2, 0},
		"not for a while":      {answers{says(503, "60"), made}, 1, 503},
		"not available at all": {answers{says(503, ""), says(503, ""), says(503, ""), says(503, ""), made}, 4, 503},
		"over a quota":         {answers{says(429, "1"), made}, 1, 429},
		"wrong":                {answers{says(422, ""), made}, 1, 422},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var keys []string // one request at a time
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				keys = append(keys, r.Header.Get("Idempotency-Key"))
				c.answers[len(keys)-1](w)
			}))
			defer s.Close()
			cl, err := client.New(s.URL, "token")
			if err != nil {
				t.Fatal(err)
			}
			v, err := cl.CreateSession(t.Context(), api.CreateSession{Account: "a"})
			var p *client.Problem
			switch {
			case c.status == 0 && (err != nil || v.ID != "s1"), c.status != 0 && (!errors.As(err, &p) || p.Status != c.status):
				t.Errorf("%+v, %v", v, err)
			}
			if len(keys) != c.tries || keys[0] == "" || len(slices.Compact(keys)) != 1 {
				t.Errorf("keys of the tries: %q", keys)
			}
		})
	}
}
