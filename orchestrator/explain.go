package orchestrator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/driftstack/fleet/driverproxy/webdriver"
	"github.com/driftstack/fleet/orchestrator/api"
)

// Shape is what devices are matched by, and which keys of a want it does not meet.
type Shape struct {
	Device api.Device // without host, name and state
	Misses []api.Key
}

// Candidate is an enrolled device, as a want sees it.
type Candidate struct {
	Shape
	// Fits: it misses nothing. What is in Reasons is what keeps it from being claimed now all the same.
	Reasons []api.DeviceReason
}

// Prospect is what the store knows of a session that could be created now.
type Prospect struct {
	Candidates []Candidate     // all, in the order in which free ones are taken
	Refused    error           // what Create would answer; nil: it would be queued
	Queue      *api.QueuePlace // where, then
	// Starts: so many devices are free as it would need to have one at once, and its account may have another session.
	Starts bool
}

// Explain says what Create would do with the request, and of each enrolled device whether it could take the session now. Nothing is
// created. most is how many devices are listed. A request that is wrong in itself is an error, as with Create.
func (o *Orchestrator) Explain(ctx context.Context, r api.CreateSession, most int) (api.Explanation, error) {
	wants, err := candidates(r.Capabilities)
	if err != nil {
		return api.Explanation{}, err
	}
	n, err := plan(uuid.NewString(), r, o.deps)
	if err != nil {
		return api.Explanation{}, err
	}
	refused := o.match(ctx, &n, wants)
	if refused != nil && !errors.Is(refused, ErrNoSuchDevice) {
		return api.Explanation{}, refused
	}
	p, err := o.deps.Sessions.Prospect(ctx, n)
	if err != nil {
		return api.Explanation{}, err
	}
	var unmatched *UnmatchedError
	if errors.As(refused, &unmatched) {
		p.missCapabilities(wants)
	}
	if refused == nil && p.Refused != nil {
		if refused = p.Refused; errors.Is(refused, ErrNoSuchDevice) {
			refused = o.named(ctx, n, refused)
		}
	}
	v := p.explain(n, most)
	v.At = o.deps.Now().UTC()
	switch {
	case refused != nil:
		if v.Refused, err = refusals(refused); err != nil {
			return api.Explanation{}, err
		}
		v.Verdict, v.Says, v.Host, v.Device = api.VerdictRefused, "It would be refused: "+refused.Error()+".", "", ""
		for i := range v.Devices {
			if d := &v.Devices[i]; len(d.Reasons) == 0 {
				d.Chosen, d.Says = false, "free, and what is wanted"
			}
		}
	case p.Starts && v.Device != "":
		v.Verdict, v.Says = api.VerdictStart, fmt.Sprintf("It would start now, on %s/%s.", v.Host, v.Device)
	default:
		v.Verdict, v.Queue, v.Says, v.Host, v.Device = api.VerdictQueue, p.Queue, queueSays(*p.Queue), "", ""
		for i := range v.Devices {
			if d := &v.Devices[i]; d.Chosen {
				d.Chosen, d.Says = false, "free, but others are before it in the queue, or its account has as many sessions as it may"
			}
		}
	}
	return v, nil
}

// Place adds to a queued session where it waits. A place that cannot be found out is left out: the session is shown all the same.
func (o *Orchestrator) Place(ctx context.Context, s api.Session) api.Session {
	if s.State != api.Queued {
		return s
	}
	at, ok, err := o.deps.Sessions.QueuePlace(ctx, s.ID, o.deps.Limits.Concurrent)
	if err != nil && ctx.Err() == nil {
		o.log.Warn("where a session waits cannot be said", zap.String("session", s.ID), zap.Error(err))
	}
	if ok {
		s.Queue = &at
	}
	return s
}

// missCapabilities adds the devices' part in that no candidate of the capabilities is met by any of them.
func (p *Prospect) missCapabilities(wants webdriver.NewSession) {
	for i := range p.Candidates {
		c := &p.Candidates[i]
		offer := webdriver.Offer{Browser: c.Device.Browser, BiDi: c.Device.BiDi, Platform: c.Device.PlatformName}
		if _, err := wants.Match([]webdriver.Offer{offer}); err != nil {
			c.Misses = append(c.Misses, api.KeyCapabilities)
		}
	}
}

// explain tells of the devices; the one that would be chosen is the first that nothing keeps from it.
func (p *Prospect) explain(n NewSession, most int) api.Explanation {
	v := api.Explanation{Enrolled: len(p.Candidates), Reasons: []api.KeyCount{}}
	counts := map[api.Key]int{}
	list := make([]api.DeviceMatch, 0, len(p.Candidates))
	for _, c := range p.Candidates {
		m := api.DeviceMatch{Host: c.Device.Host, Device: c.Device.Name, Fits: len(c.Misses) == 0, Reasons: []api.DeviceReason{}}
		for _, key := range c.Misses {
			m.Reasons = append(m.Reasons, n.miss(key, c.Device))
		}
		m.Reasons = append(m.Reasons, c.Reasons...)
		for _, r := range m.Reasons {
			counts[r.Key]++
		}
		if m.Fits {
			v.Fit++
		}
		if len(m.Reasons) == 0 {
			if v.Free++; v.Free == 1 {
				m.Chosen, v.Host, v.Device = true, m.Host, m.Device
			}
		}
		list = append(list, m)
	}
	for _, key := range api.Keys() {
		if counts[key] > 0 {
			v.Reasons = append(v.Reasons, api.KeyCount{Key: key, Devices: counts[key]})
		}
	}
	slices.SortStableFunc(list, func(a, b api.DeviceMatch) int { return cmp.Compare(len(a.Reasons), len(b.Reasons)) })
	v.Devices = list[:min(most, len(list))]
	v.More = len(list) - len(v.Devices)
	for i := range v.Devices {
		v.Devices[i].Says = deviceSays(v.Devices[i], v.Host+"/"+v.Device)
	}
	return v
}

func deviceSays(m api.DeviceMatch, chosen string) string {
	switch {
	case m.Chosen:
		return "free, and idle for longest of those that fit: it would be taken"
	case len(m.Reasons) == 0:
		return "free as well; " + chosen + " has been idle for longer"
	}
	var parts []string
	for _, r := range m.Reasons {
		said := fmt.Sprintf("%s is %s", r.Key, cmp.Or(r.Has, "not known"))
		if r.Wanted != "" {
			said += ", wanted is " + r.Wanted
		}
		parts = append(parts, said)
	}
	return strings.Join(parts, "; ")
}

func queueSays(q api.QueuePlace) string {
	says := fmt.Sprintf("It would be queued, at position %d", q.Position)
	if q.OrMore {
		says += " or further back"
	}
	switch {
	case q.WaitsFor == api.WaitsForQuota:
		says += ": its account has as many sessions at once as it may"
	case q.Devices == 0:
		says += ": no device that fits takes sessions now"
	default:
		says += fmt.Sprintf(": %d that fit take sessions", q.Devices)
	}
	if q.ExpectedWaitSeconds != nil {
		says += fmt.Sprintf(", and it would wait about %d s", *q.ExpectedWaitSeconds)
	}
	return says + "."
}

// refusals tells an error of Create by key; one that is not about the request as such is returned.
func refusals(err error) ([]api.Refusal, error) {
	var none *NoDeviceError
	var unmatched *UnmatchedError
	var held *ProfileHeldError
	var full *QueueFullError
	var quota *QuotaError
	switch {
	case errors.As(err, &unmatched):
		return []api.Refusal{{Key: api.KeyCapabilities, Says: err.Error()}}, nil
	case errors.As(err, &none):
		return none.Keys, nil
	case errors.As(err, &held):
		return []api.Refusal{{Key: api.KeyProfile, Says: err.Error()}}, nil
	case errors.As(err, &full):
		return []api.Refusal{{Key: api.KeyQueue, Says: err.Error()}}, nil
	case errors.As(err, &quota):
		return []api.Refusal{{Key: api.KeyQuota, Wanted: quota.Quota, Says: err.Error()}}, nil
	}
	return nil, err
}

// named says which keys of what is wanted no enrolled device meets, where it can; otherwise the error stays as it is.
func (o *Orchestrator) named(ctx context.Context, n NewSession, err error) error {
	shapes, lookErr := o.deps.Sessions.Shapes(ctx, n)
	if lookErr != nil {
		return err
	}
	return n.unmet(shapes)
}

// valuesShown is how many values of a key are told.
const valuesShown = 8

// unmet names the keys that none of the shapes meets. Where each is met by some, it is the ones that the nearest misses.
func (n NewSession) unmet(shapes []Shape) *NoDeviceError {
	e := &NoDeviceError{}
	if len(shapes) == 0 {
		return e
	}
	missed := map[api.Key]int{}
	for _, s := range shapes {
		for _, key := range s.Misses {
			missed[key]++
		}
	}
	keys := slices.DeleteFunc(api.Keys(), func(key api.Key) bool { return missed[key] < len(shapes) })
	if len(keys) == 0 {
		nearest := slices.MinFunc(shapes, nearer)
		keys, shapes, e.Nearest = nearest.Misses, []Shape{nearest}, true
	}
	for _, key := range keys {
		r := api.Refusal{Key: key}
		has := map[string]bool{}
		for _, s := range shapes {
			m := n.miss(key, s.Device)
			r.Wanted = m.Wanted
			has[cmp.Or(m.Has, "none")] = true
		}
		r.Has = slices.SortedFunc(maps.Keys(has), byVersion)
		if r.More = len(r.Has) - valuesShown; r.More > 0 {
			r.Has = r.Has[:valuesShown]
		}
		r.More = max(r.More, 0)
		which, ones := "enrolled device", "the enrolled ones"
		if n.Want.Host != "" && key != api.KeyHost {
			which, ones = "device of host "+n.Want.Host, "its devices"
		}
		r.Says = fmt.Sprintf("no %s has %s %s; %s have %s", which, key, r.Wanted, ones, strings.Join(r.Has, ", "))
		if e.Nearest {
			r.Says = fmt.Sprintf("no %s has all that is wanted at once; the nearest has %s %s, wanted is %s", which, key, r.Has[0], r.Wanted)
		}
		if key == api.KeyExecution {
			r.Says = fmt.Sprintf("the account's sessions with a profile run on devices in the EU alone (profile_execution eu), and no %s is declared to be there and what is wanted otherwise; "+
				"%s have country %s: enrol one with `driverhost --device country=…`, use no profile, or have an operator change it with `driftctl accounts profile-execution`",
				which, ones, strings.Join(r.Has, ", "))
		}
		if r.More > 0 {
			r.Says += fmt.Sprintf(" and %d more", r.More)
		}
		e.Keys = append(e.Keys, r)
	}
	return e
}

// nearer orders by how many keys are missed, and where these are as many, by which: another model is further away than another version.
func nearer(a, b Shape) int {
	rank := func(s Shape) int {
		return slices.IndexFunc(api.Keys(), func(k api.Key) bool { return slices.Contains(s.Misses, k) })
	}
	return cmp.Or(cmp.Compare(len(a.Misses), len(b.Misses)), cmp.Compare(rank(b), rank(a)))
}

// byVersion orders versions as such, and before everything else.
func byVersion(a, b string) int {
	v, isA := ParseVersion(a)
	w, isB := ParseVersion(b)
	switch {
	case isA && isB:
		return v.compare(w)
	case isA:
		return -1
	case isB:
		return 1
	}
	return strings.Compare(a, b)
}

// miss is what is wanted of a key, and what a device has that does not meet it, in words.
func (n NewSession) miss(key api.Key, d api.Device) api.DeviceReason {
	r := api.DeviceReason{Key: key}
	switch key {
	case api.KeyKind:
		r.Wanted, r.Has = n.Want.Kind, d.Kind
	case api.KeyModel:
		r.Wanted, r.Has = n.Want.Model, d.Model
	case api.KeyPlatform:
		r.Wanted, r.Has = n.Want.Platform, d.PlatformName
	case api.KeyOSVersion:
		r.Wanted, r.Has = n.Want.OSVersion, d.PlatformVersion
	case api.KeyCountry:
		r.Wanted, r.Has = n.Want.Country, d.Country
	case api.KeyExecution:
		r.Wanted, r.Has = string(api.ExecutionEU), d.Country
	case api.KeyHost:
		r.Wanted, r.Has = n.Want.Host, d.Host
	case api.KeyBrowser:
		r.Wanted, r.Has = n.Browser, d.Browser
	case api.KeyBiDi:
		r.Wanted, r.Has = "WebDriver BiDi", "no WebDriver BiDi"
	case api.KeyLabels:
		var wanted, has []string
		for _, name := range slices.Sorted(maps.Keys(n.Want.Labels)) {
			value, there := d.Labels[name]
			switch {
			case value == n.Want.Labels[name] && there:
				continue
			case there:
				has = append(has, name+"="+value)
			default:
				has = append(has, "no "+name)
			}
			wanted = append(wanted, name+"="+n.Want.Labels[name])
		}
		r.Wanted, r.Has = strings.Join(wanted, ", "), strings.Join(has, ", ")
	case api.KeyCapabilities:
		r.Has = "browserName " + d.Browser + ", platformName " + d.PlatformName
		if !d.BiDi {
			r.Has += ", no WebDriver BiDi"
		}
	}
	return r
}
