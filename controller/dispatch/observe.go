package dispatch

import (
	"encoding/hex"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// observed is a task's last status, from the node that the task is on.
type observed struct {
	node   string
	status *dv1.TaskStatus
}

// Observed is the last status of a task, nil if none was reported.
func (h *Hub) Observed(taskID string) *dv1.TaskStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tasks[taskID].status
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
	h.mu.Lock()
	n := h.nodes[s.node]
	if n == nil || n.session != s { // superseded: a newer session knows better
		h.mu.Unlock()
		return nil
	}
	if o.Full {
		n.images = map[string]bool{}
		h.forget(s.node)
	}
	for _, i := range o.Images {
		n.images[i.Digest] = true
	}
	for _, d := range o.ImagesGone {
		delete(n.images, d)
	}
	var told []string
	for _, st := range o.Tasks {
		if !own(snap, s.node, st.Id) {
			continue
		}
		id := hex.EncodeToString(st.Id)
		told = append(told, id)
		if st.Gone {
			delete(h.tasks, id)
			continue
		}
		h.tasks[id] = observed{s.node, st}
		if r := missing(snap.Task(st.Id), st); r != nil {
			reports = append(reports, r)
		}
	}
	h.mu.Unlock()
	for _, id := range told {
		h.o.OnStatus(id)
	}
	for _, e := range o.Events {
		if own(snap, s.node, e.TaskId) {
			h.o.OnEvent(e)
		}
	}
	return reports
}

// forget drops a node's statuses, with mu held.
func (h *Hub) forget(node string) {
	for id, t := range h.tasks {
		if t.node == node {
			delete(h.tasks, id)
		}
	}
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
