package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/tmaxmax/go-sse"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
)

const (
	eventsPage    = 500
	followTick    = time.Second      // what a lost notification costs
	followComment = 15 * time.Second // keeps middleboxes from cutting a quiet stream
	followWrite   = 30 * time.Second // a follower that takes nothing for so long is gone
)

// events answers with a session's log as JSON, or follows it as server-sent events: the id of each is its Seq, so that a
// client that comes back with Last-Event-ID misses nothing and gets nothing twice. The stream ends with the session.
func (s *server) events(ctx context.Context, in *struct {
	ByID
	Follow      bool  `query:"follow" doc:"Stream server-sent events until the session has ended."`
	After       int64 `query:"after" minimum:"0" doc:"Only events with a higher seq."`
	Limit       int   `query:"limit" minimum:"1" maximum:"1000" default:"500" doc:"Events at most; not for follow."`
	LastEventID int64 `header:"Last-Event-ID" minimum:"0" doc:"As after; sent by clients that come back."`
}) (*huma.StreamResponse, error) {
	v, err := s.Store.Get(ctx, in.ID)
	if err != nil {
		return nil, s.problem(err)
	}
	after := max(in.After, in.LastEventID)
	if in.Follow && v.State == api.Ended {
		// An EventSource comes back after every end of a stream; 204 tells it to stop.
		if list, err := s.Store.Events(ctx, in.ID, after, 1); err == nil && len(list) == 0 {
			return &huma.StreamResponse{Body: func(hc huma.Context) { hc.SetStatus(http.StatusNoContent) }}, nil
		}
	}
	if in.Follow {
		return &huma.StreamResponse{Body: func(hc huma.Context) { s.follow(hc, in.ID, after) }}, nil
	}
	list, err := s.Store.Events(ctx, in.ID, after, in.Limit)
	if err != nil {
		return nil, s.problem(err)
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		hc.SetHeader("Content-Type", "application/json")
		_ = json.NewEncoder(hc.BodyWriter()).Encode(api.EventList{Events: list})
	}}, nil
}

func (s *server) follow(hc huma.Context, session string, after int64) {
	w, ok := hc.BodyWriter().(http.ResponseWriter)
	if !ok {
		return
	}
	ctx := hc.Context()
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-cache")
	send := func(m *sse.Message) bool {
		_ = out.SetWriteDeadline(s.Now().Add(followWrite))
		if _, err := m.WriteTo(w); err != nil {
			return false
		}
		return out.Flush() == nil
	}
	news, cancel := s.Orchestrator.Watch(session)
	defer cancel()
	tick := time.NewTicker(followTick)
	defer tick.Stop()
	quiet := s.Now()
	hello := &sse.Message{}
	hello.AppendComment("following")
	if !send(hello) {
		return
	}
	for {
		list, over := s.page(ctx, session, after)
		if over {
			return
		}
		for _, e := range list {
			m, err := message(e)
			if err != nil || !send(m) {
				return
			}
			after, quiet = e.Seq, s.Now()
			if e.Kind == string(orchestrator.EventEnded) {
				return
			}
		}
		if len(list) == eventsPage {
			continue
		}
		if s.Now().Sub(quiet) > followComment {
			quiet = s.Now()
			m := &sse.Message{}
			m.AppendComment("still here")
			if !send(m) {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-news:
		case <-tick.C:
		}
	}
}

// page is the next stretch of a log; over says that there will be none. The session is looked at before its log, so that
// what it logged last is not missed.
func (s *server) page(ctx context.Context, session string, after int64) (list []api.Event, over bool) {
	call, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	v, err := s.Store.Get(call, session)
	if err == nil {
		list, err = s.Store.Events(call, session, after, eventsPage)
	}
	if err != nil { // a database that is away is waited for
		return nil, ctx.Err() != nil || errors.Is(err, orchestrator.ErrNotFound)
	}
	return list, v.State == api.Ended && len(list) == 0
}

// describeEvents documents what huma cannot see of a streamed answer.
func describeEvents(doc *huma.OpenAPI) {
	log := doc.Components.Schemas.Schema(reflect.TypeFor[api.EventList](), true, "EventList")
	doc.Paths["/v1/sessions/{id}/events"].Get.Responses["200"] = &huma.Response{
		Description: "The log, or with follow a stream whose events have the seq as id, the kind as event and an Event as data.",
		Content: map[string]*huma.MediaType{
			"application/json":  {Schema: log},
			"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString}},
		},
	}
	doc.Paths["/v1/sessions/{id}/events"].Get.Responses["204"] = &huma.Response{Description: "There is nothing after it, and there never will be."}
}

func message(e api.Event) (*sse.Message, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	m := &sse.Message{ID: sse.ID(strconv.FormatInt(e.Seq, 10)), Type: sse.Type(e.Kind)}
	m.AppendData(string(b))
	return m, nil
}
