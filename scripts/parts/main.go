// Command parts runs `go test` with the arguments it gets and closes with a table of the real parts that the tests
// worked with. A test says so with a line in its log:
//
//	part: NAME real
//	part: NAME skipped: reason
//
// With CI set, a part that was skipped or that no test reported makes the run fail, and so does any other skipped test:
// a machine that runs CI has all there is to test with.
//
// Out of scope: what the parts are; a test knows.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// required are the parts that a whole run must have had.
func required() []string {
	return []string{"postgres", "webkit", "ffmpeg", "versitygw", "netstack", "tun", "selenium", "webdriverio", "chromium", "playwright"}
}

// event is a line of `go test -json`.
type event struct {
	Action, Package, Test, Output string
}

func main() {
	// Ctrl-C reaches go test as well, which ends its tests; this program stays to close the report.
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	ok, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "parts:", err)
	}
	if !ok || err != nil {
		os.Exit(1)
	}
}

func run(args []string) (ok bool, err error) {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return false, err
	}
	if err := cmd.Start(); err != nil {
		return false, err
	}
	r := newReport(os.Stdout)
	errRead := r.read(out)
	errWait := cmd.Wait()
	var exit *exec.ExitError
	if errWait != nil && !errors.As(errWait, &exit) {
		return false, errWait
	}
	held := r.close(os.Getenv("CI") != "")
	return held && errWait == nil, errRead
}

// report collects what the tests said.
type report struct {
	w       io.Writer
	output  map[string][]string // of tests that have not ended, by package and test
	real    map[string]int      // tests that had a part
	skipped map[string]string   // why a part was skipped
	skips   []string            // tests that were skipped, with their reasons
	count   map[string]int      // of tests, by how they ended
}

func newReport(w io.Writer) *report {
	return &report{w, map[string][]string{}, map[string]int{}, map[string]string{}, nil, map[string]int{}}
}

var part = regexp.MustCompile(`part: (\w+) (real|skipped)(?:: (.*))?`)

func (r *report) read(out io.Reader) error {
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprint(r.w, string(line)) // a build error, for a person
			} else {
				r.take(e)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *report) take(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		r.output[key] = append(r.output[key], e.Output)
		if m := part.FindStringSubmatch(e.Output); m != nil {
			if m[2] == "real" {
				r.real[m[1]]++
			} else {
				r.skipped[m[1]] = strings.TrimSpace(m[3])
			}
		}
		if e.Action == "build-output" {
			fmt.Fprint(r.w, e.Output)
		}
	case "pass", "skip", "fail":
		r.end(key, e)
		delete(r.output, key)
	}
}

func (r *report) end(key string, e event) {
	text := strings.Join(r.output[key], "")
	if e.Test == "" {
		if e.Action == "fail" {
			fmt.Fprint(r.w, text)
		} else {
			fmt.Fprint(r.w, lastLine(text)) // ok …, as go test prints it
		}
		return
	}
	r.count[e.Action]++
	switch e.Action {
	case "fail":
		fmt.Fprint(r.w, text)
	case "skip":
		r.skips = append(r.skips, e.Package+" "+e.Test+": "+reason(text))
	}
}

func lastLine(text string) string {
	text = strings.TrimRight(text, "\n")
	return text[strings.LastIndexByte(text, '\n')+1:] + "\n"
}

// reason is what a test logged before it was skipped.
func reason(text string) string {
	var kept []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			kept = append(kept, line)
		}
	}
	if len(kept) == 0 {
		return "no reason given"
	}
	return strings.Join(kept, "; ")
}

// close prints the table and says whether the run may count.
func (r *report) close(ci bool) bool {
	if len(r.skips) > 0 {
		fmt.Fprintln(r.w, "\nskipped tests")
		for _, s := range slices.Sorted(slices.Values(r.skips)) {
			fmt.Fprintln(r.w, "  "+s)
		}
	}
	fmt.Fprintln(r.w, "\npart          real in  ")
	held := len(r.skips) == 0 || !ci
	for _, name := range required() {
		why, skipped := r.skipped[name]
		switch {
		case r.real[name] > 0 && !skipped:
			fmt.Fprintf(r.w, "  %-11s %d tests\n", name, r.real[name])
			continue
		case r.real[name] > 0:
			fmt.Fprintf(r.w, "  %-11s %d tests, skipped in others: %s\n", name, r.real[name], why)
		case skipped:
			fmt.Fprintf(r.w, "  %-11s none: %s\n", name, why)
		default:
			fmt.Fprintf(r.w, "  %-11s none: no test reported it\n", name)
		}
		held = held && !ci
	}
	if !held {
		fmt.Fprintln(r.w, "CI is set: a skipped test, or a part that was not real everywhere, makes the run fail.")
	}
	fmt.Fprintf(r.w, "\n%d passed, %d failed, %d skipped\n", r.count["pass"], r.count["fail"], r.count["skip"])
	return held
}
