package engineapi

import (
	"context"
	"net/http"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Fleet is what this package needs of the control plane. It is implemented by
// controller/core and by a fake in this package's tests.
type Fleet interface {
	// Propose has the leader decide c, and returns once its entry is committed
	// and applied here. Result.Error is the leader's refusal.
	Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error)
	// State is the applied state at the given raft index or later (0: now).
	State(ctx context.Context, minIndex uint64) (*state.Snapshot, error)
	// Find is State, and says whether it is fresh: not older than any answer before
	// the call. A state that is not fresh is given at once only if it is enough;
	// otherwise a while is waited for a leader. nil: any is enough.
	Find(ctx context.Context, minIndex uint64, enough func(*state.Snapshot) bool) (snap *state.Snapshot, fresh bool, err error)
	// Observed is the last status of a task that its agent reported, nil if none.
	Observed(taskID string) *dv1.TaskStatus
	// WaitTask blocks until done says true of the task in raft (nil: it is
	// gone) and its last status (may be nil), calling it at every change.
	WaitTask(ctx context.Context, taskID string, done func(*dv1.Task, *dv1.TaskStatus) bool) error
	// Holders gives the nodes that hold an image's content.
	Holders(digest string) []string
	// Silent gives nodes that have not answered, and since when (Unix ns).
	Silent() map[string]int64
	// Agent is an HTTP client whose requests (http://agent/v1/…, pkg/bulk) reach the node.
	Agent(nodeID string) (*http.Client, error)
	// Events delivers events from now on, after those kept since since (Unix ns, 0: none).
	Events(ctx context.Context, since int64) <-chan *dv1.Event
	// Leaderless says whether no controller leads that this one can reach.
	Leaderless() bool
	// Contact is this controller's own node, "" if its host runs no agent.
	Contact() string
}
