package dispatch

import (
	"encoding/hex"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Bounds of what is kept of a node's words, far above what an agent says: whoever has
// a node's key must not fill the memory of its controllers, one after the other.
const (
	maxTold  = 16 << 20 // bytes of a node's statuses and images together
	maxEvent = 64 << 10 // bytes of one event
	perItem  = 128      // bytes that one status or image takes besides its own
)

// told is what agents said last, up to maxTold of each. Of a node it is found, and
// forgotten, without a look at the others: after an election all of them say
// everything at once.
type told struct {
	sizes   map[string]int             // bytes kept, by node
	tasks   map[string]observed        // by hex id
	byNode  map[string]map[string]bool // hex ids of tasks
	images  map[string]map[string]bool // digests, by node
	holders map[string]map[string]bool // nodes, by digest
}

// observed is a task's last status, from the node that the task is on.
type observed struct {
	node   string
	status *dv1.TaskStatus
	size   int
}

func newTold() told {
	return told{map[string]int{}, map[string]observed{}, map[string]map[string]bool{}, map[string]map[string]bool{}, map[string]map[string]bool{}}
}

// see keeps a status; false: there is no room for it, and the one before went too,
// which is not true any more.
func (t *told) see(node, id string, st *dv1.TaskStatus) bool {
	t.unsee(id)
	size := proto.Size(st) + perItem
	if t.sizes[node]+size > maxTold {
		return false
	}
	t.sizes[node] += size
	t.tasks[id] = observed{node, st, size}
	enter(t.byNode, node, id)
	return true
}

func (t *told) unsee(id string) {
	if o, ok := t.tasks[id]; ok {
		delete(t.tasks, id)
		leave(t.byNode, o.node, id)
		t.give(o.node, o.size)
	}
}

// has keeps that a node has an image; false: there is no room for it.
func (t *told) has(node, digest string) bool {
	size := len(digest) + perItem
	switch {
	case t.images[node][digest]:
		return true
	case t.sizes[node]+size > maxTold:
		return false
	}
	t.sizes[node] += size
	enter(t.images, node, digest)
	enter(t.holders, digest, node)
	return true
}

func (t *told) lacks(node, digest string) {
	if t.images[node][digest] {
		leave(t.images, node, digest)
		leave(t.holders, digest, node)
		t.give(node, len(digest)+perItem)
	}
}

// give gives bytes of a node's back.
func (t *told) give(node string, size int) {
	if t.sizes[node] -= size; t.sizes[node] <= 0 {
		delete(t.sizes, node)
	}
}

func (t *told) forget(node string) {
	for id := range t.byNode[node] {
		delete(t.tasks, id)
	}
	delete(t.byNode, node)
	for digest := range t.images[node] {
		leave(t.holders, digest, node)
	}
	delete(t.images, node)
	delete(t.sizes, node)
}

func enter(m map[string]map[string]bool, a, b string) {
	if m[a] == nil {
		m[a] = map[string]bool{}
	}
	m[a][b] = true
}

func leave(m map[string]map[string]bool, a, b string) {
	if delete(m[a], b); len(m[a]) == 0 {
		delete(m, a)
	}
}

// Observed is the last status of a task, nil if none was reported.
func (h *Hub) Observed(taskID string) *dv1.TaskStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tasks[taskID].status
}

// Holders gives the nodes that reported an image's content.
func (h *Hub) Holders(digest string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Keys(h.holders[digest]))
}

// own says whether a task is a node's to speak of: it was placed there, and is there
// until the node has acknowledged its removal.
func own(snap *state.Snapshot, node string, id []byte) bool {
	if t := snap.Task(id); t != nil {
		return t.NodeId == node
	}
	return snap.Tombstone(id).GetNodeId() == node
}

// observe keeps what a node says of its own tasks, and gives the reports that the
// log lacks. What it says of others' tasks, or of such as nobody gave it, is let go.
func (h *Hub) observe(s *session, o *dv1.Observation) (reports []*dv1.TaskReport) {
	snap := h.o.Log.Snapshot()
	left := 0 // out, for lack of room
	var events []*dv1.Event
	for _, e := range o.Events {
		switch {
		case proto.Size(e) > maxEvent:
			left++
		case own(snap, s.node, e.TaskId):
			events = append(events, e)
		}
	}
	h.mu.Lock()
	n := h.nodes[s.node]
	if n == nil || n.session != s { // superseded: a newer session knows better
		h.mu.Unlock()
		return nil
	}
	if o.Full {
		h.forget(s.node)
	}
	for _, i := range o.Images {
		if !h.has(s.node, i.Digest) {
			left++
		}
	}
	for _, d := range o.ImagesGone {
		h.lacks(s.node, d)
	}
	var changed []string
	for _, st := range o.Tasks {
		if !own(snap, s.node, st.Id) {
			continue
		}
		id := hex.EncodeToString(st.Id)
		changed = append(changed, id)
		if st.Gone {
			h.unsee(id)
			continue
		}
		if !h.see(s.node, id, st) {
			left++
		}
		if r := missing(snap.Task(st.Id), st); r != nil {
			reports = append(reports, r)
		}
	}
	warn := left > 0 && !s.much
	s.much = s.much || warn
	h.mu.Unlock()
	if warn {
		h.o.Logger.Warn("a node says more than is kept of one", "node", s.node, "left out", left)
	}
	for _, id := range changed {
		h.o.OnStatus(id)
	}
	for _, e := range events {
		h.o.OnEvent(e)
	}
	return reports
}

// missing is what the log does not know yet of a status: the first running and
// the last exit of an attempt, or why there was none. nil: nothing.
func missing(t *dv1.Task, st *dv1.TaskStatus) *dv1.TaskReport {
	if t == nil || st.Attempt < t.Attempt || st.Attempt == 0 {
		return nil
	}
	r := &dv1.TaskReport{TaskId: st.Id, Attempt: st.Attempt}
	var any bool
	if st.Started != 0 && (t.Started == 0 || st.Attempt > t.Attempt) {
		r.Started, r.Ports, any = st.Started, st.Ports, true
	}
	if e := st.Exit; e != nil && e.Attempt == st.Attempt && (t.Exit == nil || t.Exit.Attempt < e.Attempt) {
		r.Exit, any = e, true
	}
	if st.Phase == dv1.Phase_FAILED && t.Failed == "" && st.Started == 0 {
		r.Failed, any = st.Why, true
		if r.Failed == "" {
			r.Failed = "the task could not be started"
		}
	}
	if !any {
		return nil
	}
	return r
}
