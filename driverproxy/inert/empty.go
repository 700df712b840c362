package inert

import (
	"context"
	"encoding/json"
	"errors"
)

// Emptied is what Empty met, in storages, databases, caches and service workers of the document's origin.
type Emptied struct {
	Canary bool `json:"canary"` // one with another value was there
	Found  int  `json:"found"`  // was there besides
	Left   int  `json:"left"`   // is still there
	Unsure bool `json:"unsure"` // something of it could not be looked at
}

// emptyLimit is for one step of EmptyScript, in milliseconds.
const emptyLimit = 400

// EmptyScript is what Empty runs. What is planted and deleted again shows that what is not shown is not there, rather than that nothing is.
// A service worker goes first: it may hold the others open.
const EmptyScript = `
const done = arguments[arguments.length - 1];
const [canary, value, leave, limit] = JSON.parse(arguments[0]);
const r = {canary: false, found: 0, left: 0, unsure: false};
const soon = p => new Promise((yes, no) => { p.then(yes, no); setTimeout(no, limit); });
const tried = async f => { try { await f(); } catch (e) { r.unsure = true; } };
(async () => {
  if (navigator.serviceWorker) await tried(async () => {
    for (const s of await soon(navigator.serviceWorker.getRegistrations())) { r.found++; if (!await soon(s.unregister())) r.left++; }
  });
  if (self.caches) await tried(async () => {
    for (const name of await soon(caches.keys())) { r.found++; await soon(caches.delete(name)); }
    r.left += (await soon(caches.keys())).length;
  });
  if (self.indexedDB && indexedDB.databases) await tried(async () => {
    for (const d of await soon(indexedDB.databases())) {
      r.found++;
      await soon(new Promise((yes, no) => { const q = indexedDB.deleteDatabase(d.name); q.onsuccess = yes; q.onerror = q.onblocked = no; })).catch(() => {});
    }
    r.left += (await soon(indexedDB.databases())).length;
  });
  await tried(() => {
    const was = localStorage.getItem(canary);
    if (was !== null) { r.canary = was !== value; r.found--; }
    for (const s of [localStorage, sessionStorage]) {
      r.found += s.length;
      s.clear();
      s.setItem(canary, value);
      if (s.getItem(canary) !== value) r.unsure = true;
      s.clear();
      r.left += s.length;
    }
    if (leave) localStorage.setItem(canary, value);
  });
})().then(() => done(JSON.stringify(r)));`

// Empty takes everything that scripts can store from the origin of the current document, but for cookies. What the canary is called is
// stored for a moment with a value, or, if it is to be left, for whoever comes next.
func (b *Browser) Empty(ctx context.Context, canary, value string, leave bool) (Emptied, error) {
	text, err := json.Marshal([]any{canary, value, leave, emptyLimit})
	if err != nil {
		return Emptied{}, err
	}
	var out string
	err = b.Do(ctx, "POST", "/execute/async", map[string]any{"script": EmptyScript, "args": []string{string(text)}}, &out)
	if err != nil {
		return Emptied{}, err
	}
	var e Emptied
	if err := json.Unmarshal([]byte(out), &e); err != nil {
		return Emptied{}, errors.Join(errUnreadable, err)
	}
	return e, nil
}
