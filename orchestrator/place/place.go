// Package place holds regions as types, so that a value that must stay in the EU cannot be handed to something outside it.
//
// Out of scope: what data may be where (package residency, built on these types).
package place

import "fmt"

// Region is where a store stands.
type Region string

// Regions.
const (
	EU Region = "eu"
	US Region = "us"
)

// Placement is an account's choice of where its recordings are kept.
type Placement string

// Placements.
const (
	EUOnly     Placement = "eu"         // the EU copy only
	Replicated Placement = "replicated" // an EU copy and a US copy
)

// ParsePlacement accepts the two placements.
func ParsePlacement(s string) (Placement, error) {
	switch p := Placement(s); p {
	case EUOnly, Replicated:
		return p, nil
	}
	return "", fmt.Errorf("recordings placement %q: use %q or %q", s, EUOnly, Replicated)
}

// Regions lists where copies are kept, the EU first.
func (p Placement) Regions() []Region {
	if p == Replicated {
		return []Region{EU, US}
	}
	return []Region{EU}
}
