package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
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
	b, err := json.Marshal(batchExample())
	if err != nil {
		t.Fatal(err)
	}
	if _, refused := batch.Parse(b); refused != nil {
		t.Errorf("%s: %v", b, refused)
	}
	b, err = json.Marshal(batchAnswerExample())
	var r batch.Response
	if err != nil || json.Unmarshal(b, &r) != nil {
		t.Fatalf("%s, %v", b, err)
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
