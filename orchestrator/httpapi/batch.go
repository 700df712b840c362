package httpapi

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

const batchPath = "/v1/sessions/{id}/batch"

// batchInput takes the body as it is: package batch says what is wrong with it, and where.
type batchInput struct {
	ByID
	RawBody []byte `contentType:"application/json"`
}

// Resolve implements huma.Resolver: the body has been read, and the batch may take longer than reading it may.
func (in *batchInput) Resolve(hc huma.Context) []error {
	_ = hc.SetReadDeadline(time.Time{}) // not every server has one
	return nil
}

// registerBatch has no time limit of its own: a batch has its session's.
func (s *server) registerBatch(a huma.API) {
	huma.Register(a, huma.Operation{
		OperationID: "run-batch", Method: http.MethodPost, Path: batchPath, Summary: "Run a list of W3C commands in one round trip",
		Description:  "Runs the steps beside the browser, one after the other. Answers 200 also when a step failed: see ok. What is malformed is a 400 that names the step, and nothing of it was run.",
		MaxBodyBytes: batch.MaxBody, BodyReadTimeout: bodyLimit, SkipValidateBody: true,
	}, s.batch)
	describeBatch(a.OpenAPI())
}

func (s *server) batch(ctx context.Context, in *batchInput) (*huma.StreamResponse, error) {
	// huma uses the buffer again, while a command may wait for a host that comes back.
	answer := s.Orchestrator.Command(ctx, in.ID, webdriver.Command{Method: http.MethodPost, Path: "/driftstack/batch", Body: bytes.Clone(in.RawBody)})
	if err := answer.Err(); err != nil {
		return nil, batchProblem(err)
	}
	value, ok := unwrap(answer.Body)
	if !ok {
		return nil, batchProblem(&webdriver.Error{Code: webdriver.UnknownError, Message: "the driver host's answer is not that of a batch", Data: map[string]any{"outcome": string(batch.Unknown)}})
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		hc.SetHeader("Content-Type", "application/json")
		hc.SetHeader("Cache-Control", "no-cache")
		_, w := humago.Unwrap(hc)
		c := http.NewResponseController(w)
		_ = c.SetWriteDeadline(time.Now().Add(bodyLimit)) // what the system does not take at once is held until the client takes it
		defer func() { _ = c.SetWriteDeadline(time.Time{}) }()
		_, _ = hc.BodyWriter().Write(value) // the client may be gone
	}}, nil
}

// unwrap takes the value out of the envelope that batch.Response.Answer makes, without a copy: it may be large.
func unwrap(envelope []byte) ([]byte, bool) {
	value, ok := bytes.CutPrefix(envelope, []byte(`{"value":`))
	if !ok {
		return nil, false
	}
	return bytes.CutSuffix(value, []byte("}"))
}

// batchProblem says what the W3C error of a whole batch is to the control plane.
func batchProblem(err error) *huma.ErrorModel {
	p := &huma.ErrorModel{Type: typeUnavailable, Status: http.StatusServiceUnavailable, Title: "Batch not run", Detail: err.Error()}
	var e *webdriver.Error
	if !errors.As(err, &e) {
		return p
	}
	p.Detail = e.Message
	if reason, _ := e.Data["reason"].(string); reason != "" {
		if row, ended := orchestrator.Endings()[orchestrator.Reason(reason)]; ended {
			p.Type, p.Status, p.Title = typeEnded, row.HTTP, "Session ended"
			return p
		}
	}
	switch {
	case e.Code == webdriver.InvalidArgument:
		p.Type, p.Status, p.Title = typeInvalid, http.StatusBadRequest, "Invalid batch"
	case e.Code == webdriver.InvalidSessionID:
		p.Type, p.Status, p.Title = typeNotFound, http.StatusNotFound, "Not found"
	case e.Code == webdriver.SessionNotCreated, e.Code == webdriver.Timeout:
		p.Type, p.Status, p.Title = typeConflict, http.StatusConflict, "Session not running yet"
	case e.Data["outcome"] == string(batch.Unknown):
		p.Type, p.Status, p.Title = typeOutcomeUnknown, http.StatusBadGateway, "Outcome unknown"
	}
	return p
}

// describeBatch documents what huma cannot see of a body that it does not decode.
func describeBatch(doc *huma.OpenAPI) {
	schema := func(t reflect.Type) *huma.Schema { return doc.Components.Schemas.Schema(t, true, t.Name()) }
	op := doc.Paths[batchPath].Post
	op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/json": {
		Schema: schema(reflect.TypeFor[api.Batch]()), Example: batchExample(),
	}}}
	op.Responses["200"] = &huma.Response{Description: "What became of each step.", Content: map[string]*huma.MediaType{"application/json": {
		Schema: schema(reflect.TypeFor[api.BatchResponse]()), Example: batchAnswerExample(),
	}}}
}

func batchExample() api.Batch {
	type object = map[string]any
	return api.Batch{StopOnError: true, Steps: []api.BatchStep{
		{Method: "POST", Path: "/url", Body: object{"url": "https://shop.example/login"}},
		{Name: "user", Method: "POST", Path: "/element", Body: object{"using": "css selector", "value": "#user"}},
		{Method: "POST", Path: "/element/{user}/value", Body: object{"text": "ada"}},
		{Name: "buttons", Method: "POST", Path: "/elements", Body: object{"using": "css selector", "value": "button"}},
		{Method: "POST", Path: "/element/{buttons#/0}/click"},
		{Name: "hello", Wait: &api.BatchWait{Element: &api.BatchLocator{Using: "css selector", Value: "#welcome"}, TimeoutMS: 5000}},
		{Method: "POST", Path: "/execute/sync", Body: object{"script": "return arguments[0].textContent", "args": []any{object{"$ref": "hello"}}}},
	}}
}

func batchAnswerExample() api.BatchResponse {
	return api.BatchResponse{Results: []api.BatchResult{
		{Status: http.StatusOK, Value: map[string]any{"element-6066-11e4-a52e-4f735466cecf": "node-1"}, TookUS: 4120},
		{Status: http.StatusNotFound, Value: &webdriver.Error{Code: webdriver.NoSuchElement, Message: "there is no #password"}, TookUS: 3987},
		{Outcome: string(batch.NotRun), Reason: "steps[1] failed, and stop_on_error is set"},
	}}
}
