// Package fleet is the fleet as APIs see it: what raft decided, what agents
// reported, their own ports, and the events of all of these. Local is one
// controller's own view, which is the whole of it on the leader.
// Deciding is left to consensus, sessions of agents to dispatch.
package fleet

import (
	"errors"
	"maps"
	"slices"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// ErrNoLeader: no controller that decides was reached. Asking again later, with the
// same key, does no harm.
var ErrNoLeader = errors.New("the controllers have no leader: a majority of them must reach each other")

// ErrUndecided goes with ErrNoLeader where a leader was asked and then lost.
var ErrUndecided = errors.New("whether this was done is not known: the last leader was lost meanwhile")

// Query is what a request needs of what agents reported. Silent nodes are always
// part of the answer.
type Query struct {
	Tasks  []string // hex ids of tasks whose last statuses are wanted
	Images []string // digests whose holders are wanted
}

// Observations is what agents reported, as of one moment. It does not change, and
// nil is a valid one: nothing was reported.
type Observations struct {
	Silence map[string]int64           // silent nodes, and since when (Unix ns)
	Tasks   map[string]*dv1.TaskStatus // by hex id; a task without a status is not in it
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

// SilentNodes are the ids of all silent nodes, sorted.
func (o *Observations) SilentNodes() []string {
	if o == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(o.Silence))
}

// Status is the last status of a task that was queried, nil if none was reported.
func (o *Observations) Status(task string) *dv1.TaskStatus {
	if o == nil {
		return nil
	}
	return o.Tasks[task]
}

// Holders are the nodes that hold an image that was queried.
func (o *Observations) Holders(digest string) []string {
	if o == nil {
		return nil
	}
	return o.Images[digest]
}
