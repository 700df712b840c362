package drivertest

import (
	"net/http"

	"github.com/gorilla/websocket"

	"github.com/driftstack/fleet/driverproxy/webdriver"
)

// OfferBiDi has the driver answer webSocketUrl: true with the URL of an endpoint, whose connections are given to serve; nil: what a
// client says is said back. A connection ends with serve, with its session, or with the driver.
func (d *Driver) OfferBiDi(serve func(ws *websocket.Conn)) {
	if serve == nil {
		serve = echo
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bidi = serve
}

// RefuseBiDi has the endpoint that was offered take no more connections.
func (d *Driver) RefuseBiDi() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bidi = nil
}

func echo(ws *websocket.Conn) {
	for {
		kind, b, err := ws.ReadMessage()
		if err == nil {
			err = ws.WriteMessage(kind, b)
		}
		if err != nil {
			return
		}
	}
}

// offerLocked puts the URL of the session's endpoint into what was matched.
func (d *Driver) offerLocked(matched map[string]any, host string) {
	d.gone = make(chan struct{})
	if asked, _ := matched["webSocketUrl"].(bool); asked && d.bidi != nil {
		matched["webSocketUrl"] = "ws://" + host + "/session/" + d.session
	}
}

// endLocked ends the session.
func (d *Driver) endLocked() {
	d.session = ""
	close(d.gone)
	d.changedLocked(false)
}

// serveBiDi serves a connection.
func (d *Driver) serveBiDi(w http.ResponseWriter, r *http.Request, session string) {
	d.mu.Lock()
	serve, gone, there := d.bidi, d.gone, session == d.session && session != ""
	d.mu.Unlock()
	if serve == nil || !there {
		write(w, failed(webdriver.InvalidSessionID, "no such BiDi session"))
		return
	}
	ws, err := new(websocket.Upgrader).Upgrade(w, r, nil)
	if err != nil {
		return // it has answered
	}
	served, closed := make(chan struct{}), make(chan struct{})
	go func() { // ends with serve at the latest
		defer close(closed)
		select {
		case <-gone:
		case <-d.dead:
		case <-served:
		}
		_ = ws.Close()
	}()
	serve(ws)
	close(served)
	<-closed
}
