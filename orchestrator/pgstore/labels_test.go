package pgstore_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/driftstack/fleet/orchestrator/api"
	"github.com/driftstack/fleet/orchestrator/pgstore"
)

func TestSessionsAreFoundByTheirLabels(t *testing.T) {
	s := open(t, 1)
	ids := map[string]string{} // by name
	for name, labels := range map[string]api.Labels{
		"none": nil, "empty": {}, "run 1": {"run": "1", "branch": "main"}, "run 2": {"run": "2", "branch": "main"}, "odd": {"Run": "1", "ü": "a=b,c \"\\", "branch": ""},
	} {
		n := wish("a")
		n.Name, n.Labels = name, labels
		mustCreate(t, s, n)
		ids[name] = n.ID
		v, err := s.Get(t.Context(), n.ID)
		if err != nil || !maps.Equal(v.Labels, labels) {
			t.Errorf("%s has the labels %v, %v", name, v.Labels, err)
		}
	}
	for _, c := range []struct {
		labels api.Labels
		want   []string
	}{
		{nil, []string{"empty", "none", "odd", "run 1", "run 2"}}, {api.Labels{}, []string{"empty", "none", "odd", "run 1", "run 2"}},
		{api.Labels{"branch": "main"}, []string{"run 1", "run 2"}}, {api.Labels{"branch": "main", "run": "2"}, []string{"run 2"}}, {api.Labels{"run": "1"}, []string{"run 1"}},
		{api.Labels{"branch": ""}, []string{"odd"}}, {api.Labels{"ü": "a=b,c \"\\"}, []string{"odd"}}, {api.Labels{"run": "3"}, nil}, {api.Labels{"none": ""}, nil},
	} {
		var got []string
		for f := (pgstore.SessionFilter{Account: "a", Labels: c.labels, Limit: 2}); ; {
			page, err := s.List(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range page.Sessions {
				if ids[v.Name] != v.ID {
					t.Errorf("%s is %s", v.Name, v.ID)
				}
				got = append(got, v.Name)
			}
			if f.Cursor = page.Next; f.Cursor == "" {
				break
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, c.want) {
			t.Errorf("%v: %q, want %q", c.labels, got, c.want)
		}
	}
}
