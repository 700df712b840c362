package orchestrator

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Version is an operating system's version: major, minor, patch, build. What is not written is zero.
type Version [4]int32

// ParseVersion reads 1 to 4 numbers with dots between them. ok is false for anything else: such a device is in no range.
func ParseVersion(s string) (v Version, ok bool) {
	v, _, err := parseVersion(s)
	return v, err == nil
}

// VersionRange is the versions from Least to below Below; nil is no bound. The zero value holds every version.
type VersionRange struct{ Least, Below *Version }

// Bounds of a range's text.
const (
	maxRange  = 64     // characters
	maxNumber = 999999 // in a version
)

// ParseVersionRange reads one or more bounds, with spaces between them, that a version must all meet:
//
//	17        begins with 17: 17, 17.0.1, 17.6
//	>=17.4    17.4 or newer;  >17.4 newer (17.4.1 is);  <=17.4 and <18 likewise
//	=17.4     17.4, which 17.4.0 is too, and nothing else
//
// The empty text holds every version. What no version can meet is an error, whose text is for the caller.
func ParseVersionRange(s string) (r VersionRange, err error) {
	if len(s) > maxRange {
		return r, fmt.Errorf("at most %d characters", maxRange)
	}
	for _, bound := range strings.Fields(s) {
		least, below, err := parseBound(bound)
		if err != nil {
			return VersionRange{}, err
		}
		if least != nil && (r.Least == nil || r.Least.compare(*least) < 0) {
			r.Least = least
		}
		if below != nil && (r.Below == nil || r.Below.compare(*below) > 0) {
			r.Below = below
		}
	}
	if r.Below != nil && (*r.Below == Version{} || r.Least != nil && r.Least.compare(*r.Below) >= 0) {
		return VersionRange{}, fmt.Errorf("no version is in %q", s)
	}
	return r, nil
}

// Holds says whether a version is in the range.
func (r VersionRange) Holds(v Version) bool {
	return (r.Least == nil || v.compare(*r.Least) >= 0) && (r.Below == nil || v.compare(*r.Below) < 0)
}

func (v Version) compare(w Version) int { return slices.Compare(v[:], w[:]) }

// after is the version that follows v when the number at place i counts.
func (v Version) after(i int) *Version {
	v[i]++
	clear(v[i+1:])
	return &v
}

func parseBound(s string) (least, below *Version, err error) {
	text := strings.TrimLeft(s, "<>=")
	v, numbers, err := parseVersion(text)
	if err != nil {
		return nil, nil, fmt.Errorf("%q: %w; write bounds as >=17.4 <18, or one version, as 17", s, err)
	}
	last := len(v) - 1
	switch op := s[:len(s)-len(text)]; op {
	case "":
		return &v, v.after(numbers - 1), nil
	case "=":
		return &v, v.after(last), nil
	case ">=":
		return &v, nil, nil
	case ">":
		return v.after(last), nil, nil
	case "<":
		return nil, &v, nil
	case "<=":
		return nil, v.after(last), nil
	default:
		return nil, nil, fmt.Errorf("%q: %q is none of >= > <= < =", s, op)
	}
}

func parseVersion(s string) (v Version, numbers int, err error) {
	parts := strings.Split(s, ".")
	if len(parts) > len(v) {
		return v, 0, fmt.Errorf("a version has at most %d numbers", len(v))
	}
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 32)
		if err != nil || n > maxNumber {
			return Version{}, 0, fmt.Errorf("a version is numbers up to %d with dots between them", maxNumber)
		}
		v[i] = int32(n)
	}
	return v, len(parts), nil
}
