package httpapi

import (
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/profilestate"
)

// heldProblem is the answer for a profile that a session holds, with extension members as RFC 9457 has them.
type heldProblem struct {
	huma.ErrorModel
	Reason  string     `json:"reason"`
	Holder  string     `json:"holder,omitempty"`
	Expires *time.Time `json:"expires_at,omitempty"`
}

func newHeldProblem(p *huma.ErrorModel, held *orchestrator.ProfileHeldError) *heldProblem {
	v := &heldProblem{ErrorModel: *p, Reason: string(orchestrator.ProfileHeld), Holder: held.Holder}
	if !held.Until.IsZero() {
		v.Expires = &held.Until
	}
	return v
}

// profileProblem is the problem that an error about profile state or keys is; nil for any other.
func profileProblem(err error, log *zap.Logger) *huma.ErrorModel {
	var limit *profilestate.LimitError
	var format *profilestate.FormatError
	var damage *profilestate.DamageError
	var inUse *profilestate.InUseError
	switch {
	case errors.As(err, &limit):
		return &huma.ErrorModel{Type: typeTooLarge, Status: http.StatusRequestEntityTooLarge, Title: "Profile too large", Detail: limit.Error()}
	case errors.As(err, &format):
		return &huma.ErrorModel{Type: typeInvalid, Status: http.StatusUnprocessableEntity, Title: "Invalid storageState", Detail: format.Error(),
			Errors: []*huma.ErrorDetail{{Location: "body." + format.Where, Message: format.Problem}}}
	case errors.As(err, &damage):
		return &huma.ErrorModel{Type: typeDamaged, Status: http.StatusConflict, Title: "Profile damaged", Detail: damage.Advice()}
	case errors.As(err, &inUse):
		return &huma.ErrorModel{Type: typeConflict, Status: http.StatusConflict, Title: "Conflict", Detail: inUse.Error()}
	case errors.Is(err, profilestate.ErrVolume):
		return &huma.ErrorModel{Type: typeElsewhere, Status: http.StatusServiceUnavailable, Title: "Kept elsewhere",
			Detail: "the profile's files are on the volume of another orchestrator; ask that one"}
	case errors.Is(err, profilestate.ErrKeyDestroyed):
		return &huma.ErrorModel{Type: typeKeyDestroyed, Status: http.StatusGone, Title: "Key destroyed", Detail: profilestate.ErrKeyDestroyed.Error()}
	case errors.Is(err, profilestate.ErrNoKey), errors.Is(err, profilestate.ErrNoGeneration):
		return &huma.ErrorModel{Type: typeNotFound, Status: http.StatusNotFound, Title: "Not found", Detail: "there is no such generation, or none at all; GET /v1/profiles/{id}/generations lists them"}
	case errors.Is(err, profilestate.ErrCurrent):
		return &huma.ErrorModel{Type: typeConflict, Status: http.StatusConflict, Title: "Conflict", Detail: profilestate.ErrCurrent.Error()}
	case errors.Is(err, profilestate.ErrConflict):
		return &huma.ErrorModel{Type: typeConflict, Status: http.StatusConflict, Title: "Conflict", Detail: "the profile changed meanwhile; look at it, and try again"}
	case errors.Is(err, profilestate.ErrRootBusy):
		return &huma.ErrorModel{Type: typeConflict, Status: http.StatusConflict, Title: "Conflict", Detail: profilestate.ErrRootBusy.Error()}
	case errors.Is(err, profilestate.ErrBackup):
		return &huma.ErrorModel{Type: typeInvalid, Status: http.StatusUnprocessableEntity, Title: "Invalid backup", Detail: err.Error()}
	case errors.Is(err, profilestate.ErrKey):
		log.Error("a profile's key does not open", zap.Error(err))
		return &huma.ErrorModel{Type: typeUnavailable, Status: http.StatusServiceUnavailable, Title: "Key unavailable",
			Detail: "the profile's key cannot be opened with the root key that this orchestrator has; `driftctl keys status` says which is missing"}
	}
	return nil
}
