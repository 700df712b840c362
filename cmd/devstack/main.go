// Command devstack runs the whole of Driftstack on one machine: Postgres, object storage in two regions, a sample web
// site, the orchestrator and a driver host joined by a tunnel, and then a sample session on a real WebKit.
//
// Out of scope: production. The keys lie beside the data, the regions are two folders.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/alecthomas/kong"
)

// flags is the command line.
type flags struct {
	Dir    string `help:"Folder of everything the stack keeps; survives restarts." default:".devstack" env:"DRIFTSTACK_DEVSTACK_DIR" type:"path"`
	Bin    string `help:"Folder with orchestrator, driverhost, driftctl and versitygw." default:"bin" env:"DRIFTSTACK_DEVSTACK_BIN" type:"path"`
	Tunnel string `help:"WireGuard backend: netstack needs no root; tun joins two network namespaces through TUN devices, as root, and only for demo." default:"netstack" enum:"netstack,tun" env:"DRIFTSTACK_DEVSTACK_TUNNEL"`

	Run  struct{} `cmd:"" help:"Start the stack, run the sample, and stay up until Ctrl-C." default:"1"`
	Demo struct{} `cmd:"" help:"Start the stack, run the sample, and stop: exit code 0 when every claim of the sample held."`
}

func main() {
	var f flags
	parsed := kong.Parse(&f, kong.Name("devstack"), kong.Description("The whole of Driftstack on one machine."), kong.UsageOnError())
	if err := run(f, parsed.Command() == "run"); err != nil {
		fmt.Fprintf(os.Stderr, "devstack: %v\n", err)
		os.Exit(1)
	}
}

func run(f flags, stay bool) (err error) {
	if f.Tunnel == "tun" {
		if stay {
			return errors.New("--tunnel tun works with demo only: a stack in a network namespace of its own cannot be reached from yours")
		}
		if ok, err := unshared(); err != nil || !ok {
			return err
		}
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	// Once the first signal is taken the next one ends devstack at once; the children then end by themselves.
	context.AfterFunc(ctx, cancel)

	out := &printer{w: os.Stdout}
	s, err := startStack(ctx, config{f.Dir, f.Bin, f.Tunnel, out})
	if err != nil {
		return interrupted(ctx, err)
	}
	defer func() {
		errStop := out.step(context.WithoutCancel(ctx), "stopping", s.stop)
		err = errors.Join(err, errStop)
	}()
	if err := sampleWatched(ctx, s); err != nil {
		if !stay || ctx.Err() != nil {
			return interrupted(ctx, err)
		}
		out.line("\nThe sample failed: %v\nThe stack stays up so that you can look: logs are in %s", err, filepath.Join(f.Dir, "logs"))
	}
	if !stay {
		out.line("\nEverything held.")
		return nil
	}
	out.line("%s", s.howTo())
	return s.watch(ctx)
}

// sampleWatched runs the sample and ends it when a part of the stack ends.
func sampleWatched(ctx context.Context, s *stack) error {
	ctx, cancel := context.WithCancel(ctx)
	watched := make(chan error, 1)
	go func() {
		err := s.watch(ctx)
		cancel()
		watched <- err
	}()
	err := runSample(ctx, s)
	cancel()
	return errors.Join(err, <-watched)
}

// interrupted replaces the many errors that a Ctrl-C causes by a short one.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

func (s *stack) howTo() string {
	a := s.access()
	return fmt.Sprintf(`
The stack is up: Ctrl-C stops it. Ready to paste:

  export DRIFTSTACK_URL=%[1]s DRIFTSTACK_SERVICE_TOKEN=%[2]s

  # dispatch a session, and see what runs where
  curl -sS -H "Authorization: Bearer $DRIFTSTACK_SERVICE_TOKEN" -H 'Content-Type: application/json' \
    -d '{"account":"%[4]s","device":{"kind":"%[5]s"}}' $DRIFTSTACK_URL/v1/sessions
  %[6]s sessions ls
  %[6]s logs -f SESSION
  %[6]s recordings open SESSION

  # the sample site: %[3]s (user %[7]s, password %[8]s); the API: %[1]s/openapi.json

  # an unmodified selenium-webdriver (npm install selenium-webdriver), saved as try.mjs: node try.mjs
  import { Builder, Capabilities } from 'selenium-webdriver';
  const url = new URL('/wd/hub', process.env.DRIFTSTACK_URL);
  url.username = 'driftstack';
  url.password = process.env.DRIFTSTACK_SERVICE_TOKEN;
  const browser = await new Builder().usingServer(url.href)
    .withCapabilities(new Capabilities({ browserName: 'safari', 'driftstack:options': { account: '%[4]s' } })).build();
  await browser.get('%[3]s/counter');
  console.log(await browser.getTitle());
  await browser.quit();
`, a.URL, a.ServiceToken, a.Site, a.Account, deviceKind, filepath.Join(s.cfg.bin, "driftctl"), siteUser, sitePassword)
}
