package profilestate

import (
	"bytes"
	"sync"
)

// scratch lends memory for sealed files and for what is in them: of a fresh MiB, the faults of its pages cost more than its encryption.
type scratch struct{ pool sync.Pool }

// take lends an empty buffer with room for n bytes. Who has it writes no more into it than that, or what was in it is left elsewhere.
func (s *scratch) take(n int) *bytes.Buffer {
	b, _ := s.pool.Get().(*bytes.Buffer)
	if b == nil {
		b = new(bytes.Buffer)
	}
	b.Grow(n)
	return b
}

// give takes back a sealed file.
func (s *scratch) give(b *bytes.Buffer) {
	b.Reset()
	s.pool.Put(b)
}

// wipe takes back what was in one. Nothing of it stays in this memory.
func (s *scratch) wipe(b *bytes.Buffer) {
	clear(b.Bytes())
	s.give(b)
}
