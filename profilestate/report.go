package profilestate

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"

	"github.com/driftstack/fleet/driverproxy/inert"
)

// Kind is a kind of profile state.
type Kind string

// Kinds of items.
const (
	KindCookie       Kind = "cookie"
	KindLocalStorage Kind = "local_storage"
	KindOrigin       Kind = "origin" // a page of an origin could not be looked at during a capture
)

// Status is what became of an item.
type Status string

// Statuses of a restore.
const (
	Restored    Status = "restored"    // read back equal
	Altered     Status = "altered"     // the browser has it with another value or other attributes
	Dropped     Status = "dropped"     // the browser does not have it, or nobody could tell
	Unsupported Status = "unsupported" // drivers have no way to set or to keep it
)

// Statuses of a capture, besides Dropped and Unsupported.
const (
	Captured Status = "captured" // seen in the browser
	Kept     Status = "kept"     // not observable, so taken over from the generation before
	Removed  Status = "removed"  // the browser had it and has it no more, or it expired
)

// Reason says why an item is not Restored or Captured. It is one of a few fixed texts, never something from a page.
type Reason string

// Reasons.
const (
	ReasonUnreachable Reason = Reason(inert.Unreachable)
	ReasonTimeout     Reason = Reason(inert.Timeout)
	ReasonSandboxed   Reason = Reason(inert.Sandboxed)
	ReasonRefused     Reason = "the driver refused it"
	ReasonIgnored     Reason = "the browser did not keep it"
	ReasonExpired     Reason = "it has expired"
	ReasonUnverified  Reason = "it was set but no page could show it"
	ReasonEmptyValue  Reason = "drivers cannot set an HttpOnly cookie with an empty name or value"
	ReasonValue       Reason = "its value changed"
	ReasonAttributes  Reason = "its attributes changed"
	ReasonExpiry      Reason = "its expiry changed"
	ReasonPublic      Reason = "its domain is a public suffix: it would reach the sites of others"
	ReasonMalformed   Reason = "it cannot be written as storageState"
	ReasonLimit       Reason = "there is no room for it"
)

// Item is one cookie or localStorage item of a report. It has no name and no value: the host is all that people reading
// about it may see. Of an altered item the report keeps privately what the browser made of it.
type Item struct {
	Kind   Kind
	Host   string
	Status Status
	Reason Reason

	cookie cookieKey  // of a cookie
	entry  storageKey // of a localStorage item
	made   Cookie     // what the browser made of an altered cookie
	text   JSString   // and of an altered localStorage value
}

type storageKey struct {
	origin string
	name   JSString
}

// String leaves out what the item privately holds.
func (i Item) String() string {
	return fmt.Sprintf("%s of %s: %s (%s)", i.Kind, i.Host, i.Status, i.Reason)
}

// GoString is String.
func (i Item) GoString() string { return i.String() }

// MarshalJSON writes the four exported fields.
func (i Item) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Kind   Kind   `json:"kind"`
		Host   string `json:"host"`
		Status Status `json:"status"`
		Reason Reason `json:"reason,omitempty"`
	}{i.Kind, i.Host, i.Status, i.Reason})
}

// Report says what became of every item of a snapshot. Printed, logged or marshalled it is its Counts and nothing else.
// The report of a restore is also what the following capture needs to tell "gone" from "was never there"; the zero
// Report says that nothing was restored.
type Report struct{ items []Item }

// Counts is how many items have each status.
type Counts struct {
	Restored    int `json:"restored"`
	Altered     int `json:"altered"`
	Dropped     int `json:"dropped"`
	Unsupported int `json:"unsupported"`
	Captured    int `json:"captured"`
	Kept        int `json:"kept"`
	Removed     int `json:"removed"`
}

// Items lists the items, for the profile's owner. Hosts in it say where somebody has been: it does not belong in logs.
func (r Report) Items() []Item { return append([]Item(nil), r.items...) }

// NamedItem is an Item with its name, which is the customer's: it is told to the profile's owner, and to nobody else.
type NamedItem struct {
	Item
	Domain, Path string // of a cookie
	Origin       string // of a localStorage item
	Name         string
}

// Named lists the items with their names, those first that are not as they should be.
func (r Report) Named() []NamedItem {
	list := make([]NamedItem, 0, len(r.items))
	for _, i := range r.items {
		n := NamedItem{Item: i, Domain: i.cookie.domain, Path: i.cookie.path, Origin: i.entry.origin, Name: i.cookie.name}
		if i.Kind == KindLocalStorage {
			n.Name = string(i.entry.name)
		}
		list = append(list, n)
	}
	slices.SortStableFunc(list, func(a, b NamedItem) int {
		switch {
		case a.Status != Restored && b.Status == Restored:
			return -1
		case a.Status == Restored && b.Status != Restored:
			return 1
		}
		return 0
	})
	return list
}

// Counts adds the items up.
func (r Report) Counts() Counts {
	var c Counts
	for _, i := range r.items {
		switch i.Status {
		case Restored:
			c.Restored++
		case Altered:
			c.Altered++
		case Dropped:
			c.Dropped++
		case Unsupported:
			c.Unsupported++
		case Captured:
			c.Captured++
		case Kept:
			c.Kept++
		case Removed:
			c.Removed++
		}
	}
	return c
}

// MarshalJSON writes Counts.
func (r Report) MarshalJSON() ([]byte, error) { return json.Marshal(r.Counts()) }

// String is Counts as text.
func (r Report) String() string {
	c := r.Counts()
	return fmt.Sprintf("restored %d, altered %d, dropped %d, unsupported %d, captured %d, kept %d, removed %d",
		c.Restored, c.Altered, c.Dropped, c.Unsupported, c.Captured, c.Kept, c.Removed)
}

// GoString is String.
func (r Report) GoString() string { return r.String() }

func (r *Report) cookie(c Cookie, s Status, why Reason) {
	r.items = append(r.items, Item{Kind: KindCookie, Host: c.host(), Status: s, Reason: why, cookie: c.key()})
}

func (r *Report) alteredCookie(c, made Cookie, why Reason) {
	r.items = append(r.items, Item{Kind: KindCookie, Host: c.host(), Status: Altered, Reason: why, cookie: c.key(), made: made})
}

func (r *Report) entry(origin string, name JSString, s Status, why Reason) {
	r.items = append(r.items, Item{Kind: KindLocalStorage, Host: hostOf(origin), Status: s, Reason: why, entry: storageKey{origin, name}})
}

func (r *Report) alteredEntry(origin string, name, text JSString) {
	r.items = append(r.items, Item{Kind: KindLocalStorage, Host: hostOf(origin), Status: Altered, Reason: ReasonValue,
		entry: storageKey{origin, name}, text: text})
}

// confirmed is what a restore left in the browser: only of that can a capture say that it is gone.
type confirmed struct {
	cookies map[cookieKey]Item
	entries map[storageKey]Item
}

func (r Report) confirmed() confirmed {
	c := confirmed{make(map[cookieKey]Item), make(map[storageKey]Item)}
	for _, i := range r.items {
		if i.Status != Restored && i.Status != Altered {
			continue
		}
		switch i.Kind {
		case KindCookie:
			c.cookies[i.cookie] = i
		case KindLocalStorage:
			c.entries[i.entry] = i
		}
	}
	return c
}

func hostOf(origin string) string {
	u, err := url.Parse(origin)
	if err != nil {
		return ""
	}
	return u.Hostname()
}
