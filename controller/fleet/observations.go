// Package fleet is the fleet as APIs see it: what raft decided, what agents
// reported, their bulk ports, and the events of all of these. Local is one
// controller's own view, which on the leader is complete. Deciding is left to
// consensus, sessions of agents to dispatch.
package fleet

import (
	"errors"
	"maps"
	"slices"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// ErrNoLeader means that no leader was reached. Retrying later, with the same key,
// is safe.
var ErrNoLeader = errors.New("the controllers have no leader: a majority of them must reach each other")

// ErrUndecided goes with ErrNoLeader if a leader was asked and then lost.
var ErrUndecided = errors.New("whether this was done is not known: the last leader was lost meanwhile")

// Query names the parts of agents' reports that a request needs. Silent nodes are
// always included.
type Query struct {
	Tasks  []string // hex ids of tasks whose latest statuses are needed
	Images []string // digests whose holders are needed
	Ended  bool     // statuses of those tasks are needed whose end the log does not know yet
}

// Observations is what agents reported, as of one moment. It is immutable, and nil
// is valid: nothing was reported.
type Observations struct {
	Silence map[string]int64           // silent nodes, and since when (Unix ns)
	Tasks   map[string]*dv1.TaskStatus // by hex id; tasks without a status are missing
	Images  map[string][]string        // nodes that hold an image, by digest
	Paused  int                        // how many tasks are paused; only the leader knows
}

// Silent reports whether a node is silent, and since when (Unix ns).
func (o *Observations) Silent(node string) (since int64, silent bool) {
	if o == nil {
		return 0, false
	}
	since, silent = o.Silence[node]
	return since, silent
}

// SilentNodes returns the ids of all silent nodes, sorted.
func (o *Observations) SilentNodes() []string {
	if o == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(o.Silence))
}

// Status returns the latest status of a task in the query, nil if none was reported.
func (o *Observations) Status(task string) *dv1.TaskStatus {
	if o == nil {
		return nil
	}
	return o.Tasks[task]
}

// Holders returns the nodes that hold an image in the query.
func (o *Observations) Holders(digest string) []string {
	if o == nil {
		return nil
	}
	return o.Images[digest]
}
