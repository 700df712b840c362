package profilestate

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/streamingaead"

	"github.com/driftstack/fleet/orchestrator/place"
)

const (
	backupMagic = "DSKEYBAK"
	backupHead  = 4 << 10 // most of it that is not sealed
	// MaxBackup bounds what Restore reads.
	MaxBackup = 1 << 30
)

// backupInfo is the readable head of a backup; its bytes are authenticated with the rest.
type backupInfo struct {
	Region  place.Region `json:"region"`
	Root    string       `json:"root_epoch"`
	Made    time.Time    `json:"made_at"`
	Expires time.Time    `json:"expires_at"`
	Key     []byte       `json:"key"` // of this backup, wrapped by the root key
}

// ErrBackup means that a backup is not one, was changed, or is too old.
var ErrBackup = errors.New("the key backup cannot be used")

// Backup writes every wrapped key and the ledger, sealed for this root key. It is refused once it has expired, and
// unreadable once its epoch of the root key was retired.
//
//	magic, length of the head (4 bytes), head (JSON), Tink stream; magic to head are the associated data
func (k *Keyring) Backup(ctx context.Context, w io.Writer, now time.Time, ttl time.Duration) error {
	if ttl <= 0 {
		return errors.New("key backup: it must expire after some time")
	}
	dump, err := k.store.Export(ctx)
	if err != nil {
		return fmt.Errorf("key backup: %w", err)
	}
	root, wrapping, err := k.root.forWrapping()
	if err != nil {
		return fmt.Errorf("key backup: %w", err)
	}
	h, err := keyset.NewHandle(streamingaead.AES256GCMHKDF1MBKeyTemplate())
	if err != nil {
		return fmt.Errorf("key backup: %w", err)
	}
	info := backupInfo{Region: k.region, Root: root, Made: now.UTC(), Expires: now.Add(ttl).UTC()}
	if info.Key, err = wrap(h, wrapping, k.context("backup", "", "", info.Expires.UnixNano())); err != nil {
		return err
	}
	text, err := json.Marshal(info)
	if err != nil {
		return fmt.Errorf("key backup: %w", err)
	}
	head := append(binary.BigEndian.AppendUint32([]byte(backupMagic), uint32(len(text))), text...)
	s, err := streamingaead.New(h)
	if err != nil {
		return fmt.Errorf("key backup: %w", err)
	}
	if _, err := w.Write(head); err != nil {
		return fmt.Errorf("key backup: %w", err)
	}
	body, err := s.NewEncryptingWriter(w, head)
	if err != nil {
		return fmt.Errorf("key backup: %w", err)
	}
	if err := errors.Join(json.NewEncoder(body).Encode(dump), body.Close()); err != nil {
		return fmt.Errorf("key backup: %w", err)
	}
	return nil
}

// Restore adds the keys of a backup that are missing, except those that a ledger says were destroyed, and says how many.
// Errors: ErrBackup, ErrKey.
func (k *Keyring) Restore(ctx context.Context, r io.Reader, now time.Time) (int, error) {
	dump, err := k.openBackup(r, now)
	if err != nil {
		return 0, err
	}
	apart, err := k.ledger.Destroyed(ctx)
	if err != nil {
		return 0, fmt.Errorf("restore keys: %w", err)
	}
	dump.Destroyed = append(dump.Destroyed, apart...) // first in, so that nothing that was destroyed comes back for a moment
	n, err := k.store.Import(ctx, dump)
	if err != nil {
		return 0, fmt.Errorf("restore keys: %w", err)
	}
	return n, k.Reconcile(ctx)
}

func (k *Keyring) openBackup(r io.Reader, now time.Time) (d KeyDump, err error) {
	head := make([]byte, len(backupMagic)+4)
	if _, err := io.ReadFull(r, head); err != nil || string(head[:len(backupMagic)]) != backupMagic {
		return d, fmt.Errorf("%w: it is not one", ErrBackup)
	}
	n := binary.BigEndian.Uint32(head[len(backupMagic):])
	if n > backupHead {
		return d, fmt.Errorf("%w: it is not one", ErrBackup)
	}
	text := make([]byte, n)
	var info backupInfo
	if _, err := io.ReadFull(r, text); err != nil || json.Unmarshal(text, &info) != nil {
		return d, fmt.Errorf("%w: it is not one", ErrBackup)
	}
	if info.Region != k.region {
		return d, fmt.Errorf("%w: it is of region %q", ErrBackup, info.Region)
	}
	if !now.Before(info.Expires) {
		return d, fmt.Errorf("%w: it expired at %s", ErrBackup, info.Expires.Format(time.RFC3339))
	}
	root, err := k.root.at(info.Root)
	if err != nil {
		return d, err
	}
	h, err := keyset.ReadWithAssociatedData(keyset.NewBinaryReader(bytes.NewReader(info.Key)), root, k.context("backup", "", "", info.Expires.UnixNano()))
	if err != nil {
		return d, fmt.Errorf("%w: it does not open with this root key, or its head was changed", ErrBackup)
	}
	s, err := streamingaead.New(h)
	if err != nil {
		return d, fmt.Errorf("%w: its key is of another kind", ErrBackup)
	}
	body, err := s.NewDecryptingReader(io.LimitReader(r, MaxBackup), append(head, text...))
	if err != nil {
		return d, fmt.Errorf("%w: it was changed or cut off", ErrBackup)
	}
	plain, err := io.ReadAll(body) // to the end before any of it is believed
	if err != nil || json.Unmarshal(plain, &d) != nil {
		return KeyDump{}, fmt.Errorf("%w: it was changed or cut off", ErrBackup)
	}
	return d, nil
}

// Retire removes an epoch of the root key that wraps no account's key any more: what else it wrapped, such as older backups
// and what a database's log still has, opens never again. Only a root key in a file can be retired here.
func (k *Keyring) Retire(ctx context.Context, epoch string) error {
	if k.root.path == "" {
		return &InUseError{epoch, "it is not kept in a file here: remove it where the orchestrator gets its root key from"}
	}
	latest, _, err := k.root.forWrapping()
	if err != nil {
		return err
	}
	if epoch == latest {
		return &InUseError{epoch, "it wraps new keys; `driftctl keys rotate` begins another"}
	}
	used := func() error {
		n, err := k.store.Count(ctx)
		if err == nil && n.AccountsByRoot[epoch] > 0 {
			err = &InUseError{epoch, fmt.Sprintf("it wraps the keys of %d accounts; `driftctl keys rotate` wraps them with the newest", n.AccountsByRoot[epoch])}
		}
		return err
	}
	if err := used(); err != nil {
		return err
	}
	return k.root.remove(epoch, used)
}

// InUseError says why an epoch of the root key cannot be retired.
type InUseError struct{ Epoch, Why string }

func (e *InUseError) Error() string {
	return fmt.Sprintf("epoch %s of the root key cannot be retired: %s", e.Epoch, e.Why)
}
