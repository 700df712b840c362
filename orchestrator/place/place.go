// Package place holds regions as types, so that a value that must stay in the EU cannot be handed to something outside it.
//
// It knows the names that providers give to hosts, where these say what is there (hosts.go).
//
// Out of scope: what data may be where (package residency, built on these types).
package place

import (
	"fmt"
	"slices"
	"strings"
)

// Region is where a store stands.
type Region string

// Regions.
const (
	EU Region = "eu"
	US Region = "us"
	// Customers is wherever a customer has chosen for himself, under his own contract. Nothing of ours stands there.
	Customers Region = "customer"
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

// EULocation is a member state of the European Union that something is in, as its operator declares it: nobody can find out
// by himself where a disk stands. InEU makes one, and so does its text; the zero value is nowhere.
type EULocation struct{ country string }

// InEU accepts the member states, by their ISO 3166-1 alpha-2 code. The other countries of the EEA, and those that were a
// member state once, are not in the EU.
func InEU(country string) (EULocation, error) {
	if c := strings.ToUpper(country); slices.Contains(MemberStates(), c) {
		return EULocation{c}, nil
	}
	return EULocation{}, fmt.Errorf("%q is not in the EU: use the code of a member state, %s", country, strings.Join(MemberStates(), " "))
}

// UnmarshalText is InEU.
func (l *EULocation) UnmarshalText(text []byte) (err error) {
	*l, err = InEU(string(text))
	return err
}

// Country is the member state's code; empty: nowhere.
func (l EULocation) Country() string { return l.country }

// MemberStates are the codes of the EU's member states, in alphabetical order; Greece is GR, as in ISO 3166-1. Source:
// https://european-union.europa.eu/principles-countries-history/eu-countries_en
func MemberStates() []string {
	return []string{"AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU",
		"IE", "IT", "LT", "LU", "LV", "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK"}
}
