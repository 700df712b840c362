package host

import (
	"context"
	"errors"
	"time"

	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/driverproxy/wire"
)

var errBrokeOff = errors.New("host: the driver broke off")

// runBatch runs the steps of a batch as commands like any other, all under the batch's number: it is executed at most once as a
// whole. It is answered as done also when the driver was lost in its middle, since the steps before have their results.
func (s *session) runBatch(ctx context.Context, c wire.Command) wire.Answer {
	b, refused := batch.Parse(c.Body)
	if refused != nil {
		a := refused.Answer()
		return wire.Answer{Seq: c.Seq, Outcome: wire.OutcomeNotRun, Status: a.Status, Body: a.Body}
	}
	begin := time.Now()
	response := b.Run(ctx, batch.Driver{Now: time.Now, Do: func(ctx context.Context, step webdriver.Command) (webdriver.Answer, error) {
		a := s.execute(ctx, wire.Command{Seq: c.Seq, Method: step.Method, Path: step.Path, Body: step.Body})
		switch a.Outcome {
		case wire.OutcomeDone:
			return webdriver.Answer{Status: a.Status, Body: a.Body}, nil
		case wire.OutcomeNotRun:
			return webdriver.Answer{}, batch.ErrNotRun
		}
		return webdriver.Answer{}, errBrokeOff
	}})
	a := response.Answer()
	return wire.Answer{Seq: c.Seq, Outcome: wire.OutcomeDone, Status: a.Status, Took: time.Since(begin), Body: a.Body}
}
