package httpapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/recorder"
)

const (
	liveBuffer = 256 << 10        // of one who watches
	liveWrite  = 30 * time.Second // who takes nothing for so long is gone
)

// liveRecording streams the recording of a running session as it grows: a WebM without an end, head first and then whole clusters, until the
// recording has ended. Who watches reads the spool: it costs a buffer, and holds the recording up in nothing.
func (s *server) liveRecording(w http.ResponseWriter, r *http.Request) {
	from := r.URL.Query().Get("from")
	if from != "" && from != "start" && from != "latest" {
		writeProblem(w, &huma.ErrorModel{Type: typeInvalid, Status: http.StatusUnprocessableEntity, Title: "Invalid request", Detail: "from: use start, which is the default, or latest"})
		return
	}
	live, err := s.Recordings.Live(r.PathValue("id"), from == "latest")
	if err != nil {
		s.notLive(w, r, err)
		return
	}
	defer live.Close()
	w.Header().Set("Content-Type", "video/webm")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Accept-Ranges", "none")
	out := http.NewResponseController(w)
	_ = out.SetWriteDeadline(time.Now().Add(liveWrite)) // not every server has one
	_ = out.Flush()                                     // it is there, though the first cluster may take a while
	b := make([]byte, liveBuffer)
	for {
		n, err := live.Read(r.Context(), b)
		if err != nil {
			if err != io.EOF && r.Context().Err() == nil {
				panic(http.ErrAbortHandler) // an end that looks like one would be wrong
			}
			return
		}
		_ = out.SetWriteDeadline(time.Now().Add(liveWrite))
		if _, err := w.Write(b[:n]); err != nil {
			return
		}
		if err := out.Flush(); err != nil {
			return
		}
	}
}

// notLive says why there is nothing to watch.
func (s *server) notLive(w http.ResponseWriter, r *http.Request, err error) {
	ctx, cancel := context.WithTimeout(r.Context(), callLimit)
	defer cancel()
	if errors.Is(err, recorder.ErrNotLive) {
		v, _, look := s.Store.Recording(ctx, r.PathValue("id"))
		switch {
		case look != nil:
			err = look
		case v.State == string(recorder.StateRecording):
			err = orchestrator.ErrElsewhere
		default:
			err = &orchestrator.ConflictError{Problem: "the recording is not being made any more: it is " + v.State + "; GET /v1/recordings/" + v.ID + "/url is where it is read"}
		}
	}
	if after := retryAfter(err); after > 0 {
		w.Header().Set("Retry-After", seconds(after))
	}
	writeProblem(w, problemOf(err, s.Log))
}

// liveWhat is where a session's recording is watched, below the session.
const liveWhat = "recording/live"

func isLive(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/"+liveWhat) }

// rolling gives each write of an answer that has no end its own time.
type rolling struct {
	http.ResponseWriter
	c *http.ResponseController
}

func (w rolling) Write(b []byte) (int, error) {
	_ = w.c.SetWriteDeadline(time.Now().Add(liveWrite))
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w rolling) Unwrap() http.ResponseWriter { return w.ResponseWriter }
