package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	"github.com/driftstack/fleet/driverproxy/batch"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

func TestBatchProblems(t *testing.T) {
	data := func(k, v string) map[string]any { return map[string]any{k: v} }
	for _, c := range []struct {
		err    error
		kind   string
		status int
	}{
		{&webdriver.Error{Code: webdriver.InvalidArgument, Message: "m"}, typeInvalid, 400},
		{&webdriver.Error{Code: webdriver.InvalidSessionID, Message: "m"}, typeNotFound, 404},
		{&webdriver.Error{Code: webdriver.InvalidSessionID, Message: "m", Data: data("reason", "host_lost")}, typeEnded, orchestrator.Endings()[orchestrator.HostLost].HTTP},
		{&webdriver.Error{Code: webdriver.SessionNotCreated, Message: "m", Data: data("reason", "device_unavailable")}, typeEnded, 503},
		{&webdriver.Error{Code: webdriver.SessionNotCreated, Message: "m"}, typeConflict, 409},
		{&webdriver.Error{Code: webdriver.Timeout, Message: "m"}, typeConflict, 409},
		{&webdriver.Error{Code: webdriver.UnknownError, Message: "m", Data: data("outcome", "unknown")}, typeOutcomeUnknown, 502},
		{&webdriver.Error{Code: webdriver.UnknownError, Message: "m", Data: data("outcome", "not_run")}, typeUnavailable, 503},
		{&webdriver.Error{Code: webdriver.UnknownCommand, Message: "m"}, typeUnavailable, 503},
		{errors.New("m"), typeUnavailable, 503},
	} {
		var p *huma.ErrorModel
		if err := batchProblem(c.err); !errors.As(err, &p) || p.Type != c.kind || p.Status != c.status || !strings.HasSuffix(p.Detail, "m") {
			t.Errorf("%v became %+v", c.err, err)
		}
	}
}

func TestUnwrap(t *testing.T) {
	r := batch.Response{Results: []batch.Result{{Status: 200, Value: json.RawMessage(`{"value":{}}`)}}, OK: true}
	v, ok := unwrap(r.Answer().Body)
	var back batch.Response
	if !ok || json.Unmarshal(v, &back) != nil || !reflect.DeepEqual(back, r) {
		t.Errorf("%s", v)
	}
	if _, ok := unwrap([]byte(`{"error":1}`)); ok {
		t.Error("what is no envelope was taken")
	}
}

// The document shows what package batch takes: the same fields, and an example that is sound.
func TestBatchIsDocumentedAsItIs(t *testing.T) {
	for documented, real := range map[reflect.Type]reflect.Type{
		reflect.TypeFor[api.Batch]():         reflect.TypeFor[batch.Request](),
		reflect.TypeFor[api.BatchResponse](): reflect.TypeFor[batch.Response](),
	} {
		if a, b := fields(documented), fields(real); !slices.Equal(a, b) {
			t.Errorf("%v has %v, and %v has %v", documented, a, real, b)
		}
	}
	w := httptest.NewRecorder()
	New(Config{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/openapi.json", nil))
	type media struct {
		Content map[string]struct {
			Schema  map[string]string `json:"schema"`
			Example json.RawMessage   `json:"example"`
		} `json:"content"`
	}
	var doc struct {
		Paths map[string]map[string]struct {
			RequestBody media            `json:"requestBody"`
			Responses   map[string]media `json:"responses"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	op := doc.Paths["/v1/sessions/{id}/batch"]["post"]
	asked, answered := op.RequestBody.Content["application/json"], op.Responses["200"].Content["application/json"]
	if asked.Schema["$ref"] != "#/components/schemas/Batch" || answered.Schema["$ref"] != "#/components/schemas/BatchResponse" {
		t.Errorf("%v is answered by %v", asked.Schema, answered.Schema)
	}
	if _, refused := batch.Parse(asked.Example); refused != nil {
		t.Errorf("%s: %v", asked.Example, refused)
	}
	var r batch.Response
	if err := json.Unmarshal(answered.Example, &r); err != nil || len(r.Results) != 3 {
		t.Fatalf("%s, %v", answered.Example, err)
	}
	var e *webdriver.Error
	if err := r.Results[1].Err(); !errors.As(err, &e) || e.Code != webdriver.NoSuchElement || r.Results[1].Status != http.StatusNotFound {
		t.Errorf("%v", err)
	}
}

// fields are the names in JSON of a type and of the structs below it.
func fields(t reflect.Type) []string {
	names := map[string]bool{}
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		names[name] = true
		for _, below := range fields(t.Field(i).Type) {
			names[fmt.Sprintf("%s.%s", name, below)] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}
