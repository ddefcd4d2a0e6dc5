package engineapi

import (
	"io"
	"net/http"
	"runtime"
	"strconv"

	"github.com/moby/moby/api/types/system"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

func (s *server) ping(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	h.Set("Swarm", "inactive")
	h.Set("Docker-Experimental", "false")
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return nil
	}
	_, _ = io.WriteString(w, "OK")
	return nil
}

func (s *server) version(w http.ResponseWriter, r *http.Request) error {
	v := system.VersionResponse{
		Platform: system.PlatformInfo{Name: "drover " + s.Version}, Version: EngineVersion,
		APIVersion: MaxVersion, MinAPIVersion: MinVersion,
		Os: "linux", Arch: runtime.GOARCH, GoVersion: runtime.Version(),
		Components: []system.ComponentVersion{{Name: "Engine", Version: EngineVersion, Details: map[string]string{
			"ApiVersion": MaxVersion, "MinAPIVersion": MinVersion, "Os": "linux", "Arch": runtime.GOARCH, "GoVersion": runtime.Version(),
		}}},
	}
	if snap, err := s.Fleet.State(r.Context(), 0); err == nil {
		var order []string
		count := map[string]int{}
		note := func(name, version string) {
			if version == "" {
				return
			}
			if count[name+" "+version]++; count[name+" "+version] == 1 {
				order = append(order, name, version)
			}
		}
		for n := range snap.Nodes() {
			c := capacity(n)
			note("drover", c.Drover)
			note("containerd", c.Containerd)
			note("runc", c.Runc)
			v.KernelVersion = shared(v.KernelVersion, c.Kernel)
		}
		for i := 0; i < len(order); i += 2 {
			v.Components = append(v.Components, system.ComponentVersion{Name: order[i], Version: order[i+1],
				Details: map[string]string{"Nodes": strconv.Itoa(count[order[i]+" "+order[i+1]])}})
		}
	}
	return answer(w, http.StatusOK, v)
}

func capacity(n *dv1.Node) *dv1.Capacity {
	if n.GetCapacity() == nil {
		return &dv1.Capacity{}
	}
	return n.Capacity
}

// shared returns the value that all nodes have in common, or "mixed".
func shared(have, v string) string {
	switch {
	case have == "" || have == v:
		return v
	case v == "":
		return have
	}
	return "mixed"
}
