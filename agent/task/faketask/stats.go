package faketask

import (
	"context"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/task"
)

// Stats samples a program, which uses half of the one CPU.
func (e *Engine) Stats(_ context.Context, id string) (container.StatsResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.tasks[id]
	switch {
	case t == nil:
		return container.StatsResponse{}, notFound(id)
	case t.p == nil:
		return container.StatsResponse{}, task.ErrNotRunning
	}
	now := time.Now()
	s := container.StatsResponse{Read: now, PidsStats: container.PidsStats{Current: 1}, MemoryStats: container.MemoryStats{Usage: 1 << 20, Limit: 1 << 30}}
	s.CPUStats = container.CPUStats{SystemUsage: uint64(now.UnixNano()), OnlineCPUs: 1}
	s.CPUStats.CPUUsage.TotalUsage = uint64(now.Sub(t.attempt.Started) / 2)
	return s, nil
}
