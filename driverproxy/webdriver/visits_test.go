package webdriver

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestVisits(t *testing.T) {
	var v Visits
	v.Notice(RouteNavigateTo, []byte(`{"url":"https://a.example/x?secret=1#there"}`), Answer{})
	at, err := ValueAnswer("https://a.example/z")
	if err != nil {
		t.Fatal(err)
	}
	v.Notice(RouteGetCurrentURL, nil, at)
	v.Notice(RouteGetTitle, nil, at)
	for _, page := range []string{"https://a.example/x?again", "about:blank", "file:///etc/passwd", "javascript:1", "::", "https://" + strings.Repeat("h", 5000) + "/",
		"http://b.example:8080/" + strings.Repeat("p", 5000), "http://user:password@c.example"} {
		v.Add(page)
	}
	want := []string{"https://a.example/x", "https://a.example/z", "http://b.example:8080/", "http://c.example"}
	if got := v.Pages(); !slices.Equal(got, want) {
		t.Fatalf("pages %q", got)
	}
	for i := range 2 * MaxVisits {
		v.Add(fmt.Sprintf("https://site-%d.example/", i))
	}
	if got := v.Pages(); len(got) != MaxVisits || got[0] != fmt.Sprintf("https://site-%d.example/", MaxVisits) {
		t.Fatalf("%d pages, from %q", len(got), got[0])
	}
}
