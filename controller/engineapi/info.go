package engineapi

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/events"
	regtypes "github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"

	"github.com/drover/drover/controller/create"
	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/plural"
	"github.com/drover/drover/pkg/runtimes"
	"github.com/drover/drover/pkg/volumes"
)

// drain is how long stored events are read if until is already over.
const drain = 100 * time.Millisecond

// maxNodeRows bounds how many nodes info lists.
const maxNodeRows = 50

func (s *server) info(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.state(w, r)
	if err != nil {
		return err
	}
	i := system.Info{
		Driver: "overlayfs", DriverStatus: [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}},
		Plugins:     system.PluginsInfo{Volume: []string{volumes.Local}, Network: []string{"bridge", "host", "null", "overlay"}, Log: []string{"json-file"}},
		MemoryLimit: true, SwapLimit: true, CPUCfsPeriod: true, CPUCfsQuota: true, CPUShares: true, CPUSet: true, PidsLimit: true,
		IPv4Forwarding: true, SystemTime: time.Now().Format(time.RFC3339Nano), LoggingDriver: "json-file", OSType: "linux",
		IndexServerAddress: "https://index.docker.io/v1/", RegistryConfig: &regtypes.ServiceConfig{}, ServerVersion: EngineVersion,
		Runtimes: map[string]system.RuntimeWithStatus{runtimes.Default: {Runtime: system.Runtime{Path: "drover-shim"}}}, DefaultRuntime: runtimes.Default,
		Swarm: swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}, LiveRestoreEnabled: true, SecurityOptions: []string{"name=seccomp,profile=builtin"},
		Labels: []string{}, Warnings: []string{}, Containerd: &system.ContainerdInfo{Namespaces: system.ContainerdNamespaces{Containers: "drover"}},
	}
	if c := snap.Cluster(); c != nil {
		i.ID, i.Name = c.GetId(), c.GetName()
	}
	seen, n := s.Fleet.Observe(r.Context(), fleet.Query{}), snap.Counts()
	i.Containers, i.ContainersPaused = n.All(), min(seen.Paused, n.Running)
	i.ContainersRunning = n.Running - i.ContainersPaused
	i.ContainersStopped = i.Containers - n.Running
	for range snap.Images() {
		i.Images++
	}
	nodes(snap, seen, &i)
	missing(w, seen)
	return answer(w, http.StatusOK, i)
}

// nodes adds up the nodes' resources and lists the nodes, silent ones first.
func nodes(snap *state.Snapshot, seen *fleet.Observations, i *system.Info) {
	var nodes []*dv1.Node
	for n := range snap.Nodes() {
		nodes = append(nodes, n)
		c := capacity(n)
		i.NCPU += int(c.NanoCpus / 1e9)
		i.MemTotal += c.Memory
		i.KernelVersion = shared(i.KernelVersion, c.Kernel)
		i.OperatingSystem = shared(i.OperatingSystem, c.OsName)
		i.Architecture = shared(i.Architecture, machine(c.Arch))
		i.CgroupDriver = shared(i.CgroupDriver, c.CgroupDriver)
		i.CgroupVersion = shared(i.CgroupVersion, c.CgroupVersion)
		i.ContainerdCommit.ID = shared(i.ContainerdCommit.ID, c.Containerd)
		i.RuncCommit.ID = shared(i.RuncCommit.ID, c.Runc)
		for name := range c.Runtimes {
			i.Runtimes[name] = system.RuntimeWithStatus{Runtime: system.Runtime{Path: name}}
		}
	}
	slices.SortFunc(nodes, func(a, b *dv1.Node) int {
		_, qa := seen.Silent(a.Id)
		_, qb := seen.Silent(b.Id)
		if qa != qb {
			if qa {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	i.SystemStatus = append(i.SystemStatus, [2]string{"Nodes", strconv.Itoa(len(nodes))})
	for k, n := range nodes {
		if k == maxNodeRows {
			i.SystemStatus = append(i.SystemStatus, [2]string{" …", fmt.Sprintf("%d more", len(nodes)-k)})
			break
		}
		c := capacity(n)
		state := "ready"
		if since, is := silence(seen, n.Id); is {
			state = "silent for " + since
			i.Warnings = append(i.Warnings, fmt.Sprintf("WARNING: node %s has not answered for %s", n.Name, since))
		}
		i.SystemStatus = append(i.SystemStatus, [2]string{" " + n.Name, fmt.Sprintf("%s, %d running, %s, %s", state, snap.Use(n.Id).Running, plural.Of(int(c.NanoCpus/1e9), "CPU"), units.BytesSize(float64(c.Memory)))})
	}
}

func machine(goarch string) string {
	switch goarch {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return goarch
}

// moment parses docker's timestamps: seconds with an optional fraction, or RFC 3339.
func moment(v string) (int64, error) {
	if v == "" || v == "0" {
		return 0, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, v); err == nil {
		return t.UnixNano(), nil
	}
	sec, frac, _ := strings.Cut(v, ".")
	n, err := strconv.ParseInt(sec, 10, 64)
	if err != nil {
		return 0, refuse(http.StatusBadRequest, "invalid time %q", v)
	}
	frac = (frac + "000000000")[:9]
	f, err := strconv.ParseInt(frac, 10, 64)
	if err != nil {
		return 0, refuse(http.StatusBadRequest, "invalid time %q", v)
	}
	return n*1e9 + f, nil
}

func (s *server) events(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	since, err := moment(q.Get("since"))
	if err != nil {
		return err
	}
	until, err := moment(q.Get("until"))
	if err != nil {
		return err
	}
	f, err := parseFilters(r, append([]string{"event", "image", "label", "node", "scope", "type"}, actors...)...)
	if err != nil {
		return err
	}
	ch := s.Fleet.Events(r.Context(), since)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	out := flusher{w, http.NewResponseController(w)}
	_ = out.c.Flush()
	enc := json.NewEncoder(out)
	var end <-chan time.Time
	if until > 0 {
		t := time.NewTimer(time.Until(time.Unix(0, until)))
		defer t.Stop()
		end = t.C
	}
	for over := false; ; {
		select {
		case <-r.Context().Done():
			return nil
		case <-end:
			if over {
				return nil
			}
			over, end = true, time.After(drain) // stored events come first
		case h, ok := <-ch:
			if !ok {
				return nil
			}
			if until > 0 && h.TimeNano > until {
				continue
			}
			if m := s.event(r, h); fitsEvent(f, m) && enc.Encode(m) != nil {
				return nil
			}
		}
	}
}

// oldMessage has the top-level fields from before API 1.22.
type oldMessage struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	events.Message
}

func (s *server) event(r *http.Request, h *dv1.Event) oldMessage {
	m := events.Message{Type: events.ContainerEventType, Action: events.Action(h.Action), Scope: "local", Time: h.TimeNano / 1e9, TimeNano: h.TimeNano}
	if h.Pruned != "" {
		m.Type, m.Actor = events.Type(h.Pruned), events.Actor{Attributes: h.Attributes}
		return oldMessage{Message: m}
	}
	if h.Volume != "" {
		m.Type, m.Actor = events.VolumeEventType, events.Actor{ID: h.Volume, Attributes: map[string]string{}}
		maps.Copy(m.Actor.Attributes, h.Attributes)
		if snap, err := s.Fleet.State(r.Context(), 0); err == nil && h.NodeId != "" {
			m.Actor.Attributes[create.LabelNode] = nodeNameIn(snap, h.NodeId)
		}
		return oldMessage{Message: m}
	}
	if len(h.NetworkId) > 0 {
		m.Type, m.Actor = events.NetworkEventType, events.Actor{ID: hex.EncodeToString(h.NetworkId), Attributes: h.Attributes}
		return oldMessage{Message: m}
	}
	if len(h.TaskId) == 0 {
		m.Type = events.ImageEventType
		m.Actor = events.Actor{ID: h.Attributes["id"], Attributes: map[string]string{"name": familiar(h.Attributes["name"])}}
		return oldMessage{Status: h.Action, ID: m.Actor.ID, Message: m}
	}
	m.Actor = events.Actor{ID: fmt.Sprintf("%x", h.TaskId), Attributes: map[string]string{}}
	if snap, err := s.Fleet.State(r.Context(), 0); err == nil {
		if t := snap.Task(h.TaskId); t != nil {
			v := s.view(snap, nil, t)
			for k, x := range v.configured().Labels {
				m.Actor.Attributes[k] = x
			}
			m.Actor.Attributes["image"], m.Actor.Attributes["name"] = v.ref, t.Name
		}
	}
	for k, x := range h.Attributes {
		m.Actor.Attributes[k] = x
	}
	return oldMessage{Status: h.Action, ID: m.Actor.ID, From: m.Actor.Attributes["image"], Message: m}
}

// actors are the filters of events by the name of what did something. As in docker, a
// container can have the name.
var actors = []string{"config", "container", "daemon", "network", "plugin", "secret", "service", "volume"}

func fitsEvent(f filters, m oldMessage) bool {
	a := m.Actor.Attributes
	named := func(c string) bool { return strings.HasPrefix(m.Actor.ID, c) || a["name"] == c }
	return f.any("type", func(t string) bool { return t == string(m.Type) }) &&
		f.any("event", func(e string) bool { return e == string(m.Action) || strings.HasPrefix(string(m.Action), e+":") }) &&
		!slices.ContainsFunc(actors, func(key string) bool { return !f.any(key, named) }) &&
		f.any("image", func(i string) bool {
			return a["image"] == i || m.Type == events.ImageEventType && (a["name"] == i || m.Actor.ID == i)
		}) &&
		f.any("node", func(n string) bool { return a[create.LabelNode] == n }) &&
		f.any("scope", func(x string) bool { return x == m.Scope }) &&
		f.all("label", hasLabel(a))
}
