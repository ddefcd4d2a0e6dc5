package engineapi

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
)

func sha(s string) [32]byte { return sha256.Sum256([]byte(s)) }

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
	keep, err := s.newSieve(snap, f)
	if err != nil {
		return err
	}
	keep.running = !boolean(q, "all") && limit <= 0 && len(f["status"]) == 0
	if keep.endedOnly() { // few of the tasks that are live in the log
		keep.ended = map[string]bool{}
		for _, st := range s.Fleet.Observe(r.Context(), fleet.Query{Ended: true}).Tasks {
			keep.ended[string(st.Id)] = true
		}
	}
	views, seen := s.listed(r.Context(), snap, keep, limit)
	missing(w, seen)
	now := time.Now()
	out := make([]container.Summary, 0, len(views))
	for _, v := range views {
		out = append(out, summary(v, now))
	}
	return answer(w, http.StatusOK, out)
}

// listed returns the containers that pass, newest first, up to limit (0: all). The
// log is checked before agents' reports, and only what is shown is decoded.
func (s *server) listed(ctx context.Context, snap *state.Snapshot, keep *sieve, limit int) (views []*view, seen *fleet.Observations) {
	var part []*dv1.Task
	pass := func() {
		seen = s.Fleet.Observe(ctx, fleet.Query{Tasks: liveIDs(part)})
		for _, t := range part {
			if keep.inState(&view{t: t, st: current(seen, t)}) {
				if v := s.view(snap, seen, t); keep.published(v) {
					views = append(views, v)
				}
			}
		}
		part = nil
	}
	size := limit
	if keep.observes() {
		size = max(limit, 512)
	}
	for t := range keep.candidates() {
		if !keep.recorded(t) {
			continue
		}
		part = append(part, t)
		switch {
		case limit <= 0 || len(part) < size:
			continue
		case !keep.observes():
		default:
			size *= 2 // so that a long list takes few parts
		}
		if pass(); len(views) >= limit {
			break
		}
	}
	if len(part) > 0 || seen == nil {
		pass()
	}
	if limit > 0 && len(views) > limit {
		views = views[:limit]
	}
	return views, seen
}

// missing names the silent nodes, whose containers may be outdated.
func missing(w http.ResponseWriter, seen *fleet.Observations) {
	if nodes := seen.SilentNodes(); len(nodes) > 0 {
		w.Header().Set(wire.HeaderMissing, strings.Join(nodes, ","))
	}
}

// liveIDs returns the ids of tasks about which agents may know more than raft.
func liveIDs(tasks []*dv1.Task) (ids []string) {
	for _, t := range tasks {
		if state.Live(t) {
			ids = append(ids, hexID(t))
		}
	}
	return ids
}

func summary(v *view, now time.Time) container.Summary {
	c := v.configured()
	sum := container.Summary{
		ID: hexID(v.t), Names: []string{"/" + v.t.Name}, Image: v.ref, ImageID: v.image.GetDigest(), Command: commandLine(c),
		Created: v.t.Created / 1e9, Ports: v.portSummary(), Labels: c.Labels, State: v.state(), Status: v.status(now),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: v.networks()}, Mounts: v.mounts(),
	}
	sum.HostConfig.NetworkMode = v.networkMode()
	return sum
}

// commandLine formats as docker does: path and arguments, quoted if they have
// spaces.
func commandLine(c *container.Config) string {
	args := append(slices.Clone([]string(c.Entrypoint)), c.Cmd...)
	for i, a := range args {
		if i > 0 && strings.Contains(a, " ") {
			args[i] = "'" + a + "'"
		}
	}
	return strings.Join(args, " ")
}

func (s *server) inspectContainer(w http.ResponseWriter, r *http.Request) error {
	snap, t, err := s.task(w, r)
	if err != nil {
		return err
	}
	seen := s.Fleet.Observe(r.Context(), fleet.Query{Tasks: []string{hexID(t)}})
	v := s.view(snap, seen, t)
	c := v.configured()
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
	h.NetworkMode, h.Links = container.NetworkMode(v.networkMode()), nil // links are the networks'
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
	if h.NetworkMode.IsContainer() {
		out.NetworkSettings.SandboxID = "" // the other one's
	}
	if len(args) > 0 {
		out.Path, out.Args = args[0], args[1:]
	}
	if v.quiet != "" {
		missing(w, seen)
	}
	if apiVersion(r) < 45 { // the short id was an alias
		for name, e := range out.NetworkSettings.Networks {
			if predefined[name] == "" {
				e.Aliases = append(slices.Clone(e.Aliases), hexID(t)[:12])
			}
		}
	}
	if apiVersion(r) < 52 {
		return answer(w, http.StatusOK, oldInspect(out, v))
	}
	return answer(w, http.StatusOK, out)
}

// oldInspect adds the address fields that older clients read at the top level.
func oldInspect(out container.InspectResponse, v *view) any {
	b, err := json.Marshal(out)
	if err != nil {
		return out
	}
	m := map[string]any{}
	if json.Unmarshal(b, &m) != nil {
		return out
	}
	if ns, ok := m["NetworkSettings"].(map[string]any); ok && v.networks()["bridge"] != nil {
		e := v.networks()["bridge"]
		if e.IPAddress.IsValid() {
			ns["IPAddress"], ns["Gateway"], ns["IPPrefixLen"], ns["MacAddress"] = e.IPAddress.String(), e.Gateway.String(), e.IPPrefixLen, v.st.GetMac()
		} else {
			ns["IPAddress"], ns["Gateway"], ns["IPPrefixLen"], ns["MacAddress"] = "", "", 0, ""
		}
	}
	return m
}

// failedCode returns docker's exit code for a container that failed to start.
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
	if !s.running(r, t) {
		return notRunning(t)
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

// relayed forwards a small request to a node, and answers its success with code.
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
