package engineapi

import (
	"context"
	"net/http"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Fleet is all that this package needs of the control plane. controller/fleet
// implements it, and controller/fleet/fleettest in memory.
type Fleet interface {
	States
	Proposer
	Observer
	Tasks
	Agents
	Events
	Leadership
	// Contact is this controller's own node, "" if its host runs no agent.
	Contact() string
}

// States reads what raft decided.
type States interface {
	// State is the applied state at the given raft index or later. It is at least as
	// new as any answer before the call if a leader can be asked.
	State(ctx context.Context, least uint64) (*state.Snapshot, error)
	// Find is State, and reports whether the state is fresh: not older than any answer
	// before the call. One that is not is returned at once only if enough accepts it
	// (nil accepts any); otherwise a leader is waited for a while.
	Find(ctx context.Context, least uint64, enough func(*state.Snapshot) bool) (snap *state.Snapshot, fresh bool, err error)
}

// Proposer changes what raft decided.
type Proposer interface {
	// Propose has the leader decide c, and returns once its entry is committed and
	// applied here. Result.Error is the leader's refusal.
	Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error)
}

// Observer reads what agents reported.
type Observer interface {
	// Observe asks the leader where this controller is not it. Without a leader it
	// returns what is known here.
	Observe(ctx context.Context, q fleet.Query) *fleet.Observations
}

// Tasks waits for tasks.
type Tasks interface {
	// WaitTask blocks until done returns true for the task in raft (nil: it is gone)
	// and its last status (may be nil), calling it at every change, never twice at once.
	WaitTask(ctx context.Context, taskID string, done func(*dv1.Task, *dv1.TaskStatus) bool) error
}

// Agents reaches nodes.
type Agents interface {
	// Agent is an HTTP client whose requests (http://agent/v1/…, pkg/bulk) reach the
	// node. It dials when it is used.
	Agent(nodeID string) (*http.Client, error)
}

// Events reads what happens.
type Events interface {
	// Events delivers events from now on, after those kept since since (Unix ns, 0:
	// none), until ctx ends.
	Events(ctx context.Context, since int64) <-chan *dv1.Event
}

// Leadership is whether anybody decides.
type Leadership interface {
	// Leader reports whether a leader is known here. changed is closed once that may
	// be different.
	Leader() (known bool, changed <-chan struct{})
}
