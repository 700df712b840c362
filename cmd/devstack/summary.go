package main

import (
	"encoding/json"
	"fmt"
	"strings"

	prettytable "github.com/jedib0t/go-pretty/v6/table"
)

// row is one session in the closing table and in summary.json.
type row struct {
	Session        string   `json:"session"`
	Account        string   `json:"account"`
	Device         string   `json:"device"`
	Commands       int      `json:"commands"`
	P50CommandMS   float64  `json:"p50_command_ms"` // at the client
	RecordingBytes int64    `json:"recording_bytes"`
	RecordingMS    int64    `json:"recording_ms"`
	RecordingPlace []string `json:"recording_place"`
	Generation     int64    `json:"profile_generation"` // 0: no profile
}

func newRow(v *visit) row {
	return row{
		Session: v.session.ID, Account: v.session.Account, Device: v.session.Host + "/" + v.session.Device,
		Commands: len(v.browser.took), P50CommandMS: float64(v.browser.p50().Microseconds()) / 1000,
		RecordingPlace: []string{}, Generation: v.session.Generation,
	}
}

func table(rows []row) string {
	t := prettytable.NewWriter()
	t.SetStyle(prettytable.StyleRounded)
	t.AppendHeader(prettytable.Row{"session", "account", "device", "commands", "p50 command", "recording", "place", "profile generation"})
	for _, r := range rows {
		generation := "-"
		if r.Generation > 0 {
			generation = fmt.Sprint(r.Generation)
		}
		t.AppendRow(prettytable.Row{r.Session, r.Account, r.Device, r.Commands, fmt.Sprintf("%.1f ms", r.P50CommandMS),
			fmt.Sprintf("%d KiB, %.1f s", (r.RecordingBytes+1023)/1024, float64(r.RecordingMS)/1000), strings.Join(r.RecordingPlace, " + "), generation})
	}
	return t.Render()
}

func writeSummary(path string, rows []row, held bool) error {
	raw, err := json.MarshalIndent(struct {
		Held     bool  `json:"held"` // every claim of the sample
		Sessions []row `json:"sessions"`
	}{held, rows}, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(raw, '\n'))
}
