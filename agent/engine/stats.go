package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/cgroup"
	"github.com/drover/drover/agent/engine/spec"
	"github.com/drover/drover/agent/task"
)

// cgroups is where this host has its cgroups.
func cgroups() cgroup.Host {
	return cgroup.Host{Root: "/sys/fs/cgroup", Unified: unified(), Memory: uint64(memTotal())}
}

// cgroupOf returns the path of a container's cgroup, as its spec has it.
func (o Options) cgroupOf(id string) string { return o.cgroup() + "/" + id }

// Stats implements task.Streams. No shim is asked, and no process is started.
func (e *Engine) Stats(ctx context.Context, id string) (container.StatsResponse, error) {
	if err := e.mustRun(ctx, id); err != nil {
		return container.StatsResponse{}, err
	}
	s, err := e.groups.Stats(e.o.cgroupOf(id))
	if errors.Is(err, fs.ErrNotExist) { // it has just ended
		return s, fmt.Errorf("%s: %w", short(id), task.ErrNotRunning)
	}
	if err != nil {
		return s, err
	}
	s.Networks, err = e.counters(id)
	return s, err
}

// counters returns those of a container's interfaces, or of the ones that it shares.
func (e *Engine) counters(id string) (map[string]container.NetworkStats, error) {
	if e.o.Network.Get(id) == nil {
		s, err := e.readSpec(id)
		if err != nil {
			return nil, err
		}
		if spec.NetworkOf(s.Create) == spec.OtherNetwork {
			other, err := e.joined(s.Spec)
			if err != nil {
				return nil, nil // it was removed, and its interfaces with it
			}
			id = other.ID
		}
	}
	return e.o.Network.Counters(id)
}
