package engine

import (
	"context"
	"fmt"

	taskspb "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/ps"
	"github.com/drover/drover/agent/task"
)

// Top implements task.Streams. The processes are those of the container's cgroup.
func (e *Engine) Top(ctx context.Context, id, args string) (container.TopResponse, error) {
	if err := e.mustRun(ctx, id); err != nil {
		return container.TopResponse{}, err
	}
	r, err := e.tasks.ListPids(e.ctx(ctx), &taskspb.ListPidsRequest{ContainerID: id})
	if err != nil && notFound(err) {
		return container.TopResponse{}, fmt.Errorf("%s: %w", short(id), task.ErrNotRunning)
	}
	if err != nil {
		return container.TopResponse{}, fmt.Errorf("listing the processes of %s: %w", short(id), err)
	}
	var pids []int
	for _, p := range r.Processes {
		pids = append(pids, int(p.Pid))
	}
	list, err := ps.Host{}.List(ctx, args, pids)
	if err == nil {
		e.o.Event(id, "top", nil)
	}
	return list, err
}
