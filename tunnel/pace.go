package tunnel

import "time"

// Times of repairs.
const (
	shortTry   = 500 * time.Millisecond // at least
	tryLater   = 40 * time.Second       // of silence, from which on a repair is given probeLimit now and then
	seldom     = 60                     // a silence is that many times as long as the time between repairs, once it is long
	seldomTry  = 5 * time.Second        // the longest of these
	slowTry    = 10 * time.Second       // the longest wait for a gateway that answers handshakes, and nothing else
	slowRecent = 2 * slowTry            // an answer tells of now for so long
)

// pace says how long a repair is given before the next one.
//
//	nothing comes back        the path is cut: the shorter the time, the sooner the next repair finds it healed. Every host of
//	                          a gateway that is down does that, so after a minute the time grows, to 5 s
//	handshakes are answered   path and gateway are there, and slow: the same repair is given twice as long as the last one, up
//	                          to 10 s, since another would throw away what it has got
type pace struct {
	short    time.Duration // for the round trips that an answer takes
	patience time.Duration // the last wait for a slow gateway; 0: there was none
	random   func() float64
}

// try is for the n-th repair after a silence.
func (p *pace) try(n int, silence time.Duration) time.Duration {
	limit := p.short
	if silence >= tryLater && n%8 == 0 { // for a path that has become slower
		limit = probeLimit
	}
	if long := min(silence/seldom, seldomTry); long > limit {
		limit = p.about(long)
	}
	return limit
}

// wait is how much longer the last repair is given, whose handshake was answered.
func (p *pace) wait() time.Duration {
	p.patience = min(2*max(p.patience, p.short), slowTry)
	return p.about(p.patience)
}

// about spreads the hosts of a gateway over time.
func (p *pace) about(d time.Duration) time.Duration {
	return d + time.Duration(p.random()*float64(d)/4)
}
