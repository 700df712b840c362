package profilestate

import (
	"context"
	"fmt"
)

// LostLogins counts the logins that the profile reliably had and next, the capture of a session that began with current, has no more.
// A generation with any is better published as a candidate: nobody can tell a logout that was meant from a site that threw the login out.
//
// No driver says what a login is. Counted is a cookie that is HttpOnly, as the identifier of a session ought to be (OWASP, Session
// Management Cheat Sheet), that has a value, has not expired, and is stable: in the generation that the session began with and in the good one
// before it, with whatever value, because sites rotate them. A generation that somebody imported or cloned was chosen, and needs none
// before it.
func (s *Store) LostLogins(ctx context.Context, ref Ref, head Head, current, next *Snapshot) (int, error) {
	has := next.values()
	var lost []cookieKey
	for _, c := range current.Cookies {
		if c.HTTPOnly && c.Value != "" && !c.expired(s.now()) && has[c.key()] == "" {
			lost = append(lost, c.key())
		}
	}
	if len(lost) == 0 || head.Current.Source != FromSession {
		return len(lost), nil
	}
	before, err := s.before(ctx, ref, head)
	if err != nil {
		return 0, fmt.Errorf("compare with earlier generations of profile %s: %w", ref.Profile, err)
	}
	had, n := before.values(), 0
	for _, key := range lost {
		if had[key] != "" {
			n++
		}
	}
	return n, nil
}

// before is the newest good generation older than the current one that opens; an empty one where there is none.
func (s *Store) before(ctx context.Context, ref Ref, head Head) (*Snapshot, error) {
	key, err := s.keys.open(ctx, ref, head.Destroyed)
	if err != nil {
		return nil, err
	}
	number, err := s.lastGood(ctx, ref, head.Current.Number, key)
	if err != nil || number == 0 {
		return &Snapshot{}, err
	}
	g, err := s.generation(ctx, ref, number)
	if err != nil {
		return nil, err
	}
	return s.open(ref, g, key)
}

func (s *Snapshot) values() map[cookieKey]string {
	m := make(map[cookieKey]string, len(s.Cookies))
	for _, c := range s.Cookies {
		m[c.key()] = c.Value
	}
	return m
}
