package main

import (
	"context"
	"errors"
)

func openStream(ctx context.Context, fleet *controlPlane, session string) (do doer, done func(), err error) {
	return nil, nil, errors.New("orchestrator/client has not landed")
}
