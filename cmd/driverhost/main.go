// Command driverhost is the agent on each Mac: it joins the tunnel, offers its devices to every orchestrator, and runs
// one session a device.
//
// This file parses, wires, waits and unwinds. Out of scope: everything else.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/driftstack/fleet/driverproxy/host"
	"github.com/driftstack/fleet/orchestrator/coredump"
	"github.com/driftstack/fleet/recorder/capture"
	"github.com/driftstack/fleet/tunnel"
)

// config is every setting, as flag and as environment variable.
type config struct {
	StateDir string   `required:"" type:"path" placeholder:"DIR" help:"Folder of the agent: tunnel key, and the running sessions' scratch folders. One agent a folder."`
	Join     string   `placeholder:"TOKEN" help:"Join token, as driftctl hosts add prints it. Needed once; a host that has joined ignores it."`
	Device   []device `sep:"none" placeholder:"KEY=VALUE,…" help:"A device, repeatable: name, kind (safaridriver; for development webkitgtk, chromedriver or fake), model, platform-name, platform-version, country (as US), udid (of an iPhone), label.NAME."`

	TunnelBackend   string `default:"auto" enum:"auto,kernel,tun,netstack" help:"WireGuard backend: auto, kernel, tun or netstack; netstack needs no privilege."`
	TunnelInterface string `placeholder:"NAME" help:"Network interface of the kernel and tun backends."`
	TunnelMTU       int    `default:"1280" help:"MTU of the tunnel; where packets of this size vanish on the way, 1200 is used by itself."`

	RecordFPS     int    `default:"10" help:"Frames a second of recordings."`
	RecordBitrate int    `default:"1000000" help:"Bits a second of recordings."`
	RecordBuffer  int64  `default:"33554432" help:"Most bytes of one recording that may wait for the orchestrator; beyond, its capture stops."`
	CanarySite    string `default:"https://example.com" placeholder:"ORIGIN" help:"A site that every device reaches and no customer has to do with: whether a phone keeps what sessions store is tried out there."`
	RecordLanes   int    `default:"4" help:"Most sockets that carry one recording; further ones than the first are opened when it is not enough, 8 at most."`
	LogLevel      string `default:"info" enum:"debug,info,warn,error" help:"Least level that is logged: debug, info, warn or error."`
}

// device is parsed from KEY=VALUE pairs.
type device host.Device

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *device) UnmarshalText(text []byte) error {
	for pair := range strings.SplitSeq(string(text), ",") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || value == "" {
			return fmt.Errorf("%q is not KEY=VALUE", pair)
		}
		if label, ok := strings.CutPrefix(key, "label."); ok {
			if d.Labels == nil {
				d.Labels = map[string]string{}
			}
			d.Labels[label] = value
			continue
		}
		field, ok := map[string]*string{
			"name": &d.Name, "kind": &d.Kind, "model": &d.Model, "platform-name": &d.PlatformName,
			"platform-version": &d.PlatformVersion, "country": &d.Country, "udid": &d.UDID,
		}[key]
		if !ok {
			return fmt.Errorf("%q is not a key of a device: use name, kind, model, platform-name, platform-version, country, udid or label.NAME", key)
		}
		*field = value
	}
	if d.PlatformName == "" {
		d.PlatformName = map[string]string{host.KindSafariDriver: "iOS"}[d.Kind]
	}
	if d.PlatformName == "" {
		d.PlatformName = runtime.GOOS
	}
	return nil
}

// Validate is called by kong once everything is parsed.
func (c *config) Validate() error {
	if len(c.Device) == 0 {
		return errors.New("--device: at least one, for example --device \"name=phone-1,kind=safaridriver,model=iPhone 15,udid=…\"")
	}
	return nil
}

func main() {
	// The supervisor of one session's processes: this program again, started by itself.
	if len(os.Args) > 1 && os.Args[1] == host.SuperviseCommand {
		os.Exit(host.SuperviseMain(os.Args[2:]))
	}
	var cfg config
	kong.Parse(&cfg, kong.Name("driverhost"), kong.DefaultEnvars("DRIFTSTACK"), kong.UsageOnError(),
		kong.Description("Runs sessions on the devices of this machine for Driftstack's orchestrators. "+
			"Every flag can also be set as the environment variable shown beside it; the join token is better set there."))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := run(ctx, cfg); err != nil {
		fmt.Fprintln(os.Stderr, "driverhost:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, cfg config) (err error) {
	if err := coredump.Disable(); err != nil {
		return err
	}
	log, err := logger(cfg.LogLevel)
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(cfg.StateDir)
	if err != nil {
		return err
	}
	link, err := tunnel.OpenLink(ctx, tunnel.LinkConfig{
		StateDir: dir, Token: cfg.Join, Backend: cfg.TunnelBackend, Interface: cfg.TunnelInterface, MTU: cfg.TunnelMTU, Log: log.Named("tunnel"),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, link.Close()) }()
	log.Info("tunnel is up", zap.String("backend", link.Backend()), zap.String("host", link.Host()), zap.Stringer("address", link.Addr()))

	return host.Run(ctx, host.Config{
		Name: link.Host(), Agent: version(), StateDir: dir, Orchestrators: link.Fleets, Dial: link.DialContext,
		Devices: devices(cfg.Device), Log: log,
		Recorder:       recording{capture.New(capture.Config{FPS: cfg.RecordFPS, Bitrate: cfg.RecordBitrate, Buffer: cfg.RecordBuffer})},
		RecordingLanes: cfg.RecordLanes, CanarySite: cfg.CanarySite,
	})
}

// recording lends the host the recorder's capture.
type recording struct{ *capture.Capture }

var _ host.Recorder = recording{}

// Args implements host.Recorder.
func (r recording) Args(d host.Display) []string { return r.Capture.Args(d.Name, d.Width, d.Height) }

// Pump implements host.Recorder.
func (r recording) Pump(ctx context.Context, stdout io.Reader, c host.RecordingConn, stopped func() bool) error {
	return r.Capture.Pump(ctx, stdout, c, stopped)
}

func devices(in []device) []host.Device {
	out := make([]host.Device, len(in))
	for i, d := range in {
		out[i] = host.Device(d)
	}
	return out
}

func logger(level string) (*zap.Logger, error) {
	l, err := zapcore.ParseLevel(level)
	if err != nil {
		return nil, err
	}
	c := zap.NewProductionConfig()
	c.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	c.Level = zap.NewAtomicLevelAt(l)
	return c.Build()
}

func version() string {
	if b, ok := debug.ReadBuildInfo(); ok {
		return b.Main.Version
	}
	return "unknown"
}
