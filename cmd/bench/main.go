// Command bench measures the figures the project holds itself to, ours and the reference interleaved in one run:
//
//	make bench [ONLY=part[/measurement]]
//
// It prints a row a figure and writes .bench/results.json. A figure that misses its bar makes no run fail: it is there to
// be seen. Out of scope: figures of parts that are not built yet; they are not listed.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/jedib0t/go-pretty/v6/table"

	"github.com/driftstack/fleet/driverproxy/host"
)

// figure is a measured value. Ours and Reference are what it was computed from, 0 where it stands alone.
type figure struct {
	Name      string  `json:"name"`
	Ours      float64 `json:"ours"`
	Reference float64 `json:"reference"`
	Value     float64 `json:"value"`
	Unit      string  `json:"unit"`
	Bar       float64 `json:"bar"`
	OK        bool    `json:"ok"`
}

func atMost(name string, ours, reference, value float64, unit string, bar float64) figure {
	return figure{name, ours, reference, value, unit, bar, value <= bar}
}

func atLeast(name string, ours, reference, value float64, unit string, bar float64) figure {
	return figure{name, ours, reference, value, unit, bar, value >= bar}
}

// part measures figures: those of one measurement, or all when only is empty.
type part func(ctx context.Context, only string) ([]figure, error)

// parts are what ONLY chooses from.
func parts() map[string]part {
	return map[string]part{"dispatch": benchDispatch, "stream": benchStream, "tunnel": benchTunnel, "profile": benchProfile, "recording": benchRecording}
}

type options struct {
	Only string `help:"One part: dispatch, profile, recording, stream or tunnel; or one measurement: dispatch/lifecycles, dispatch/running, dispatch/queue, dispatch/replicas, profile/seal, profile/commit, profile/browser, recording/drain, recording/ingest, recording/stop, stream/hop, stream/tunnel, stream/batch, stream/idle, tunnel/path, tunnel/reconcile, tunnel/change, tunnel/idle, tunnel/idle-10k, tunnel/ocean." placeholder:"PART"`
	Out  string `default:".bench/results.json" help:"Where the figures are written as JSON."`
}

func main() {
	// The supervisor of a recorded session's processes: this program again, started by the host's agent.
	if len(os.Args) > 1 && os.Args[1] == host.SuperviseCommand {
		os.Exit(host.SuperviseMain(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == bareGateway {
		if err := bareGatewayMain(os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	var o options
	kong.Parse(&o, kong.Name("bench"), kong.Description("Measures the figures the project holds itself to."), kong.UsageOnError())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	var names []string
	only, measurement, _ := strings.Cut(o.Only, "/")
	for name := range parts() {
		if only == "" || only == name {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return fmt.Errorf("there is no part %q", o.Only)
	}
	slices.Sort(names)
	figures := []figure{}
	for _, name := range names {
		begin := time.Now()
		f, err := parts()[name](ctx, measurement)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		fmt.Printf("%s measured in %.0fs\n", name, time.Since(begin).Seconds())
		figures = append(figures, f...)
	}
	t := table.NewWriter()
	t.SetOutputMirror(os.Stdout)
	t.SetStyle(table.StyleLight)
	t.AppendHeader(table.Row{"FIGURE", "OURS", "REFERENCE", "VALUE", "UNIT", "BAR", ""})
	for _, f := range figures {
		held := "ok"
		if !f.OK {
			held = "short"
		}
		t.AppendRow(table.Row{f.Name, number(f.Ours), number(f.Reference), number(f.Value), f.Unit, number(f.Bar), held})
	}
	t.Render()
	b, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(o.Out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(o.Out, append(b, '\n'), 0o644)
}

func number(f float64) string {
	s := fmt.Sprintf("%.2f", f)
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}
