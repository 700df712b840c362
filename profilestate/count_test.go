package profilestate

import "testing"

func TestCount(t *testing.T) {
	f := newStore(t)
	f.commit(t, testRef, "one")
	f.commit(t, testRef, "two")
	other := Ref{"somebody-else", "p"}
	f.commit(t, other, "x")
	for account, want := range map[string]int64{testRef.Account: 2, other.Account: 1, "": 3, "nobody": 0} {
		files, bytes, more, err := f.Count(t.Context(), account)
		if err != nil || files != want || (bytes > 0) != (want > 0) || more {
			t.Errorf("%q: %d files, %d bytes, %v, %v", account, files, bytes, more, err)
		}
	}
}
