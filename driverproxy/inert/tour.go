package inert

import (
	"net/url"
	"path"
	"slices"
)

const foldersPerOrigin = 8 // looked into for cookies, besides the root

// Tour is where to look for what visits to sites have left: a page shows only the cookies of the folders above it.
type Tour struct {
	Origins []string
	folders map[string][]string // besides the root
}

// NewTour goes to the origins of the URLs, in order, and to the folders that those are in. URLs that have no origin are passed over.
func NewTour(visited []string) *Tour {
	t := &Tour{folders: make(map[string][]string)}
	for _, raw := range visited {
		origin, err := Origin(raw)
		if err != nil {
			continue
		}
		if !slices.Contains(t.Origins, origin) {
			t.Origins = append(t.Origins, origin)
		}
		if u, err := url.Parse(raw); err == nil {
			t.Look(origin, path.Dir(u.EscapedPath()))
		}
	}
	return t
}

// Look has the tour look into a folder of an origin, unless it looks into many already.
func (t *Tour) Look(origin, dir string) {
	if list := t.folders[origin]; dir != "/" && dir != "." && dir != "" && len(list) < foldersPerOrigin && !slices.Contains(list, dir) {
		t.folders[origin] = append(list, dir)
	}
}

// Folders are where to look on an origin; the last is the root.
func (t *Tour) Folders(origin string) []string { return append(slices.Clone(t.folders[origin]), "/") }
