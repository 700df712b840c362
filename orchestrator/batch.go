package orchestrator

import (
	"time"

	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// limit is how long a command may take. A batch may take as long as a command, and besides as long as its waits ask for; one
// that is malformed is refused here, before it costs a round trip.
func (l *live) limit(route webdriver.Route, body []byte) (time.Duration, *webdriver.Error) {
	if route != webdriver.RouteBatch {
		return l.claim.Command, nil
	}
	b, refused := batch.Parse(body)
	if refused != nil {
		return 0, refused
	}
	return min(l.claim.Command+b.Waits(), l.claim.Max), nil
}

// steps notes the steps of a batch that was answered as commands of their own: a line in the log, and the pages they went to. They
// have no time of their own at this end.
func (l *live) steps(body []byte, a webdriver.Answer) {
	b, refused := batch.Parse(body)
	var r batch.Response
	if refused != nil || a.Status >= 400 || a.Value(&r) != nil || len(r.Results) != b.Len() {
		return
	}
	for i, v := range r.Results {
		if v.Outcome == batch.NotRun {
			continue
		}
		route := b.Route(i)
		l.emit(Event{Kind: EventCommand, Route: route, Status: v.Status, Driver: time.Duration(v.TookUS) * time.Microsecond,
			BytesIn: int64(b.Size(i)), BytesOut: int64(len(v.Value))})
		if v.Err() != nil {
			continue
		}
		switch route {
		case webdriver.RouteNavigateTo:
			if c, err := b.Command(i, r.Results); err == nil { // the URL may be what an earlier step found
				l.notice(route, c.Body, webdriver.Answer{})
			}
		case webdriver.RouteGetCurrentURL:
			var at string
			if v.Decode(&at) == nil {
				l.visit(at)
			}
		}
	}
}
