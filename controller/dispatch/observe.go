package dispatch

import (
	"encoding/hex"

	"github.com/tidwall/btree"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Bounds of what is kept of a node's reports, far above what an agent has to report:
// whoever has a node's key must not fill the memory of its controllers, one after the
// other.
const (
	maxReported = 16 << 20 // bytes of a node's statuses and images together
	maxEvent    = 64 << 10 // bytes of one event
	perItem     = 128      // bytes that one status or image takes besides its own
)

// inventory is what a node reported last, up to maxReported. It does not change:
// edit makes another. The nil inventory is empty.
type inventory struct {
	tasks  btree.Map[string, *dv1.TaskStatus] // by id
	images btree.Set[string]                  // digests
	size   int
	paused int // how many of tasks are
}

func (i *inventory) status(task []byte) *dv1.TaskStatus {
	if i == nil {
		return nil
	}
	st, _ := i.tasks.Get(string(task))
	return st
}

// edit begins the next inventory. It is called for one observation of a node after
// the other: copying marks what is shared.
func (i *inventory) edit() *draft {
	return &draft{inventory: &inventory{tasks: *i.tasks.Copy(), images: *i.images.Copy(), size: i.size, paused: i.paused}, gained: map[string]bool{}, lost: map[string]bool{}}
}

// draft is an inventory that nobody else sees yet, and how its images differ from
// those of the one before.
type draft struct {
	*inventory
	gained, lost map[string]bool
}

// clear forgets everything.
func (d *draft) clear() {
	for digest := range d.images.Scan {
		d.lost[digest] = true
	}
	d.inventory = &inventory{}
}

// put keeps a status and reports whether there was room for it. If not, the one
// before goes too, which is not true any more.
func (d *draft) put(st *dv1.TaskStatus) bool {
	d.delete(st.Id)
	size := statusSize(st)
	if d.size+size > maxReported {
		return false
	}
	d.size += size
	d.tasks.Set(string(st.Id), st)
	if st.Paused {
		d.paused++
	}
	return true
}

func (d *draft) delete(task []byte) {
	if st, ok := d.tasks.Delete(string(task)); ok {
		d.size -= statusSize(st)
		if st.Paused {
			d.paused--
		}
	}
}

func statusSize(st *dv1.TaskStatus) int { return proto.Size(st) + perItem }

// gain keeps that the node has an image and reports whether there was room for it.
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

// owns reports whether a task is a node's to speak of: it was placed there, and is
// there until the node has acknowledged its removal.
func owns(snap *state.Snapshot, node string, task []byte) bool {
	if t := snap.Task(task); t != nil {
		return t.NodeId == node
	}
	return snap.Tombstone(task).GetNodeId() == node
}

// observe keeps what a node reports of its own tasks, and returns what the log lacks
// of it. What it says of others' tasks, or of such as nobody assigned to it, is
// ignored.
func (t *term) observe(s *session, o *dv1.Observation) (missing []*dv1.TaskReport) {
	snap := t.o.Log.Snapshot()
	events, ignored := ownEvents(snap, s.node, o.Events)
	changed, missing, full, current := t.take(snap, s, o)
	if !current {
		return nil
	}
	if ignored += full; ignored > 0 && !s.warned {
		s.warned = true
		t.o.Logger.Warn("a node reports more than is kept of one", "node", s.node, "ignored", ignored)
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
			own = append(own, e)
		}
	}
	return own, tooLarge
}

// take brings a node's inventory up to date, if s is its session still: a newer one
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

// forget drops statuses of tasks whose removal a node acknowledged.
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

// unrecorded is what the log does not know yet of a status: the first running and the
// last exit of an attempt, and of the lives that its agent began anew, or why there was
// none. nil: nothing. Attempts are raft's: one that it has not asked for is not reported.
func unrecorded(t *dv1.Task, st *dv1.TaskStatus) *dv1.TaskReport {
	if t == nil || st.Attempt != t.Attempt || st.Attempt == 0 || st.Restarts < t.Restarts {
		return nil
	}
	r := &dv1.TaskReport{TaskId: st.Id, Attempt: st.Attempt, Restarts: st.Restarts}
	anew := st.Restarts > t.Restarts
	found := anew
	if st.Started != 0 && (t.Started == 0 || anew) {
		r.Started, r.Ports, found = st.Started, st.Ports, true
	}
	if e := st.Exit; e != nil && e.Attempt == st.Attempt && (t.Exit.GetAttempt() < e.Attempt || t.Exit.GetRestarts() < e.Restarts) {
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
