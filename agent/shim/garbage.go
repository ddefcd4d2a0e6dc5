package shim

import (
	"context"
	"math"
	"runtime/debug"
	"sync/atomic"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/protobuf/types/known/emptypb"
)

const (
	// settled is how long after the beginning of a process a shim shrinks.
	settled = 3 * time.Second
	// startMemory bounds, in bytes, the memory of a shim that has yet to shrink.
	startMemory = 24 << 20
	// idlePercent is the GOGC of a shim that has shrunk. There is one shim for each
	// container, so its heap is kept close to what is in use.
	idlePercent = 25
)

// collecting wraps a task service, and decides when its process collects garbage: not while
// a process is created, which allocates 2 MB and is waited for.
type collecting struct {
	taskAPI.TTRPCTaskService
	due atomic.Bool // the shim is about to shrink
}

// newCollecting puts collections off until the first process was created: a shim that waits
// for its container allocates nothing.
func newCollecting(tasks taskAPI.TTRPCTaskService) *collecting {
	postpone()
	return &collecting{TTRPCTaskService: tasks}
}

func (c *collecting) Create(ctx context.Context, r *taskAPI.CreateTaskRequest) (*taskAPI.CreateTaskResponse, error) {
	c.grow()
	return c.TTRPCTaskService.Create(ctx, r)
}

func (c *collecting) Exec(ctx context.Context, r *taskAPI.ExecProcessRequest) (*emptypb.Empty, error) {
	c.grow()
	return c.TTRPCTaskService.Exec(ctx, r)
}

// grow puts collections off until a while later, when the shim shrinks; what is created
// meanwhile does not put them off further.
func (c *collecting) grow() {
	postpone()
	if c.due.CompareAndSwap(false, true) {
		time.AfterFunc(settled, c.shrink)
	}
}

func postpone() {
	debug.SetMemoryLimit(startMemory)
	debug.SetGCPercent(-1)
}

// shrink returns the memory that a start needed to the system.
func (c *collecting) shrink() {
	c.due.Store(false)
	debug.SetGCPercent(idlePercent)
	debug.SetMemoryLimit(math.MaxInt64)
	debug.FreeOSMemory()
}
