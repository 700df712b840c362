package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
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
	if _, err := s.Store.Get(ctx, in.ID); err != nil {
		return nil, s.problem(err)
	}
	after := max(in.After, in.LastEventID)
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
		list, err := s.Store.Events(ctx, session, after, eventsPage)
		if err != nil && ctx.Err() != nil {
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

func message(e api.Event) (*sse.Message, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	m := &sse.Message{ID: sse.ID(itoa(e.Seq)), Type: sse.Type(e.Kind)}
	m.AppendData(string(b))
	return m, nil
}
