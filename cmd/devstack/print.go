package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// printer writes lines for a person. Safe for concurrent use: the live log prints while the sample does.
type printer struct {
	mu     sync.Mutex // guards the rest
	w      io.Writer
	failed int
}

func (p *printer) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, format+"\n", args...) // a terminal that is gone is no reason to stop
}

// step runs f and says how long it took; a slow one is announced, so that nobody waits before a silent terminal.
func (p *printer) step(ctx context.Context, what string, f func(context.Context) error) error {
	began := time.Now()
	slow := time.AfterFunc(2*time.Second, func() { p.line("  %s …", what) })
	err := f(ctx)
	slow.Stop()
	took := time.Since(began)
	if err != nil {
		p.line("✗ %s (%.1fs)", what, took.Seconds())
		return err
	}
	p.line("✓ %s (%.1fs)", what, took.Seconds())
	return nil
}

// check prints one claim and whether it held.
func (p *printer) check(held bool, format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	mark := "✓"
	if !held {
		mark = "✗"
		p.failed++
	}
	fmt.Fprintf(p.w, "  %s %s\n", mark, fmt.Sprintf(format, args...))
}

// failures is how many claims did not hold.
func (p *printer) failures() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}
