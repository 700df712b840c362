package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/driftstack/fleet/orchestrator/api"
)

func gatewayColumns() table.Row {
	return table.Row{"GATEWAY", "ADDRESS", "ENDPOINT", "KEY", "AGE", "NEXT KEY", "SEEN"}
}

func (p printer) gatewayRow(g api.Gateway) table.Row {
	next := "-"
	if g.NextPublicKey != "" {
		next = "in " + short(time.Duration(g.NextInSeconds)*time.Second)
	}
	seen := "now"
	if !g.Live {
		seen = p.since(&g.SeenAt)
	}
	return table.Row{g.Name, g.Address, g.Endpoint, g.PublicKey, short(p.now().Sub(g.RotatedAt)), next, seen}
}

// What a gateway may be given to use its next key: in a minute every connected host has asked several times.
const (
	leastWithin = time.Minute
	mostWithin  = 30 * 24 * time.Hour
)

func checkWithin(d time.Duration) error {
	switch {
	case d < leastWithin:
		return errors.New("--within: at least 1m, so that every connected host hears of the next key before it is used")
	case d > mostWithin:
		return errors.New("--within: at most 720h")
	}
	return nil
}

func rotatedHost(name string) string {
	return fmt.Sprintf("%s makes a new key within 15s, or when it next connects. Its sessions go on; `driftctl hosts get %s` shows the key and its age.\n", name, name)
}

func rotatedGateway(name string, within time.Duration) string {
	return fmt.Sprintf("%s uses a new key in %s, or sooner if that was ordered before. Sessions go on; `driftctl gateways ls` shows when, and `driftctl hosts ls` who is away and would miss it.\n",
		name, short(within))
}

// told says to people what will happen; programs need no words.
func (p printer) told(err error, what string) error {
	if err != nil || p.json {
		return err
	}
	_, err = io.WriteString(p.out, what)
	return err
}
