package engineapi

import (
	"bytes"
	"cmp"
	"encoding/json"
	"iter"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/drover/drover/controller/create"
	"github.com/drover/drover/controller/images"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/fields"
)

// filters are docker's: for each key, one of its values must match.
type filters map[string][]string

func parseFilters(r *http.Request, known ...string) (filters, error) {
	raw := r.URL.Query().Get("filters")
	f := filters{}
	if raw == "" {
		return f, nil
	}
	var sets map[string]map[string]bool
	if err := json.Unmarshal([]byte(raw), &sets); err == nil {
		for k, vs := range sets {
			for v, on := range vs {
				if on {
					f[k] = append(f[k], v)
				}
			}
		}
	} else if err := json.Unmarshal([]byte(raw), (*map[string][]string)(&f)); err != nil {
		return nil, refuse(http.StatusBadRequest, "invalid filters: %v", err)
	}
	for k := range f {
		if !slices.Contains(known, k) {
			return nil, refuse(http.StatusBadRequest, "invalid filter '%s'", k)
		}
	}
	return f, nil
}

// any reports whether a key has no values, or ok accepts one of them.
func (f filters) any(key string, ok func(string) bool) bool {
	return len(f[key]) == 0 || slices.ContainsFunc(f[key], ok)
}

// all is any for labels, for which docker requires every value.
func (f filters) all(key string, ok func(string) bool) bool {
	return !slices.ContainsFunc(f[key], func(v string) bool { return !ok(v) })
}

func hasLabel(labels map[string]string) func(string) bool {
	return func(want string) bool {
		k, v, valued := strings.Cut(want, "=")
		have, ok := labels[k]
		return ok && (!valued || have == v)
	}
}

// sieve holds compiled filters of containers. A task passes in two steps: what the
// log alone decides, and what needs its agent's report.
type sieve struct {
	filters
	s             *server
	snap          *state.Snapshot
	running       bool // only running and paused containers
	names         []*regexp.Regexp
	ancestors     map[string]bool
	before, since *dv1.Task
	codes         map[int]bool
	ended         map[string]bool // ids of tasks whose end only agents know yet; nil: not only those that ended pass
	specs         map[string]bool // results by spec
	nodes         map[string]bool // results by node
}

func (s *server) newSieve(snap *state.Snapshot, f filters) (*sieve, error) {
	k := &sieve{filters: f, s: s, snap: snap, codes: map[int]bool{}, specs: map[string]bool{}, nodes: map[string]bool{}}
	for _, n := range f["name"] {
		re, err := regexp.Compile(n)
		if err != nil {
			return nil, refuse(http.StatusBadRequest, "invalid filter 'name=%s': %v", n, err)
		}
		k.names = append(k.names, re)
	}
	for _, c := range f["exited"] {
		n, err := strconv.Atoi(c)
		if err != nil {
			return nil, refuse(http.StatusBadRequest, "invalid filter 'exited=%s'", c)
		}
		k.codes[n] = true
	}
	var err error
	for _, b := range f["before"] {
		if k.before, err = find(snap, b); err != nil {
			return nil, err
		}
	}
	for _, b := range f["since"] {
		if k.since, err = find(snap, b); err != nil {
			return nil, err
		}
	}
	if len(f["ancestor"]) > 0 {
		k.ancestors = map[string]bool{}
		for _, a := range f["ancestor"] {
			if d, err := images.Find(snap, a); err == nil {
				k.ancestors[d] = true
			}
		}
	}
	return k, nil
}

// fewSpecs: tasks are found through their specs if at most one in fewSpecs of the
// specs passes.
const fewSpecs = 8

// candidates yields the tasks that may pass, newest first.
func (k *sieve) candidates() iter.Seq[*dv1.Task] {
	switch {
	case k.has("name", "id", "node", "volume"):
		return newestFirst(k.snap.Tasks(), k.recorded)
	case k.has("label", "ancestor", "network"):
		var specs []*dv1.Spec
		all := 0
		for spec := range k.snap.Specs() {
			if all++; k.ofSpec(spec) {
				specs = append(specs, spec)
			}
		}
		if len(specs) <= all/fewSpecs+1 {
			return newestFirst(func(yield func(*dv1.Task) bool) {
				for _, spec := range specs {
					for t := range k.snap.TasksOfSpec(spec.Id) {
						if !yield(t) {
							return
						}
					}
				}
			}, k.recorded)
		}
	}
	switch {
	case k.running:
		return k.snap.LiveTasksByAge()
	case k.ended != nil:
		return k.endedByAge()
	}
	return k.snap.TasksByAge()
}

// endedByAge yields the tasks that have ended, by the log or by their agents, newest first.
func (k *sieve) endedByAge() iter.Seq[*dv1.Task] {
	return func(yield func(*dv1.Task) bool) {
		var late []*dv1.Task // their end is not in the log yet
		for id := range k.ended {
			if t := k.snap.Task([]byte(id)); t != nil && state.Live(t) {
				late = append(late, t)
			}
		}
		slices.SortFunc(late, byAge)
		for t := range k.snap.EndedTasksByAge() {
			for len(late) > 0 && byAge(late[0], t) < 0 {
				if !yield(late[0]) {
					return
				}
				late = late[1:]
			}
			if !yield(t) {
				return
			}
		}
		for _, t := range late {
			if !yield(t) {
				return
			}
		}
	}
}

// byAge orders tasks as lists do: the newest first.
func byAge(a, b *dv1.Task) int {
	return cmp.Or(cmp.Compare(b.Created, a.Created), bytes.Compare(a.Id, b.Id))
}

func (k *sieve) has(keys ...string) bool {
	return slices.ContainsFunc(keys, func(key string) bool { return len(k.filters[key]) > 0 })
}

// newestFirst yields the tasks that pass, newest first.
func newestFirst(tasks iter.Seq[*dv1.Task], pass func(*dv1.Task) bool) iter.Seq[*dv1.Task] {
	var out []*dv1.Task
	for t := range tasks {
		if pass(t) {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, byAge)
	return slices.Values(out)
}

// observes reports whether the result also depends on agents' reports.
func (k *sieve) observes() bool {
	return k.running || k.has("status", "exited", "publish", "expose")
}

// endedOnly reports whether only containers pass that have ended.
func (k *sieve) endedOnly() bool {
	exited := func(state string) bool { return state == string(container.StateExited) }
	return len(k.codes) > 0 || k.has("status") && k.all("status", exited)
}

// recorded reports whether a task passes as far as the log can tell.
func (k *sieve) recorded(t *dv1.Task) bool {
	switch {
	case k.before != nil && t.Created >= k.before.Created,
		k.since != nil && t.Created <= k.since.Created,
		len(k.names) > 0 && !slices.ContainsFunc(k.names, func(re *regexp.Regexp) bool {
			return re.MatchString(t.Name) || re.MatchString("/"+t.Name)
		}),
		!k.any("id", func(p string) bool { return strings.HasPrefix(hexID(t), p) }):
		return false
	}
	switch {
	case state.Live(t):
		if k.ended != nil && !k.ended[string(t.Id)] {
			return false
		}
	case !k.inState(&view{t: t}): // agents know no more about it
		return false
	}
	if !k.mounting(t) {
		return false
	}
	if !k.any("network", func(ref string) bool { return k.inNetwork(t, ref) }) {
		return false
	}
	return remember(k.nodes, t.NodeId, func() bool { return k.onNode(t.NodeId) }) &&
		remember(k.specs, string(t.SpecId), func() bool { return k.decideSpec(k.snap.Spec(t.SpecId)) })
}

// inNetwork reports whether a task is in a network, by its name or id.
func (k *sieve) inNetwork(t *dv1.Task, ref string) bool {
	n, name, err := findNetwork(k.snap, ref)
	switch {
	case err != nil:
		return false
	case n != nil:
		e := k.snap.Endpoint(t.Id, n.Id)
		return e != nil && !e.Leaving
	}
	v := &view{shape: k.s.shapeOf(k.snap, t)}
	return v.networkMode() == name && (name != network.NetworkBridge || fields.Bridged(&v.req))
}

func remember(known map[string]bool, key string, decide func() bool) bool {
	is, ok := known[key]
	if !ok {
		is = decide()
		known[key] = is
	}
	return is
}

// onNode decides what is the same for all tasks of a node, whose name is also a
// label.
func (k *sieve) onNode(id string) bool {
	name := id
	if n := k.snap.Node(id); n != nil {
		name = n.Name
	}
	return k.any("node", func(n string) bool { ok, _ := path.Match(n, name); return ok || n == id }) &&
		k.all("label", func(want string) bool {
			key, _, _ := strings.Cut(want, "=")
			return key != create.LabelNode || hasLabel(map[string]string{create.LabelNode: name})(want)
		})
}

// ofSpec is decideSpec, cached.
func (k *sieve) ofSpec(spec *dv1.Spec) bool {
	return remember(k.specs, string(spec.Id), func() bool { return k.decideSpec(spec) })
}

// decideSpec decides what is the same for all tasks of a spec.
func (k *sieve) decideSpec(spec *dv1.Spec) bool {
	if k.ancestors != nil && !k.ancestors[spec.GetDigest()] {
		return false
	}
	if len(k.filters) == 0 {
		return true
	}
	v := &view{shape: k.s.shapes.of(k.snap, spec)}
	has := hasLabel(v.config.Labels)
	return k.all("label", func(want string) bool {
		key, _, _ := strings.Cut(want, "=")
		return key == create.LabelNode || has(want)
	}) &&
		k.any("is-task", func(b string) bool { return b == "false" || b == "0" }) &&
		k.any("isolation", func(i string) bool { return i == string(v.req.HostConfig.Isolation) }) &&
		k.any("health", func(h string) bool { return h == "none" })
}

// mounting decides what is a task's own.
func (k *sieve) mounting(t *dv1.Task) bool {
	if !k.has("volume") {
		return true
	}
	v := &view{snap: k.snap, t: t, shape: k.s.shapes.of(k.snap, k.snap.Spec(t.SpecId))}
	return k.any("volume", v.hasMount)
}

// inState reports whether a container is in one of the requested states.
func (k *sieve) inState(v *view) bool {
	if !k.running && !k.has("status", "exited") {
		return true
	}
	st := v.state()
	if k.running && st != container.StateRunning && st != container.StatePaused {
		return false
	}
	if len(k.codes) > 0 {
		if e := v.exit(); e == nil || st != container.StateExited || !k.codes[int(e.Code)] {
			return false
		}
	}
	return k.any("status", func(want string) bool { return string(st) == want })
}

// published reports whether a container has the requested ports.
func (k *sieve) published(v *view) bool {
	return k.any("publish", func(p string) bool { return v.hasPort(p, true) }) &&
		k.any("expose", func(p string) bool { return v.hasPort(p, false) })
}

func (v *view) hasPort(want string, public bool) bool {
	num, proto, ok := strings.Cut(want, "/")
	if !ok {
		proto = "tcp"
	}
	lo, hi, ranged := strings.Cut(num, "-")
	if !ranged {
		hi = lo
	}
	a, err1 := strconv.Atoi(lo)
	b, err2 := strconv.Atoi(hi)
	if err1 != nil || err2 != nil {
		return false
	}
	for _, p := range v.portSummary() {
		n := int(p.PrivatePort)
		if public {
			n = int(p.PublicPort)
		}
		if p.Type == proto && n != 0 && n >= a && n <= b {
			return true
		}
	}
	return false
}

func (v *view) hasMount(want string) bool {
	return slices.ContainsFunc(v.mounts(), func(m container.MountPoint) bool {
		return m.Source == want || m.Destination == want || m.Name == want && want != ""
	})
}
