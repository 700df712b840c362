package tunnel

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// spellings are the ways a 32-byte secret shows up in text.
func spellings(k [32]byte) []string {
	return []string{
		base64.StdEncoding.EncodeToString(k[:]), base64.RawURLEncoding.EncodeToString(k[:]), hex.EncodeToString(k[:]),
		strings.ToUpper(hex.EncodeToString(k[:])), strings.Trim(fmt.Sprint(k[:8]), "[]"), string(k[:8]),
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	var b [32]byte
	for i := range b {
		b[i] = byte(0x41 + i)
	}
	seed := kemSeed(append(b[:], b[:]...))
	tok, _ := testToken(t)
	tok.Secret = b
	values := []any{
		candidate{b, seed}, &candidate{b, seed}, Answer{PresharedKey: b}, state{Seed: seed, Next: &candidate{b, seed}}, seed, &seed,
		PrivateKey(b), PresharedKey(b), Secret(b), tok, &tok,
		Peer{Name: "mac", PresharedKey: b}, []Peer{{PresharedKey: b}}, map[string]PrivateKey{"k": b},
		state{PrivateKey: b, PresharedKey: b}, &state{PrivateKey: b}, deviceConfig{Key: b}, LinkConfig{Token: string(b[:])},
		&Link{key: b, state: &state{PrivateKey: b, PresharedKey: b}, cfg: LinkConfig{Token: string(b[:])}}, table{Key{}: {PSK: b}}, changes{Add: []Peer{{PresharedKey: b}}},
	}
	var texts []string
	for _, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c"} {
			texts = append(texts, fmt.Sprintf(verb, v))
		}
		j, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		enc := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
		buf, err := enc.EncodeEntry(zapcore.Entry{}, []zapcore.Field{zap.Any("v", v), zap.Reflect("r", v)})
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(j), buf.String())
	}
	for _, text := range texts {
		for _, s := range spellings(b) {
			if strings.Contains(text, s) {
				t.Errorf("a secret is printed: %s", text)
			}
		}
	}
}

// TestLogsHoldNoSecret reads everything that a join logs at the finest level, wireguard-go's own lines included.
func TestLogsHoldNoSecret(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	log := zap.New(core)
	r := &registry{}
	w, err := openWorld(t.Context(), r, worldConfig{number: 1, dir: t.TempDir(), log: log})
	if err != nil {
		t.Fatal(err)
	}
	defer w.mustStop(t)
	token := r.mustInvite(t, 256, "mac", w.info)
	w.settle(t)
	dir := t.TempDir()
	l, err := OpenLink(t.Context(), LinkConfig{StateDir: dir, Token: token, Backend: BackendNetstack, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	checkWhoami(t, l, w.info)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := loadState(dir)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	joinKey, err := tok.JoinKey()
	if err != nil {
		t.Fatal(err)
	}
	gwKey, err := loadOrCreateKey(w.cfg.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	secrets := append(spellings([32]byte(tok.Secret)), token)
	for _, k := range [][32]byte{s.PrivateKey, s.PresharedKey, joinKey, gwKey} {
		secrets = append(secrets, spellings(k)...)
	}
	enc := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	for _, e := range logs.All() {
		line, err := enc.EncodeEntry(e.Entry, e.Context)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range secrets {
			if strings.Contains(line.String(), secret) {
				t.Errorf("the log holds a secret: %s", line)
			}
		}
	}
	if logs.FilterMessageSnippet("joined").Len() == 0 || logs.FilterMessageSnippet("wireguard:").Len() == 0 {
		t.Errorf("the log of a join has %d lines and not those expected", logs.Len())
	}
}

func TestWireguardLoggerHidesKeys(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	l := wgLogger(zap.New(core))
	k := [32]byte{1, 2, 3}
	l.Errorf("failed to parse line %q", "private_key "+hex.EncodeToString(k[:]))
	l.Verbosef("%s", reveal(k))
	for _, e := range logs.All() {
		for _, s := range spellings(k)[:3] {
			if strings.Contains(e.Message, s) {
				t.Errorf("%s", e.Message)
			}
		}
	}
	if logs.Len() != 2 {
		t.Errorf("%d lines", logs.Len())
	}
}
