package host

import "testing"

// TestRules: every grade can be come to, and got over or is known not to be; each says what to do.
func TestRules(t *testing.T) {
	for g := gradeNone + 1; g < grades; g++ {
		r := g.rule()
		if r.what == "" || r.todo == "" || r.strikes < 1 {
			t.Errorf("grade %d: %+v", g, r)
		}
		if g == gradePlatform {
			continue // nothing changes the system under a running agent
		}
		if r.first < retryEvery || r.most < r.first || r.goods < 1 {
			t.Errorf("grade %d is not probed: %+v", g, r)
		}
		if inRow := r.strikes > 1 && r.within == 0; inRow && r.clears == 0 {
			t.Errorf("grade %d: no good result ends a row of bad ones", g)
		}
		for n := range 100 {
			if d := r.delay(n); d < r.first || d > r.most || n > 0 && d < r.delay(n-1) {
				t.Errorf("grade %d: delay %s after %d bad probes", g, d, n)
			}
		}
	}
}
