package profilestate

import (
	"cmp"
	"encoding/json"
	"slices"
)

// hintRoom is kept free below the limit for the brackets of the encoded form and for the origins that hints adds.
const hintRoom = 64 << 10

// room makes the next snapshot small enough to be stored. Sites write what they like, and a login must not be lost
// because another site wrote too much: what grew most goes back to what it was before, or out if it was not there.
func (m *merger) room(l Limits) {
	before := make(map[string]Origin, len(m.previous.Origins))
	for _, o := range m.previous.Origins {
		before[o.Origin] = o
	}
	type change struct {
		origin string
		growth int
	}
	var changes []change
	total, kept := encodedSize(m.next.Cookies), 0
	for _, o := range m.next.Origins {
		old, was := before[o.Origin]
		size := encodedSize(o)
		growth := size
		if was {
			growth -= encodedSize(old)
			kept++
		}
		total += size
		changes = append(changes, change{o.Origin, growth})
	}
	slices.SortFunc(changes, func(a, b change) int {
		return cmp.Or(cmp.Compare(b.growth, a.growth), cmp.Compare(a.origin, b.origin))
	})
	free := max(0, l.Origins-kept) // for origins that are new
	back := make(map[string]bool)
	for _, c := range changes {
		if total > l.Bytes-hintRoom && c.growth > 0 {
			back[c.origin] = true
			total -= c.growth
		}
	}
	for _, c := range slices.Backward(changes) { // the smallest of the new ones stay
		if _, was := before[c.origin]; was || back[c.origin] {
			continue
		}
		if free--; free < 0 {
			back[c.origin] = true
		}
	}
	var out []Origin
	for _, o := range m.next.Origins {
		old := before[o.Origin]
		switch {
		case !back[o.Origin]:
			out = append(out, o)
			continue
		case len(old.LocalStorage) > 0:
			out = append(out, old)
		}
		m.report.items = append(m.report.items, Item{Kind: KindOrigin, Host: hostOf(o.Origin), Status: Dropped, Reason: ReasonLimit})
	}
	m.next.Origins = out
}

// encodedSize is how many bytes v takes in a snapshot. What cannot be encoded is refused elsewhere.
func encodedSize(v any) int {
	var n counter
	e := json.NewEncoder(&n)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
	return int(n)
}

type counter int

func (n *counter) Write(b []byte) (int, error) {
	*n += counter(len(b))
	return len(b), nil
}
