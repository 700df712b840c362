package profilestate

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"time"

	"github.com/driftstack/fleet/orchestrator/place"
)

// The report of a restore is kept beside the profile's generations for as long as its session runs, so that whoever goes on with the
// session knows as much as who began it. It is sealed with the profile's key, and never more than a file: there is no row of it.
const (
	reportSuffix = ".report"
	// reportKeep is beyond what a session may run, which is a day: what is older was left by one that nobody ended.
	reportKeep = 25 * time.Hour
)

// savedItem is an Item with what that privately holds.
type savedItem struct {
	Kind               Kind
	Host               string
	Status             Status
	Reason             Reason
	Domain, Path, Name string
	Origin             string
	Key                JSString
	Made               Cookie
	Text               JSString
}

func reportFile(ref Ref, session string) string {
	return path.Join(ref.folder(), idName(session)+reportSuffix)
}

// reportContext binds a sealed report to its session. Nothing else that is sealed with the same key begins like this.
func reportContext(region place.Region, ref Ref, session string) []byte {
	b := []byte("driftstack restore report 1\x00")
	for _, s := range []string{string(region), ref.Account, ref.Profile, session} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	return b
}

// SaveReport keeps the report of a session's restore from the generation that head has. A session restores once.
func (s *Store) SaveReport(ctx context.Context, ref Ref, head Head, session string, r Report) error {
	if err := s.saveReport(ctx, ref, head, session, r); err != nil {
		return fmt.Errorf("keep the report of a restore of profile %s: %w", ref.Profile, err)
	}
	return nil
}

func (s *Store) saveReport(ctx context.Context, ref Ref, head Head, session string, r Report) error {
	if err := ref.check(); err != nil {
		return err
	}
	key, err := s.keys.open(ctx, ref, head.Destroyed)
	if err != nil {
		return err
	}
	var sealed bytes.Buffer
	w, err := key.stream.NewEncryptingWriter(&sealed, reportContext(s.region, ref, session))
	if err != nil {
		return err
	}
	err = r.encode(w)
	if err := errors.Join(err, w.Close()); err != nil {
		return err
	}
	f, err := s.create(reportFile(ref, session), sealed.Bytes())
	if err != nil {
		return err
	}
	return f.Close()
}

// ErrNoReport: no report of a session's restore was kept.
var ErrNoReport = errors.New("there is no report of what was restored")

// LoadReport opens what SaveReport kept. ErrNoReport, ErrTampered, ErrKey, and those of the KeyStore.
func (s *Store) LoadReport(ctx context.Context, ref Ref, head Head, session string) (Report, error) {
	r, err := s.loadReport(ctx, ref, head, session)
	if err != nil {
		return Report{}, fmt.Errorf("open the report of a restore of profile %s: %w", ref.Profile, err)
	}
	return r, nil
}

func (s *Store) loadReport(ctx context.Context, ref Ref, head Head, session string) (Report, error) {
	if err := ref.check(); err != nil {
		return Report{}, err
	}
	f, err := s.disk.Open(s.path(reportFile(ref, session)))
	if errors.Is(err, fs.ErrNotExist) {
		return Report{}, ErrNoReport
	}
	if err != nil {
		return Report{}, err
	}
	sealed, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return Report{}, err
	}
	key, err := s.keys.open(ctx, ref, head.Destroyed)
	if err != nil {
		return Report{}, err
	}
	damaged := fmt.Errorf("%w: the report does not open with the profile's key", ErrTampered)
	r, err := key.stream.NewDecryptingReader(bytes.NewReader(sealed), reportContext(s.region, ref, session))
	if err != nil {
		return Report{}, damaged
	}
	plain, err := io.ReadAll(r) // all of it, before any of it is believed
	defer func() { clear(plain) }()
	if err != nil {
		return Report{}, damaged
	}
	report, err := decodeReport(bytes.NewReader(plain))
	if err != nil {
		return Report{}, damaged
	}
	return report, nil
}

// encode writes the report with what its items privately hold. Of bytes that are not UTF-8, gob keeps each.
func (r Report) encode(w io.Writer) error {
	items := make([]savedItem, len(r.items))
	for i, v := range r.items {
		items[i] = savedItem{v.Kind, v.Host, v.Status, v.Reason, v.cookie.domain, v.cookie.path, v.cookie.name, v.entry.origin, v.entry.name, v.made, v.text}
	}
	return gob.NewEncoder(w).Encode(items)
}

func decodeReport(from io.Reader) (Report, error) {
	var items []savedItem
	if err := gob.NewDecoder(from).Decode(&items); err != nil {
		return Report{}, err
	}
	var r Report
	for _, v := range items {
		r.items = append(r.items, Item{Kind: v.Kind, Host: v.Host, Status: v.Status, Reason: v.Reason,
			cookie: cookieKey{v.Domain, v.Path, v.Name}, entry: storageKey{v.Origin, v.Key}, made: v.Made, text: v.Text})
	}
	return r, nil
}

// RemoveReport removes what SaveReport kept, if it did. Sweep does it, later, if this fails.
func (s *Store) RemoveReport(ref Ref, session string) {
	_ = s.disk.Remove(s.path(reportFile(ref, session)))
}

// sweepReport removes a report that no session can need any more.
func (s *Store) sweepReport(name string, age time.Duration, sum *Swept) error {
	f, err := s.lockOld(name, s.now().Add(-max(age, reportKeep)))
	if f == nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		err = s.disk.Remove(s.path(name))
	}
	if err == nil {
		sum.Removed++
		sum.Bytes += info.Size()
	}
	return errors.Join(err, f.Close())
}

func isReport(name string) bool { return filepath.Ext(name) == reportSuffix }
