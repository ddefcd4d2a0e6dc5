package state

import (
	"encoding/binary"
	"fmt"

	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/subnet"
)

// Txn is a private, writable copy of a Snapshot: what a batch of commands is
// decided on, and what Apply writes. One goroutine owns it.
type Txn struct {
	Snapshot
	rev uint64 // stamped into revisions; 0 leaves them
}

// NewTxn copies s; s stays as it is.
func NewTxn(s *Snapshot) *Txn { return &Txn{Snapshot: s.clone()} }

// View reads the transaction, with all that was written to it so far.
func (t *Txn) View() *Snapshot { return &t.Snapshot }

// Apply writes effects in order.
func (t *Txn) Apply(effects ...*dv1.Effect) error {
	for i, e := range effects {
		if err := t.apply(e); err != nil {
			return fmt.Errorf("effect %d: %w", i, err)
		}
	}
	return nil
}

// PutResult keeps the answer to a key.
func (t *Txn) PutResult(r *dv1.KeyResult) {
	t.deleteResult(r.Key)
	t.results.set(r.Key, r)
	t.resultAge.set(ageKey(r), none{})
	t.resultLen += proto.Size(r)
}

func (t *Txn) apply(e *dv1.Effect) error {
	switch of := e.GetOf().(type) {
	case *dv1.Effect_Cluster:
		t.cluster = of.Cluster
	case *dv1.Effect_Spec:
		t.specs.set(string(of.Spec.Id), of.Spec)
	case *dv1.Effect_Run:
		t.deleteRun(of.Run.Id)
		t.runs.set(string(of.Run.Id), of.Run)
		t.specRuns.set(string(of.Run.SpecId)+string(of.Run.Id), none{})
	case *dv1.Effect_Task:
		return t.putTask(of.Task)
	case *dv1.Effect_Tombstone:
		tomb := of.Tombstone
		if t.rev != 0 {
			tomb = stamped(tomb, func(m *dv1.Tombstone) { m.Revision = t.rev })
		}
		t.deleteTombstone(tomb.TaskId)
		t.tombstones.set(string(tomb.TaskId), tomb)
		t.nodeTombs.set(tomb.NodeId+"\x00"+string(tomb.TaskId), none{})
	case *dv1.Effect_Node:
		n := of.Node
		if t.rev != 0 {
			n = stamped(n, func(m *dv1.Node) { m.Revision = t.rev })
		}
		t.deleteNode(n.Id)
		t.nodes.set(n.Id, n)
		t.nodeNames.set(n.Name, n.Id)
		if p, ok := subnet.Of(n.Subnet); ok {
			t.subnets.set(subnetKey(subnet.Number(p)), n.Id)
		}
	case *dv1.Effect_Image:
		t.images.set(of.Image.Digest, of.Image)
	case *dv1.Effect_Tag:
		t.deleteTag(of.Tag.Ref)
		t.tags.set(of.Tag.Ref, of.Tag)
		t.digTags.set(of.Tag.Digest+"\x00"+of.Tag.Ref, none{})
	case *dv1.Effect_Identity:
		t.identities.set(of.Identity.Uri, of.Identity)
	case *dv1.Effect_Sealed:
		t.sealed.set(of.Sealed.Name, of.Sealed)
	case *dv1.Effect_Controller:
		m := of.Controller
		if t.rev != 0 {
			m = stamped(m, func(m *dv1.Controller) { m.Revision = t.rev })
		}
		t.members.set(m.Id, m)
	case *dv1.Effect_Token:
		t.tokens.set(of.Token.Id, of.Token)
	case *dv1.Effect_Ended:
		m := of.Ended
		if t.rev != 0 {
			m = stamped(m, func(m *dv1.Task) { m.Revision = t.rev })
		}
		t.deleteEnded(m.Id)
		t.ended.set(string(m.Id), m)
		t.endedAge.set(endedKey(m), none{})
	case *dv1.Effect_DeleteController:
		t.members.del(of.DeleteController)
	case *dv1.Effect_DeleteToken:
		t.tokens.del(of.DeleteToken)
	case *dv1.Effect_DeleteEnded:
		t.deleteEnded(of.DeleteEnded)
	case *dv1.Effect_DeleteSpec:
		t.specs.del(string(of.DeleteSpec))
	case *dv1.Effect_DeleteRun:
		t.deleteRun(of.DeleteRun)
	case *dv1.Effect_DeleteTask:
		t.deleteTask(of.DeleteTask)
	case *dv1.Effect_DeleteTombstone:
		t.deleteTombstone(of.DeleteTombstone)
	case *dv1.Effect_DeleteNode:
		t.deleteNode(of.DeleteNode)
	case *dv1.Effect_DeleteImage:
		t.images.del(of.DeleteImage)
	case *dv1.Effect_DeleteTag:
		t.deleteTag(of.DeleteTag)
	case *dv1.Effect_DeleteSealed:
		t.sealed.del(of.DeleteSealed)
	case *dv1.Effect_DeleteResult:
		t.deleteResult(of.DeleteResult)
	default:
		return fmt.Errorf("unknown effect %T: a newer version wrote it", of)
	}
	return nil
}

func (t *Txn) putTask(task *dv1.Task) error {
	if other := t.names.get(task.Name); other != "" && other != string(task.Id) {
		return fmt.Errorf("name %q of task %x is held by task %x", task.Name, task.Id, other)
	}
	if t.rev != 0 {
		task = stamped(task, func(m *dv1.Task) { m.Revision = t.rev })
	}
	t.deleteTask(task.Id)
	id := string(task.Id)
	t.tasks.set(id, task)
	t.names.set(task.Name, id)
	t.runTasks.set(string(task.RunId)+id, none{})
	if task.NodeId != "" {
		t.nodeTasks.set(task.NodeId+"\x00"+id, none{})
	}
	if s := t.Spec(task.SpecId); s != nil {
		t.imgTasks.set(s.Digest+"\x00"+id, none{})
	}
	return nil
}

func (t *Txn) deleteTask(id []byte) {
	old := t.Task(id)
	if old == nil {
		return
	}
	k := string(id)
	t.tasks.del(k)
	t.names.del(old.Name)
	t.runTasks.del(string(old.RunId) + k)
	t.nodeTasks.del(old.NodeId + "\x00" + k)
	if s := t.Spec(old.SpecId); s != nil {
		t.imgTasks.del(s.Digest + "\x00" + k)
	}
}

func (t *Txn) deleteNode(id string) {
	old := t.Node(id)
	if old == nil {
		return
	}
	t.nodes.del(id)
	if t.nodeNames.get(old.Name) == id {
		t.nodeNames.del(old.Name)
	}
	if p, ok := subnet.Of(old.Subnet); ok && t.subnets.get(subnetKey(subnet.Number(p))) == id {
		t.subnets.del(subnetKey(subnet.Number(p)))
	}
}

func (t *Txn) deleteRun(id []byte) {
	if old := t.Run(id); old != nil {
		t.runs.del(string(id))
		t.specRuns.del(string(old.SpecId) + string(id))
	}
}

func (t *Txn) deleteTombstone(id []byte) {
	if old := t.tombstones.get(string(id)); old != nil {
		t.tombstones.del(string(id))
		t.nodeTombs.del(old.NodeId + "\x00" + string(id))
	}
}

func (t *Txn) deleteTag(ref string) {
	if old := t.Tag(ref); old != nil {
		t.tags.del(ref)
		t.digTags.del(old.Digest + "\x00" + ref)
	}
}

func (t *Txn) deleteResult(key string) {
	if old := t.Result(key); old != nil {
		t.results.del(key)
		t.resultAge.del(ageKey(old))
		t.resultLen -= proto.Size(old)
	}
}

func (t *Txn) deleteEnded(id []byte) {
	if old := t.Ended(id); old != nil {
		t.ended.del(string(id))
		t.endedAge.del(endedKey(old))
	}
}

func endedKey(m *dv1.Task) string {
	return string(binary.BigEndian.AppendUint64(nil, m.Revision)) + string(m.Id)
}

func ageKey(r *dv1.KeyResult) string {
	return string(binary.BigEndian.AppendUint64(nil, uint64(r.At))) + r.Key
}
