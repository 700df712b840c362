package profilestate

import (
	"errors"

	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/streamingaead"

	"github.com/driftstack/fleet/orchestrator/place"
)

// Probe seals and opens as a Store does, without its disk and its index, for a benchmark.
type Probe struct {
	key     dataKey
	scratch scratch
}

// NewProbe makes a key.
func NewProbe() (*Probe, error) {
	h, err := keyset.NewHandle(streamingaead.AES256GCMHKDF4KBKeyTemplate())
	if err != nil {
		return nil, err
	}
	key, err := newDataKey(h)
	return &Probe{key: key}, err
}

// SealOpen seals what a Commit would write, and opens it as a Load would.
func (p *Probe) SealOpen(plaintext []byte) error {
	h := header{region: place.EU, ref: Ref{"account", "profile"}, generation: 1, epoch: p.key.epoch, term: 1}
	sealed := p.scratch.take(sealedSize(len(plaintext)))
	defer p.scratch.give(sealed)
	if err := seal(sealed, p.key, h, plaintext); err != nil {
		return err
	}
	file := sealed.Bytes()
	opened := p.scratch.take(openedSize(len(file)))
	defer p.scratch.wipe(opened)
	err := unseal(opened, p.key, Generation{Bytes: int64(len(file)), Digest: digest(file)}, h, file)
	if err == nil && opened.Len() != len(plaintext) {
		err = errors.New("what was opened is not what was sealed")
	}
	return err
}
