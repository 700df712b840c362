package httpapi

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"

	"github.com/danielgtaylor/huma/v2"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// recovered answers for a handler that panicked, in the words of its routes. net/http would close the connection, which a
// client cannot tell from a network that broke. What it panicked with may quote a customer, so that the log gets its type only.
func (s *server) recovered(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := &started{ResponseWriter: w}
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p) // it means to close the connection
			}
			s.Log.Error("panic in a request", zap.String("panic", fmt.Sprintf("%T", p)), zap.ByteString("stack", debug.Stack()))
			if out.began {
				panic(http.ErrAbortHandler) // half an answer must not look like a whole one
			}
			const detail = "a defect of ours; it is in our log"
			if isDriverPath(r.URL.Path) {
				writeAnswer(w, (&webdriver.Error{Code: webdriver.UnknownError, Message: detail}).Answer())
				return
			}
			writeProblem(w, &huma.ErrorModel{Type: typeInternal, Status: http.StatusInternalServerError, Title: "Internal error", Detail: detail})
		}()
		next.ServeHTTP(out, r)
	})
}

// started knows whether anything of the answer may have been sent.
type started struct {
	http.ResponseWriter
	began bool
}

func (s *started) WriteHeader(status int) {
	s.began = true
	s.ResponseWriter.WriteHeader(status)
}

func (s *started) Write(b []byte) (int, error) {
	s.began = true
	return s.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (s *started) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// Hijack is for websockets, which do not use a ResponseController.
func (s *started) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	s.began = true
	return http.NewResponseController(s.ResponseWriter).Hijack()
}
