package dispatch

import (
	"encoding/hex"

	"github.com/tidwall/btree"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/life"
)

// Limits on what is kept of a node's reports, far above what an agent has to report:
// somebody with a stolen node key must not exhaust the memory of one controller
// after another.
const (
	maxReported = 16 << 20 // bytes of a node's statuses and images together
	maxEvent    = 64 << 10 // bytes of one event
	perItem     = 128      // overhead of one status or image
)

// inventory is the latest report of a node, up to maxReported. It is immutable: edit
// makes the next one. A nil inventory is empty.
type inventory struct {
	tasks  btree.Map[string, *dv1.TaskStatus] // by id
	images btree.Set[string]                  // digests
	size   int
	paused int // how many tasks are paused
	ended  int // how many tasks have ended or failed to start
}

func (i *inventory) status(task []byte) *dv1.TaskStatus {
	if i == nil {
		return nil
	}
	st, _ := i.tasks.Get(string(task))
	return st
}

// holds reports whether the node has an image.
func (i *inventory) holds(digest string) bool { return i != nil && i.images.Contains(digest) }

// edit begins the next inventory. Calls for one node must be serialized: copying
// marks nodes of the tree as shared.
func (i *inventory) edit() *draft {
	return &draft{inventory: &inventory{tasks: *i.tasks.Copy(), images: *i.images.Copy(), size: i.size, paused: i.paused, ended: i.ended}, gained: map[string]bool{}, lost: map[string]bool{}}
}

// draft is an unpublished inventory, with how its images differ from the previous
// one's.
type draft struct {
	*inventory
	gained, lost map[string]bool
}

// clear removes everything.
func (d *draft) clear() {
	for digest := range d.images.Scan {
		d.lost[digest] = true
	}
	d.inventory = &inventory{}
}

// put stores a status and reports whether there was room for it. If not, the
// previous status is dropped too, since it is out of date.
func (d *draft) put(st *dv1.TaskStatus) bool {
	d.delete(st.Id)
	size := statusSize(st)
	if d.size+size > maxReported {
		return false
	}
	d.size += size
	d.tasks.Set(string(st.Id), st)
	d.count(st, 1)
	return true
}

func (d *draft) delete(task []byte) {
	if st, ok := d.tasks.Delete(string(task)); ok {
		d.size -= statusSize(st)
		d.count(st, -1)
	}
}

func (d *draft) count(st *dv1.TaskStatus, by int) {
	if st.Paused {
		d.paused += by
	}
	if ended(st) {
		d.ended += by
	}
}

// ended reports whether a status is of a life that ended or failed to begin: the exit of
// an earlier one doesn't count.
func ended(st *dv1.TaskStatus) bool {
	return st.Exit != nil && !life.Of(st.Exit).Before(life.Of(st)) || st.Phase == dv1.Phase_FAILED
}

func statusSize(st *dv1.TaskStatus) int { return proto.Size(st) + perItem }

// gain records that the node has an image and reports whether there was room for it.
func (d *draft) gain(digest string) bool {
	size := len(digest) + perItem
	switch {
	case d.images.Contains(digest):
		return true
	case d.size+size > maxReported:
		return false
	}
	d.size += size
	d.images.Insert(digest)
	if d.lost[digest] {
		delete(d.lost, digest)
	} else {
		d.gained[digest] = true
	}
	return true
}

func (d *draft) lose(digest string) {
	if !d.images.Contains(digest) {
		return
	}
	d.images.Delete(digest)
	d.size -= len(digest) + perItem
	if d.gained[digest] {
		delete(d.gained, digest)
	} else {
		d.lost[digest] = true
	}
}

// owns reports whether a node may report on a task: the task was placed there, and
// the node has not acknowledged its removal.
func owns(snap *state.Snapshot, node string, task []byte) bool {
	if t := snap.Task(task); t != nil {
		return t.NodeId == node
	}
	return snap.Tombstone(task).GetNodeId() == node
}

// observe keeps what a node reports about its own tasks and returns what the log
// lacks of it. Reports about other nodes' tasks, or unknown ones, are ignored.
func (t *term) observe(s *session, o *dv1.Observation) (missing []*dv1.TaskReport) {
	snap := t.o.Log.Snapshot()
	events, ignored := ownEvents(snap, s.node, o.Events)
	changed, missing, full, current := t.take(snap, s, o)
	if !current {
		return nil
	}
	if ignored += full; ignored > 0 && !s.warned {
		s.warned = true
		t.o.Logger.Warn("a node reports more than the limit, ignoring the rest", "node", s.node, "ignored", ignored)
	}
	for _, id := range changed {
		t.o.OnStatus(hex.EncodeToString(id))
	}
	for _, e := range events {
		t.o.OnEvent(e)
	}
	return missing
}

func ownEvents(snap *state.Snapshot, node string, all []*dv1.Event) (own []*dv1.Event, tooLarge int) {
	for _, e := range all {
		switch {
		case proto.Size(e) > maxEvent:
			tooLarge++
		case owns(snap, node, e.TaskId):
			e.NodeId = ""
			if e.Volume != "" {
				e.NodeId = node
			}
			own = append(own, e)
		}
	}
	return own, tooLarge
}

// take updates a node's inventory if s is still its current session: a newer one
// knows better. ignored counts what there was no room for.
func (t *term) take(snap *state.Snapshot, s *session, o *dv1.Observation) (changed [][]byte, missing []*dv1.TaskReport, ignored int, current bool) {
	s.of.observing.Lock()
	defer s.of.observing.Unlock()
	old := t.reported.of(s.node)
	if old == nil || s.of.session.Load() != s {
		return nil, nil, 0, false
	}
	d := old.edit()
	if o.Full {
		d.clear()
	}
	for _, i := range o.Images {
		if !d.gain(i.Digest) {
			ignored++
		}
	}
	for _, digest := range o.ImagesGone {
		d.lose(digest)
	}
	for _, st := range o.Tasks {
		task := snap.Task(st.Id)
		if task.GetNodeId() != s.node && !owns(snap, s.node, st.Id) {
			continue
		}
		changed = append(changed, st.Id)
		if st.Gone {
			d.delete(st.Id)
			continue
		}
		if !d.put(st) {
			ignored++
		}
		if r := unrecorded(task, st); r != nil {
			missing = append(missing, r)
		}
	}
	t.reported.put(s.node, d)
	return changed, missing, ignored, true
}

// forget drops the statuses of tasks whose removal a node acknowledged.
func (t *term) forget(n *node, tasks []string) {
	n.observing.Lock()
	defer n.observing.Unlock()
	old := t.reported.of(n.id)
	if old == nil {
		return
	}
	d := old.edit()
	for _, id := range tasks {
		d.delete([]byte(id))
	}
	t.reported.put(n.id, d)
}

// unrecorded returns what of a status the log lacks: the first running and the last
// exit of an attempt and of the agent's own restarts within it, or why it failed to
// start. Of an attempt that another one has followed it is the exit only. It returns nil
// if nothing is missing, and for an attempt that raft has not asked for.
func unrecorded(t *dv1.Task, st *dv1.TaskStatus) *dv1.TaskReport {
	if t == nil || st.Attempt > t.Attempt || st.Attempt == 0 {
		return nil
	}
	if st.Attempt < t.Attempt {
		if e := st.Exit; e.GetAttempt() == st.Attempt && life.Of(t.Exit).Before(life.Of(e)) {
			return &dv1.TaskReport{TaskId: st.Id, Attempt: st.Attempt, Restarts: st.Restarts, Exit: e}
		}
		return nil
	}
	if st.Restarts < t.Restarts {
		return nil
	}
	r := &dv1.TaskReport{TaskId: st.Id, Attempt: st.Attempt, Restarts: st.Restarts}
	anew := st.Restarts > t.Restarts
	found := anew
	if st.Started != 0 && (t.Started == 0 || anew) {
		r.Started, r.Ports, found = st.Started, st.Ports, true
	}
	if e := st.Exit; e != nil && e.Attempt == st.Attempt && life.Of(t.Exit).Before(life.Of(e)) {
		r.Exit, found = e, true
	}
	if st.Phase == dv1.Phase_FAILED && t.Failed == "" && st.Started == 0 {
		r.Failed, found = st.Why, true
		if r.Failed == "" {
			r.Failed = "the task could not be started"
		}
	}
	if !found {
		return nil
	}
	return r
}
