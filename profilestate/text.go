package profilestate

import (
	"errors"
	"fmt"
)

// textVersion begins what SealText makes; the epoch of the root key follows as a string with its length before it.
const textVersion = 1

// SealText seals text of a customer that waits in a database for what it is about: it opens for that and that account alone, with the root key, until the epoch of that
// is retired.
func (s *Store) SealText(account, about string, text []byte) ([]byte, error) {
	epoch, root, err := s.keys.root.forWrapping()
	if err != nil {
		return nil, err
	}
	if len(epoch) > 255 {
		return nil, fmt.Errorf("root key: the name of its epoch is too long: %q", epoch)
	}
	sealed, err := root.Encrypt(text, s.keys.context("text", account, about, 0))
	if err != nil {
		return nil, fmt.Errorf("seal text: %w", err)
	}
	return append(append([]byte{textVersion, byte(len(epoch))}, epoch...), sealed...), nil
}

// OpenText gives back what SealText was given. Errors: ErrKey, and one that says that it is not what was sealed.
func (s *Store) OpenText(account, about string, sealed []byte) ([]byte, error) {
	if len(sealed) < 2 || sealed[0] != textVersion || len(sealed) < 2+int(sealed[1]) {
		return nil, errors.New("sealed text: it is cut short, or of a version that is not known")
	}
	epoch, rest := sealed[2:2+int(sealed[1])], sealed[2+int(sealed[1]):]
	root, err := s.keys.root.at(string(epoch))
	if err != nil {
		return nil, err
	}
	text, err := root.Decrypt(rest, s.keys.context("text", account, about, 0))
	if err != nil { // Tink does not say why
		return nil, errors.New("sealed text: it was altered, or is not of this session")
	}
	return text, nil
}
