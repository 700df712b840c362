package profilestate

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	streamHead  = 40 // length, salt and nonce prefix of Tink's stream
	segmentSize = 4096
	segmentTag  = 16
)

// sealedSize is the size of a file with n bytes of plaintext, rounded up a little.
func sealedSize(n int) int {
	return headerSize + streamHead + n + (n/(segmentSize-segmentTag)+2)*segmentTag
}

// seal writes a whole sealed file into out, which has room for sealedSize.
func seal(out *bytes.Buffer, key dataKey, h header, plaintext []byte) error {
	head := h.marshal()
	out.Write(head)
	w, err := key.stream.NewEncryptingWriter(out, head)
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	_, err = w.Write(plaintext)
	if err := errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	return nil
}

// digest is the SHA-256 of a sealed file's length, header, stream head and the tag of each of its segments. What is
// between the tags is what they authenticate: under the file's own key no other ciphertext has the same ones, so that a file which has
// this digest and opens is the one that was published. It costs a hundredth of hashing everything.
func digest(file []byte) Digest {
	sum := sha256.New()
	sum.Write(binary.BigEndian.AppendUint64(nil, uint64(len(file))))
	sum.Write(file[:min(len(file), headerSize+streamHead)])
	for at := headerSize; at < len(file); at += segmentSize { // the first segment is shorter by the stream's head
		end := min(at+segmentSize, len(file))
		sum.Write(file[max(at, end-segmentTag):end])
	}
	return Digest(sum.Sum(nil))
}

// openedSize is room for what is in a file of n bytes, and for reading it to its end.
func openedSize(n int) int { return n + bytes.MinRead }

// unseal opens a whole file into out, which has room for openedSize. What is in out is worth nothing on an error: Tink's reader hands
// out bytes before it has seen the end.
func unseal(out *bytes.Buffer, key dataKey, want Generation, wantHeader header, file []byte) error {
	if int64(len(file)) != want.Bytes || digest(file) != want.Digest {
		return errors.New("the file is not the one that was published")
	}
	h, err := parseHeader(file)
	if err != nil {
		return err
	}
	wantHeader.epoch, wantHeader.previous = h.epoch, h.previous
	if h != wantHeader {
		return errors.New("the file belongs to another region, account, profile, generation or term")
	}
	if !key.known[h.epoch] {
		return fmt.Errorf("%w: the key it was sealed with is gone", ErrKey)
	}
	return decryptBody(out, key, file)
}

// decryptBody authenticates header and body.
func decryptBody(out *bytes.Buffer, key dataKey, file []byte) error {
	r, err := key.stream.NewDecryptingReader(bytes.NewReader(file[headerSize:]), file[:headerSize])
	if err != nil {
		return errors.New("the file does not open with the profile's key")
	}
	if _, err := out.ReadFrom(r); err != nil {
		return errors.New("the file does not open with the profile's key")
	}
	return nil
}
