package engineapi

import (
	"context"
	"net/http"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Fleet is the control plane as this package uses it. controller/fleet implements
// it, as does controller/fleet/fleettest in memory.
type Fleet interface {
	States
	Proposer
	Observer
	Tasks
	Agents
	Events
	Leadership
	// Contact returns the node on this controller's host, "" if there is no agent.
	Contact() string
}

// States reads the replicated state.
type States interface {
	// State returns the applied state at the given raft index or later. If a leader can
	// be asked, it is at least as new as any response before the call.
	State(ctx context.Context, least uint64) (*state.Snapshot, error)
	// Find is State, and reports whether the state is fresh: not older than any response
	// before the call. A stale state is returned at once only if enough accepts it (nil
	// accepts any); otherwise Find waits a while for a leader.
	Find(ctx context.Context, least uint64, enough func(*state.Snapshot) bool) (snap *state.Snapshot, fresh bool, err error)
}

// Proposer changes the replicated state.
type Proposer interface {
	// Propose has the leader decide c, and returns once its entry is committed and
	// applied here. Result.Error is the leader's refusal.
	Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error)
}

// Observer reads what agents reported.
type Observer interface {
	// Observe asks the leader, unless this controller is it. Without a leader it returns
	// what is known here.
	Observe(ctx context.Context, q fleet.Query) *fleet.Observations
}

// Tasks waits for tasks.
type Tasks interface {
	// WaitTask blocks until done returns true for the task in raft (nil if it is
	// removed) and its latest status (may be nil). done is called at every change, never
	// concurrently.
	WaitTask(ctx context.Context, taskID string, done func(*dv1.Task, *dv1.TaskStatus) bool) error
}

// Agents reaches nodes.
type Agents interface {
	// Agent returns an HTTP client whose requests (http://agent/v1/…, pkg/bulk) go to
	// the node. It dials on first use.
	Agent(nodeID string) (*http.Client, error)
}

// Events reads the fleet's events, and publishes those that no entry of the log makes.
type Events interface {
	// Events delivers events from now on, after the stored ones since since (Unix ns, 0:
	// none), until ctx is done.
	Events(ctx context.Context, since int64) <-chan *dv1.Event
	// Pruned publishes that a type of objects was pruned, and the bytes that freed.
	Pruned(what string, reclaimed uint64)
}

// Leadership reports whether there is a leader.
type Leadership interface {
	// Leader reports whether a leader is known here. changed is closed once that may
	// have changed.
	Leader() (known bool, changed <-chan struct{})
}
