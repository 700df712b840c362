package tunnel

import (
	"bytes"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func testState(t testing.TB) *state {
	t.Helper()
	k, err := NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return &state{
		PrivateKey: k, PresharedKey: PresharedKey{7}, Next: &candidate{clamp([32]byte{3}), kemSeed{4}}, JoinAddr: addr(joinRange, 256), Fingerprint: "f00d",
		Host: "mac", Addr: addr(ownRange, 256),
		Gateways: []GatewayInfo{{Endpoint: "gw.example:51820", PublicKey: Key{1}, Addr: addr(ownRange, 1), FleetPort: 7443}},
	}
}

func wantText(t testing.TB, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v does not say %q", err, text)
	}
}

func splitPort(endpoint string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(endpoint)
	if err == nil {
		port, err = strconv.Atoi(p)
	}
	return host, port, err
}

func TestStateRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	if _, err := loadState(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("no file: %v", err)
	}
	s := testState(t)
	if err := s.save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := loadState(dir)
	if err != nil || !reflect.DeepEqual(got, s) {
		t.Fatalf("%+v, %v", got, err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("files beside the state: %v, %v", left, err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", st.Mode(), err)
	}
}

// TestStateRefused: a file that was cut or edited is named, with what to do, and never half used.
func TestStateRefused(t *testing.T) {
	good, err := testState(t).encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(string) string{
		"cut":             func(s string) string { return s[:len(s)/2] },
		"empty":           func(string) string { return "" },
		"unknown field":   func(s string) string { return strings.Replace(s, `"version"`, `"more": 1, "version"`, 1) },
		"newer version":   func(s string) string { return strings.Replace(s, `"version": 2`, `"version": 3`, 1) },
		"older version":   func(s string) string { return strings.Replace(s, `"version": 2`, `"version": 0`, 1) },
		"no seed":         func(s string) string { return s[:strings.Index(s, `"host"`)] + `"host": ""}` },
		"short seed":      func(s string) string { return strings.Replace(s, `"kem_seed": "`, `"kem_seed": "AAAA`, 1) },
		"seed after join": func(s string) string { return strings.Replace(s, `"version"`, `"kem_seed": "AAAA", "version"`, 1) },
		"two documents":   func(s string) string { return s + s },
		"no gateways":     func(s string) string { return s[:strings.Index(s, `"gateways"`)] + `"join_address":"10.76.1.0"}` },
		"address only":    func(s string) string { return strings.Replace(s, `"host": "mac",`, "", 1) },
		"another address": func(s string) string { return strings.Replace(s, "10.77.1.0", "10.77.1.1", 1) },
		"gateway as host": func(s string) string { return strings.Replace(s, "10.77.1.0", "10.77.0.9", 1) },
	} {
		dir := t.TempDir()
		if err := os.WriteFile(statePath(dir), []byte(edit(string(good))), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := loadState(dir)
		if err == nil {
			t.Errorf("%s: accepted: %+v", name, s)
			continue
		}
		wantText(t, err, statePath(dir))
		wantText(t, err, "join with a new token")
	}
}

// version1 is a state as the first version of this program wrote it.
func version1(t testing.TB, joined bool) []byte {
	t.Helper()
	s := testState(t)
	s.Next = nil
	if !joined {
		s.Host, s.Addr = "", state{}.Addr
	}
	b, err := s.encode()
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), `"version": 2`, `"version": 1`, 1)
	return regexp.MustCompile(` *"kem_seed".*\n`).ReplaceAll([]byte(text), nil)
}

func TestStateVersion1(t *testing.T) {
	for _, joined := range []bool{true, false} {
		dir := t.TempDir()
		if err := os.WriteFile(statePath(dir), version1(t, joined), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := loadState(dir)
		if err != nil {
			t.Fatal(err)
		}
		if s.joined() != joined || (s.Seed == kemSeed{}) != joined || s.PresharedKey != (PresharedKey{7}) {
			t.Errorf("joined %t: read as %+v", joined, s)
		}
		// Written again it is of this version, with the seed it was given.
		if err := s.save(dir); err != nil {
			t.Fatal(err)
		}
		if again, err := loadState(dir); err != nil || !reflect.DeepEqual(again, s) {
			t.Errorf("joined %t: %+v, %v", joined, again, err)
		}
	}
}

func FuzzDecodeState(f *testing.F) {
	s := testState(f)
	for _, joined := range []bool{true, false} {
		if !joined {
			s.Host, s.Addr, s.Next, s.Seed = "", state{}.Addr, nil, kemSeed{5}
		}
		b, err := s.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add(version1(f, false))
	f.Add(version1(f, true))
	f.Add([]byte(`{"version":1,"private_key":"","gateways":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeState(b)
		if err != nil {
			return
		}
		if !s.joined() && s.Seed == (kemSeed{}) {
			t.Fatal("a host that has not joined has no seed")
		}
		// What is accepted is written so that it reads back the same.
		out, err := s.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeState(out)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if !reflect.DeepEqual(s, again) {
			t.Fatalf("%+v\n%+v", s, again)
		}
		if twice, err := again.encode(); err != nil || !bytes.Equal(out, twice) {
			t.Fatalf("%s\n%s\n%v", out, twice, err)
		}
	})
}
