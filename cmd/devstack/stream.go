package main

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/client"
)

// routes sends commands through the W3C routes, one request each.
func routes(fleet *client.Client, session string) doer {
	return sender(func(ctx context.Context, cmd webdriver.Command) (webdriver.Answer, error) {
		return fleet.Do(ctx, session, cmd)
	})
}

// openStream sends commands through the session's websocket, until done is called.
func openStream(ctx context.Context, fleet *client.Client, session string) (do doer, done func(), err error) {
	s, err := fleet.Stream(ctx, session)
	if err != nil {
		return nil, nil, err
	}
	return sender(s.Do), s.Close, nil
}

func sender(send func(context.Context, webdriver.Command) (webdriver.Answer, error)) doer {
	return func(ctx context.Context, method, path string, body any) (json.RawMessage, error) {
		cmd := webdriver.Command{Method: method, Path: path}
		if method == http.MethodPost {
			raw, err := json.Marshal(body)
			if err != nil {
				return nil, err
			}
			cmd.Body = raw
		}
		answer, err := send(ctx, cmd)
		if err != nil {
			return nil, err
		}
		return answer.Raw()
	}
}

// healthy asks whether the orchestrator is ready.
func healthy(ctx context.Context, base string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/healthz", nil)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	_ = res.Body.Close() // only the status counts
	return res.StatusCode == http.StatusOK
}
