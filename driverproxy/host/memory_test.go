package host_test

import (
	"bytes"
	"hash/crc32"
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/driftstack/fleet/driverproxy/drivertest"
	"github.com/driftstack/fleet/driverproxy/webdriver"
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

// An upload of 100 MiB is in the host's memory once on its way to the driver; a screenshot of 30 MiB once at the host and
// once where it arrives, which is in this process too.
func TestLargeBodiesAreHeldOnce(t *testing.T) {
	s, driver := newFleet(t), drivertest.New()
	cfg := s.config(t)
	cfg.Fake = fakes(driver)
	s.run(t, cfg)
	session := assign(t, s, first("s1", 1))
	upload := append(append([]byte(`{"file":"`), bytes.Repeat([]byte("UEsDBA=="), 100<<17)...), `"}`...)
	sum := crc32.ChecksumIEEE(upload)
	took := allocated(func() {
		if a, _, err := session.Do(t.Context(), webdriver.Command{Method: "POST", Path: "/se/file", Body: upload}); err != nil || a.Status != 200 {
			t.Errorf("upload: %d %s %v", a.Status, a.Body, err)
		}
	})
	if took > 125 {
		t.Errorf("%.0f MiB were allocated for an upload of 100 MiB", took)
	}
	if e := driver.Executed(); len(e) != 1 || e[0].Bytes != int64(len(upload)) || e[0].CRC != sum {
		t.Errorf("the driver got %+v", e)
	}
	driver.Inject(drivertest.Fault{Route: webdriver.RouteTakeScreenshot, Effect: drivertest.Flood, Bytes: 30 << 20})
	took = allocated(func() {
		if a, _, err := session.Do(t.Context(), webdriver.Command{Method: "GET", Path: "/screenshot"}); err != nil || len(a.Body) != 30<<20+len(`{"value":""}`) {
			t.Errorf("screenshot: %d, %d bytes, %v", a.Status, len(a.Body), err)
		}
	})
	if took > 75 {
		t.Errorf("%.0f MiB were allocated for a screenshot of 30 MiB", took)
	}
	release(t, session)
}
