package main

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/driftstack/fleet/orchestrator"
	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
)

// An orchestrator at which clients wait for W3C New Session is killed. What they queued gets no device: what is claimed meanwhile is not
// confirmed, and what is not claimed is ended once that orchestrator has been silent for 15 s. Whoever comes after it has the device.
func TestKilledWhereClientsWait(t *testing.T) {
	t.Parallel() // it waits, mostly
	f := newFleet(t, 2, 1, 1, true)
	zero := 0
	_, err := f.replicas[0].client.PutQuota(t.Context(), "b", api.PutQuota{Quota: api.Quota{Concurrent: &zero}}) // nothing of b is ever claimed
	must(t, err)
	busy := f.running(api.CreateSession{Account: "a"})
	w, err := f.store.Whereabouts(t.Context(), busy)
	must(t, err)
	dies, stays := f.replicas[0], f.replicas[1]
	if w.Holder.Name == dies.name {
		dies, stays = stays, dies
	}
	answered := make(chan error, 2)
	for _, account := range []string{"a", "b"} {
		go func() { // ends with the process that it asks
			req, err := http.NewRequest(http.MethodPost, dies.url+"/session",
				strings.NewReader(`{"capabilities":{"alwaysMatch":{"driftstack:options":{"account":"`+account+`","recording":false,"name":"impatient"}}}}`))
			if err == nil {
				req.Header.Set("Authorization", "Bearer "+fleetPass)
				var resp *http.Response
				if resp, err = http.DefaultClient.Do(req); err == nil {
					_ = resp.Body.Close()
					err = fmt.Errorf("answered with %d", resp.StatusCode)
				}
			}
			answered <- err
		}()
	}
	waiting := map[string]string{} // by account
	f.eventually("both are queued", 20*time.Second, func() bool {
		list, err := f.store.List(t.Context(), pgstore.SessionFilter{Limit: 10})
		must(t, err)
		for _, s := range list.Sessions {
			if s.Name == "impatient" && s.State == api.Queued {
				waiting[s.Account] = s.ID
			}
		}
		return len(waiting) == 2
	})
	must(t, dies.signal(syscall.SIGKILL, true))
	for range 2 {
		if err := <-answered; err == nil || strings.Contains(err.Error(), "answered") {
			t.Errorf("a client was not cut off: %v", err)
		}
	}
	f.quit(stays, busy)
	for account, id := range waiting {
		var s api.Session
		f.eventually("that of "+account+" has ended", 45*time.Second, func() bool {
			var err error
			s, err = f.store.Get(t.Context(), id)
			must(t, err)
			return s.State == api.Ended
		})
		log := f.kinds(id)
		if s.Reason != string(orchestrator.Cancelled) || s.RunningAt != nil || slices.Contains(log, string(orchestrator.EventDriverStarted)) {
			t.Errorf("that of %s: %+v, %v", account, s, log)
		}
		if claimed := s.StartedAt != nil; claimed != (account == "a") {
			t.Errorf("that of %s was claimed: %v", account, claimed)
		}
	}
	v, err := stays.client.CreateSession(t.Context(), api.CreateSession{Account: "a"})
	must(t, err)
	if v, err = stays.client.Wait(t.Context(), v.ID, api.Running); err != nil || v.State != api.Running {
		t.Errorf("the next one: %+v, %v", v, err)
	}
}
