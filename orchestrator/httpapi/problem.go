package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

// Problem types, RFC 9457. They are names, not pages.
const (
	typeInvalid     = "urn:driftstack:problem:invalid"
	typeNotFound    = "urn:driftstack:problem:not-found"
	typeNoDevice    = "urn:driftstack:problem:no-such-device"
	typeProfileHeld = "urn:driftstack:problem:profile-held"
	typeQueueFull   = "urn:driftstack:problem:queue-full"
	typeQuota       = "urn:driftstack:problem:quota"
	typeConflict    = "urn:driftstack:problem:conflict"
	typeStreams     = "urn:driftstack:problem:too-many-streams"
	typeElsewhere   = "urn:driftstack:problem:elsewhere"
	typeUnavailable = "urn:driftstack:problem:unavailable"
	typeEnded       = "urn:driftstack:problem:session-ended"
	typeInternal    = "urn:driftstack:problem:internal"

	typeTooLarge     = "urn:driftstack:problem:too-large"
	typeDamaged      = "urn:driftstack:problem:profile-damaged"
	typeKeyDestroyed = "urn:driftstack:problem:key-destroyed"

	typeNotStored   = "urn:driftstack:problem:recording-not-stored"
	typeEmpty       = "urn:driftstack:problem:recording-empty"
	typeLost        = "urn:driftstack:problem:recording-lost"
	typeQuarantined = "urn:driftstack:problem:recording-quarantined"
	typeRemoved     = "urn:driftstack:problem:copy-removed"

	typeOutcomeUnknown = "urn:driftstack:problem:outcome-unknown"
)

// statusClientClosed is what the log of a request says whose client left; nobody receives it.
const statusClientClosed = 499

// problem turns an error of a call into what huma writes.
func (s *server) problem(err error) error {
	if err == nil {
		return nil
	}
	p := problemOf(err, s.Log)
	var held *orchestrator.ProfileHeldError
	if errors.As(err, &held) {
		return newHeldProblem(p, held)
	}
	if after := retryAfter(err); after > 0 {
		return huma.ErrorWithHeaders(p, http.Header{"Retry-After": {seconds(after)}})
	}
	return p
}

func retryAfter(err error) time.Duration {
	var full *orchestrator.QueueFullError
	var quota *orchestrator.QuotaError
	switch {
	case errors.As(err, &full):
		return full.RetryAfter
	case errors.As(err, &quota):
		return quota.RetryAfter
	case errors.Is(err, orchestrator.ErrUnavailable), errors.Is(err, orchestrator.ErrElsewhere), errors.Is(err, context.DeadlineExceeded):
		return 2 * time.Second
	}
	return 0
}

func seconds(d time.Duration) string { return strconv.Itoa(int(math.Ceil(d.Seconds()))) }

// problemOf is the one place that says which problem an error is.
func problemOf(err error, log *zap.Logger) *huma.ErrorModel {
	var invalid *orchestrator.InvalidError
	var held *orchestrator.ProfileHeldError
	var full *orchestrator.QueueFullError
	var quota *orchestrator.QuotaError
	var conflict *orchestrator.ConflictError
	var unmatched *orchestrator.UnmatchedError
	var none *orchestrator.NoDeviceError
	var end *orchestrator.EndError
	var missing *orchestrator.MissingError
	var streams *orchestrator.TooManyStreamsError
	switch {
	case errors.As(err, &end):
		return &huma.ErrorModel{Type: typeEnded, Status: orchestrator.Endings()[end.Reason].HTTP, Title: "Session ended", Detail: end.Error()}
	case errors.As(err, &invalid):
		return &huma.ErrorModel{Type: typeInvalid, Status: http.StatusUnprocessableEntity, Title: "Invalid request", Detail: invalid.Error(),
			Errors: []*huma.ErrorDetail{{Location: invalid.Field, Message: invalid.Problem}}}
	case errors.As(err, &held):
		return &huma.ErrorModel{Type: typeProfileHeld, Status: http.StatusConflict, Title: "Profile in use", Detail: held.Error()}
	case errors.As(err, &full):
		return &huma.ErrorModel{Type: typeQueueFull, Status: http.StatusTooManyRequests, Title: "Queue full", Detail: full.Error()}
	case errors.As(err, &quota):
		return &huma.ErrorModel{Type: typeQuota, Status: orchestrator.Endings()[orchestrator.Quota].HTTP, Title: "Over quota", Detail: quota.Error(),
			Errors: []*huma.ErrorDetail{{Location: "account", Message: quota.Error()}}}
	case errors.As(err, &streams):
		return &huma.ErrorModel{Type: typeStreams, Status: http.StatusTooManyRequests, Title: "Too many streams", Detail: streams.Error()}
	case errors.Is(err, orchestrator.ErrElsewhere):
		return &huma.ErrorModel{Type: typeElsewhere, Status: http.StatusServiceUnavailable, Title: "Run elsewhere",
			Detail: "the session is not run by this orchestrator; if it is being taken over, try again"}
	case errors.As(err, &conflict):
		return &huma.ErrorModel{Type: typeConflict, Status: http.StatusConflict, Title: "Conflict", Detail: conflict.Error()}
	case errors.As(err, &unmatched):
		return &huma.ErrorModel{Type: typeNoDevice, Status: http.StatusUnprocessableEntity, Title: "No such device", Detail: unmatched.Error(),
			Errors: []*huma.ErrorDetail{{Location: "capabilities", Message: unmatched.Error()}}}
	case errors.As(err, &none):
		p := &huma.ErrorModel{Type: typeNoDevice, Status: http.StatusUnprocessableEntity, Title: "No such device", Detail: none.Error()}
		for _, k := range none.Keys {
			at := "device." + string(k.Key)
			if k.Key == api.KeyBrowser || k.Key == api.KeyBiDi {
				at = "capabilities"
			}
			p.Errors = append(p.Errors, &huma.ErrorDetail{Location: at, Message: k.Says, Value: k.Wanted})
		}
		return p
	case errors.Is(err, orchestrator.ErrNoSuchDevice):
		return &huma.ErrorModel{Type: typeNoDevice, Status: http.StatusUnprocessableEntity, Title: "No such device",
			Detail: "no enrolled device could ever match what was asked for; GET /v1/devices lists them"}
	case errors.As(err, &missing):
		return &huma.ErrorModel{Type: typeNotFound, Status: http.StatusNotFound, Title: "Not found", Detail: missing.Error()}
	case errors.Is(err, orchestrator.ErrNotFound):
		return &huma.ErrorModel{Type: typeNotFound, Status: http.StatusNotFound, Title: "Not found", Detail: "there is no such thing, or no longer"}
	case errors.Is(err, orchestrator.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		log.Warn("request not served", zap.Error(err))
		return &huma.ErrorModel{Type: typeUnavailable, Status: http.StatusServiceUnavailable, Title: "Unavailable", Detail: "the database cannot be reached right now; try again"}
	case errors.Is(err, context.Canceled):
		return &huma.ErrorModel{Status: statusClientClosed, Title: "Client closed request"}
	}
	if p := profileProblem(err, log); p != nil {
		return p
	}
	log.Error("request failed", zap.Error(err))
	return &huma.ErrorModel{Type: typeInternal, Status: http.StatusInternalServerError, Title: "Internal error", Detail: "a defect of ours; it is in our log"}
}

func writeProblem(w http.ResponseWriter, p *huma.ErrorModel) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}
