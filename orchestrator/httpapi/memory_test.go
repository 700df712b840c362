package httpapi_test

import (
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
)

// allocated is what f allocates, in MiB, which is at least what it held at its peak.
func allocated(f func()) float64 {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return float64(after.TotalAlloc-before.TotalAlloc) / (1 << 20)
}

// A body passes through this process twice, as orchestrator and as host, and neither the client nor the driver of this test
// holds it. So it is in the orchestrator's memory once if it is in this process's twice.
func TestLargeBodiesAreHeldOnce(t *testing.T) {
	r := newRig(t, 1, 10)
	s := r.running(t, api.CreateSession{})
	driver := <-r.drivers
	url := r.url + "/wd/hub/session/" + s.ID
	const size = 100 << 20
	upload := func(length int64) float64 {
		sum := crc32.NewIEEE()
		body := io.TeeReader(io.MultiReader(strings.NewReader(`{"file":"`), io.LimitReader(letters{}, size), strings.NewReader(`"}`)), sum)
		req, err := http.NewRequestWithContext(t.Context(), "POST", url+"/se/file", body)
		must(t, err)
		req.ContentLength = length
		req.SetBasicAuth("any", token)
		took := allocated(func() {
			resp, err := http.DefaultClient.Do(req)
			must(t, err)
			defer resp.Body.Close()
			if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 {
				t.Fatalf("%d %s %v", resp.StatusCode, b, err)
			}
		})
		e := driver.Executed()
		if last := e[len(e)-1]; last.Bytes != size+int64(len(`{"file":""}`)) || last.CRC != sum.Sum32() {
			t.Errorf("the driver got %d bytes, checksum %x, want %x", last.Bytes, last.CRC, sum.Sum32())
		}
		return took
	}
	if took := upload(size + int64(len(`{"file":""}`))); took > 235 {
		t.Errorf("%.0f MiB were allocated for an upload of 100 MiB that passes twice", took)
	}
	if took := upload(-1); took > 345 { // chunked: the orchestrator must put it together once it knows how long it is
		t.Errorf("%.0f MiB were allocated for a chunked upload of 100 MiB that passes twice", took)
	}
	driver.Inject(drivertest.Fault{Route: webdriver.RouteTakeScreenshot, Effect: drivertest.Flood, Bytes: 30 << 20})
	took := allocated(func() {
		req, err := http.NewRequestWithContext(t.Context(), "GET", url+"/screenshot", nil)
		must(t, err)
		req.SetBasicAuth("any", token)
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		defer resp.Body.Close()
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 30<<20+int64(len(`{"value":""}`)) || resp.ContentLength != n {
			t.Errorf("%d bytes of %d, %v", n, resp.ContentLength, err)
		}
	})
	if took > 75 {
		t.Errorf("%.0f MiB were allocated for a screenshot of 30 MiB that passes twice", took)
	}
}

// letters read as a text without end.
type letters struct{}

func (letters) Read(p []byte) (int, error) {
	const text = "UEsDBBQACAgIAA"
	for i := range p {
		p[i] = text[i%len(text)]
	}
	return len(p), nil
}

// Who announces much and sends nothing is given little.
func TestAnnouncedBodyCostsNothing(t *testing.T) {
	r := newRig(t, 1, 10)
	s := r.running(t, api.CreateSession{})
	took := allocated(func() {
		for range 20 {
			resp, b := wireCall(t, r.url, fmt.Sprintf("POST /session/%s/url HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 130000000\r\n\r\n{", s.ID, token))
			wantW3C(t, resp, b, 400, webdriver.InvalidArgument)
		}
	})
	if took > 20 {
		t.Errorf("%.0f MiB were allocated for 20 bodies that did not come", took)
	}
}
