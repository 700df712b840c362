package tunnel

import (
	"context"
	"fmt"
)

// isolation is done by nftables, which is Linux's. Gateways on macOS are for development, and isolated by construction:
// the netstack backend answers on its listeners only.
type isolation struct{}

func isolate(context.Context, deviceConfig) (*isolation, error) {
	return nil, fmt.Errorf("%w: gateways on macOS are for development and use the netstack backend, where hosts reach nothing but the fleet port", ErrBackend)
}

func (*isolation) check(context.Context) error  { return nil }
func (*isolation) remove(context.Context) error { return nil }
