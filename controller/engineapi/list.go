package engineapi

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/images"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
)

func sha(s string) [32]byte { return sha256.Sum256([]byte(s)) }

// filters are docker's: for each key any of its values must fit.
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

// any says whether a key has no values, or ok of one of them.
func (f filters) any(key string, ok func(string) bool) bool {
	return len(f[key]) == 0 || slices.ContainsFunc(f[key], ok)
}

// all is for labels, where docker wants every value.
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

func (s *server) listContainers(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.state(w, r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	f, err := parseFilters(r, "ancestor", "before", "expose", "exited", "health", "id", "is-task", "isolation", "label", "name", "network", "node", "publish", "since", "status", "volume")
	if err != nil {
		return err
	}
	limit := 0
	if v := q.Get("limit"); v != "" {
		if limit, err = strconv.Atoi(v); err != nil {
			return refuse(http.StatusBadRequest, "invalid limit %q", v)
		}
	}
	for _, v := range f["status"] {
		if err := container.ValidateContainerState(container.ContainerState(v)); err != nil {
			return refuse(http.StatusBadRequest, "%v", err)
		}
	}
	keep, err := newSieve(snap, f)
	if err != nil {
		return err
	}
	all := boolean(q, "all") || limit > 0 || len(f["status"]) > 0
	seen := s.Fleet.Observe(r.Context(), fleet.Query{Tasks: idsOf(snap.Tasks())})
	var views []*view
	for t := range snap.Tasks() {
		v := newView(snap, seen, t)
		if st := v.state(); !all && st != container.StateRunning && st != container.StatePaused {
			continue
		}
		if keep.fits(v) {
			views = append(views, v)
		}
	}
	slices.SortFunc(views, func(a, b *view) int {
		if a.t.Created != b.t.Created {
			return int(min(1, max(-1, b.t.Created-a.t.Created)))
		}
		return strings.Compare(hexID(a.t), hexID(b.t))
	})
	if limit > 0 && len(views) > limit {
		views = views[:limit]
	}
	missing(w, seen)
	now := time.Now()
	out := make([]container.Summary, 0, len(views))
	for _, v := range views {
		out = append(out, summary(v, now))
	}
	return answer(w, http.StatusOK, out)
}

// missing names the silent nodes, whose part may be old.
func missing(w http.ResponseWriter, seen *fleet.Observations) {
	if nodes := seen.SilentNodes(); len(nodes) > 0 {
		w.Header().Set(wire.HeaderMissing, strings.Join(nodes, ","))
	}
}

// idsOf are tasks' ids, as observations are asked for.
func idsOf(tasks iter.Seq[*dv1.Task]) (ids []string) {
	for t := range tasks {
		ids = append(ids, hexID(t))
	}
	return ids
}

func summary(v *view, now time.Time) container.Summary {
	c := v.config()
	sum := container.Summary{
		ID: hexID(v.t), Names: []string{"/" + v.t.Name}, Image: v.ref, ImageID: v.image.GetDigest(), Command: commandLine(c),
		Created: v.t.Created / 1e9, Ports: v.portSummary(), Labels: c.Labels, State: v.state(), Status: v.status(now),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: v.networks()}, Mounts: v.mounts(),
	}
	sum.HostConfig.NetworkMode = v.networkMode()
	return sum
}

// commandLine is docker's: path and arguments, those with spaces quoted.
func commandLine(c *container.Config) string {
	args := append(slices.Clone([]string(c.Entrypoint)), c.Cmd...)
	for i, a := range args {
		if i > 0 && strings.Contains(a, " ") {
			args[i] = "'" + a + "'"
		}
	}
	return strings.Join(args, " ")
}

// sieve holds what filters compile to.
type sieve struct {
	filters
	names         []*regexp.Regexp
	ancestors     map[string]bool
	before, since *dv1.Task
	codes         map[int]bool
}

func newSieve(snap *state.Snapshot, f filters) (*sieve, error) {
	s := &sieve{filters: f, codes: map[int]bool{}}
	for _, n := range f["name"] {
		re, err := regexp.Compile(n)
		if err != nil {
			return nil, refuse(http.StatusBadRequest, "invalid filter 'name=%s': %v", n, err)
		}
		s.names = append(s.names, re)
	}
	for _, c := range f["exited"] {
		n, err := strconv.Atoi(c)
		if err != nil {
			return nil, refuse(http.StatusBadRequest, "invalid filter 'exited=%s'", c)
		}
		s.codes[n] = true
	}
	var err error
	for _, b := range f["before"] {
		if s.before, err = find(snap, b); err != nil {
			return nil, err
		}
	}
	for _, b := range f["since"] {
		if s.since, err = find(snap, b); err != nil {
			return nil, err
		}
	}
	if len(f["ancestor"]) > 0 {
		s.ancestors = map[string]bool{}
		for _, a := range f["ancestor"] {
			if d, err := images.Find(snap, a); err == nil {
				s.ancestors[d] = true
			}
		}
	}
	return s, nil
}

func (s *sieve) fits(v *view) bool {
	id := hexID(v.t)
	labels := v.labels(v.config().Labels)
	switch {
	case len(s.names) > 0 && !slices.ContainsFunc(s.names, func(re *regexp.Regexp) bool {
		return re.MatchString(v.t.Name) || re.MatchString("/"+v.t.Name)
	}),
		!s.any("id", func(p string) bool { return strings.HasPrefix(id, p) }),
		!s.all("label", hasLabel(labels)),
		!s.any("status", func(st string) bool { return string(v.state()) == st }),
		!s.any("node", func(n string) bool { ok, _ := path.Match(n, v.node); return ok || n == v.t.NodeId }),
		!s.any("network", func(n string) bool { return n == v.networkMode() || n == networkID(v.networkMode()) }),
		!s.any("is-task", func(b string) bool { return b == "false" || b == "0" }),
		!s.any("health", func(h string) bool { return h == "none" }),
		!s.any("publish", func(p string) bool { return v.hasPort(p, true) }),
		!s.any("expose", func(p string) bool { return v.hasPort(p, false) }),
		!s.any("volume", v.hasMount),
		s.ancestors != nil && !s.ancestors[v.image.GetDigest()],
		s.before != nil && v.t.Created >= s.before.Created,
		s.since != nil && v.t.Created <= s.since.Created:
		return false
	}
	if len(s.codes) > 0 {
		e := v.exit()
		return e != nil && v.state() == container.StateExited && s.codes[int(e.Code)]
	}
	return true
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
	return slices.ContainsFunc(v.mounts(), func(m container.MountPoint) bool { return m.Source == want || m.Destination == want || m.Name == want })
}

func (s *server) inspectContainer(w http.ResponseWriter, r *http.Request) error {
	snap, t, err := s.task(w, r)
	if err != nil {
		return err
	}
	seen := s.Fleet.Observe(r.Context(), fleet.Query{Tasks: []string{hexID(t)}})
	v := newView(snap, seen, t)
	c := v.config()
	args := append(slices.Clone([]string(c.Entrypoint)), c.Cmd...)
	st := v.state()
	e := v.exit()
	state := &container.State{
		Status: st, Running: st == container.StateRunning || st == container.StatePaused, Paused: st == container.StatePaused,
		Pid: int(v.st.GetPid()), StartedAt: rfc3339(v.started()), FinishedAt: rfc3339(0), Error: t.Failed,
	}
	if e == nil {
		e = t.Exit
	}
	if e != nil {
		state.FinishedAt = rfc3339(e.At)
		if !state.Running {
			state.ExitCode, state.OOMKilled = int(e.Code), e.Oom
		}
	}
	if t.Failed != "" && !state.Running {
		state.ExitCode = failedCode(t.Failed)
	}
	if !state.Running {
		state.Pid = 0
	}
	h := *v.req.HostConfig
	h.NetworkMode = container.NetworkMode(v.networkMode())
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	if h.LogConfig.Type == "" {
		h.LogConfig.Type = "json-file"
	}
	if h.ShmSize == 0 {
		h.ShmSize = 64 << 20
	}
	out := container.InspectResponse{
		ID: hexID(t), Created: rfc3339(t.Created), State: state, Image: v.image.GetDigest(), Name: "/" + t.Name,
		Driver: "overlayfs", Platform: "linux", LogPath: v.st.GetLogPath(), RestartCount: 0, HostConfig: &h, Mounts: v.mounts(), Config: c,
		NetworkSettings: &container.NetworkSettings{SandboxID: hexID(t), Ports: v.portMap(), Networks: v.networks()},
		Args:            []string{},
	}
	if len(args) > 0 {
		out.Path, out.Args = args[0], args[1:]
	}
	if v.quiet != "" {
		missing(w, seen)
	}
	if api(r) < 52 {
		return answer(w, http.StatusOK, oldInspect(out, v))
	}
	return answer(w, http.StatusOK, out)
}

// oldInspect adds the address fields that older clients read at the top.
func oldInspect(out container.InspectResponse, v *view) any {
	b, err := json.Marshal(out)
	if err != nil {
		return out
	}
	m := map[string]any{}
	if json.Unmarshal(b, &m) != nil {
		return out
	}
	if ns, ok := m["NetworkSettings"].(map[string]any); ok && v.networkMode() == "bridge" {
		e := v.networks()["bridge"]
		if e.IPAddress.IsValid() {
			ns["IPAddress"], ns["Gateway"], ns["IPPrefixLen"], ns["MacAddress"] = e.IPAddress.String(), e.Gateway.String(), e.IPPrefixLen, v.st.GetMac()
		} else {
			ns["IPAddress"], ns["Gateway"], ns["IPPrefixLen"], ns["MacAddress"] = "", "", 0, ""
		}
	}
	return m
}

// failedCode is docker's exit code of a start that was refused.
func failedCode(why string) int {
	switch {
	case strings.Contains(why, "executable file not found"), strings.Contains(why, "no such file or directory"):
		return 127
	case strings.Contains(why, "permission denied"), strings.Contains(why, "is a directory"), strings.Contains(why, "exec format error"):
		return 126
	}
	return 128
}

func (s *server) resizeContainer(w http.ResponseWriter, r *http.Request) error {
	_, t, err := s.task(w, r)
	if err != nil {
		return err
	}
	q, err := dimensions(r)
	if err != nil {
		return err
	}
	if !state.Running(t) && s.observed(r.Context(), t).GetPhase() != dv1.Phase_ACTIVE {
		return refuse(http.StatusConflict, "container %s is not running", hexID(t))
	}
	return s.relayed(w, r, t.NodeId, http.MethodPost, "/v1/tasks/"+hexID(t)+"/resize?"+q, nil, http.StatusOK)
}

func dimensions(r *http.Request) (string, error) {
	out := ""
	for _, k := range []string{"h", "w"} {
		n, err := strconv.ParseUint(r.URL.Query().Get(k), 10, 16)
		if err != nil {
			return "", refuse(http.StatusBadRequest, "invalid %s: %q", map[string]string{"h": "height", "w": "width"}[k], r.URL.Query().Get(k))
		}
		out += fmt.Sprintf("&%s=%d", k, n)
	}
	return out[1:], nil
}

// relayed passes a small call to a node; its success is answered with code.
func (s *server) relayed(w http.ResponseWriter, r *http.Request, node, method, path string, body []byte, code int) error {
	resp, err := s.agent(r, node, method, path, body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fromAgent(node, resp)
	}
	_ = resp.Body.Close()
	w.WriteHeader(code)
	return nil
}
