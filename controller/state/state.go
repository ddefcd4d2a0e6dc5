// Package state holds what the replicated log has decided, as immutable
// copy-on-write snapshots behind a typed store.
// It is deterministic: deciding, proposing and telling agents are left to
// command, consensus and dispatch, and times come out of log entries.
package state

import (
	"encoding/binary"
	"encoding/hex"
	"iter"
	"strings"
	"sync"

	"github.com/tidwall/btree"
	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// FeatureLevel is the highest level of entries that this build can apply.
const FeatureLevel = 1

type item[V any] struct {
	key string
	val V
}

type tree[V any] struct{ t *btree.BTreeG[item[V]] }

// newTree makes a tree without locks: a Snapshot's trees are only read, a
// Txn's have one owner, and copying is guarded by Snapshot.copying.
func newTree[V any]() tree[V] {
	return tree[V]{btree.NewBTreeGOptions(func(a, b item[V]) bool { return a.key < b.key }, btree.Options{NoLocks: true, Degree: 16})}
}

func (t tree[V]) get(k string) (v V) {
	i, ok := t.t.Get(item[V]{key: k})
	if !ok {
		return v
	}
	return i.val
}
func (t tree[V]) set(k string, v V) { t.t.Set(item[V]{k, v}) }
func (t tree[V]) del(k string)      { t.t.Delete(item[V]{key: k}) }
func (t tree[V]) copy() tree[V]     { return tree[V]{t.t.Copy()} }

// from yields everything whose key starts with prefix, in key order.
func (t tree[V]) from(prefix string) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		t.t.Ascend(item[V]{key: prefix}, func(i item[V]) bool {
			return strings.HasPrefix(i.key, prefix) && yield(i.key, i.val)
		})
	}
}

func (t tree[V]) values(prefix string) iter.Seq[V] {
	return func(yield func(V) bool) {
		for _, v := range t.from(prefix) {
			if !yield(v) {
				return
			}
		}
	}
}

type none = struct{}

// Snapshot is an immutable view of the state at one index. It is safe for
// concurrent use; the messages it returns must not be modified.
type Snapshot struct {
	index   uint64
	time    int64
	cluster *dv1.Cluster
	copying *sync.Mutex // guards copying the trees, which marks their nodes as shared

	specs      tree[*dv1.Spec]
	runs       tree[*dv1.Run]
	tasks      tree[*dv1.Task]
	tombstones tree[*dv1.Tombstone]
	nodes      tree[*dv1.Node]
	images     tree[*dv1.Image]
	tags       tree[*dv1.Tag]
	identities tree[*dv1.Identity]
	sealed     tree[*dv1.Sealed]
	results    tree[*dv1.KeyResult]
	members    tree[*dv1.Controller]
	tokens     tree[*dv1.Token]
	ended      tree[*dv1.Task]

	names     tree[string] // task name -> id
	nodeNames tree[string] // node name -> id
	subnets   tree[string] // big-endian number of a node's subnet -> id
	nodeTasks tree[none]   // node \0 task id
	runTasks  tree[none]   // run id, task id
	specRuns  tree[none]   // spec id, run id
	imgTasks  tree[none]   // digest \0 task id
	nodeTombs tree[none]   // node \0 task id
	digTags   tree[none]   // digest \0 ref
	resultAge tree[none]   // big-endian time, key
	resultLen int          // bytes of all results
	endedAge  tree[none]   // big-endian revision, task id
}

func empty() *Snapshot {
	return &Snapshot{
		copying: &sync.Mutex{},
		specs:   newTree[*dv1.Spec](), runs: newTree[*dv1.Run](), tasks: newTree[*dv1.Task](),
		tombstones: newTree[*dv1.Tombstone](), nodes: newTree[*dv1.Node](), images: newTree[*dv1.Image](),
		tags: newTree[*dv1.Tag](), identities: newTree[*dv1.Identity](), sealed: newTree[*dv1.Sealed](),
		results: newTree[*dv1.KeyResult](), members: newTree[*dv1.Controller](), tokens: newTree[*dv1.Token](), ended: newTree[*dv1.Task](),
		names: newTree[string](), nodeNames: newTree[string](), subnets: newTree[string](), nodeTasks: newTree[none](), runTasks: newTree[none](), specRuns: newTree[none](),
		imgTasks: newTree[none](), nodeTombs: newTree[none](), digTags: newTree[none](), resultAge: newTree[none](), endedAge: newTree[none](),
	}
}

func (s *Snapshot) clone() Snapshot {
	s.copying.Lock()
	defer s.copying.Unlock()
	return Snapshot{
		index: s.index, time: s.time, cluster: s.cluster, resultLen: s.resultLen, copying: &sync.Mutex{},
		specs: s.specs.copy(), runs: s.runs.copy(), tasks: s.tasks.copy(), tombstones: s.tombstones.copy(),
		nodes: s.nodes.copy(), images: s.images.copy(), tags: s.tags.copy(), identities: s.identities.copy(),
		sealed: s.sealed.copy(), results: s.results.copy(), members: s.members.copy(), tokens: s.tokens.copy(), ended: s.ended.copy(),
		names: s.names.copy(), nodeNames: s.nodeNames.copy(), subnets: s.subnets.copy(), nodeTasks: s.nodeTasks.copy(), runTasks: s.runTasks.copy(), specRuns: s.specRuns.copy(),
		imgTasks: s.imgTasks.copy(), nodeTombs: s.nodeTombs.copy(), digTags: s.digTags.copy(), resultAge: s.resultAge.copy(), endedAge: s.endedAge.copy(),
	}
}

// Index is the raft index of the last entry that changed the state: its version.
func (s *Snapshot) Index() uint64 { return s.index }

// Time is the state's time in Unix nanoseconds; it never goes back.
func (s *Snapshot) Time() int64 { return s.time }

// Cluster is nil until Init was committed.
func (s *Snapshot) Cluster() *dv1.Cluster { return s.cluster }

// Task is nil if there is none.
func (s *Snapshot) Task(id []byte) *dv1.Task { return s.tasks.get(string(id)) }

// TaskByName takes the name without its leading slash.
func (s *Snapshot) TaskByName(name string) *dv1.Task {
	if id := s.names.get(name); id != "" {
		return s.tasks.get(id)
	}
	return nil
}

// TasksByPrefix gives the tasks whose hex id starts with prefix; none for
// what isn't hex, or empty.
func (s *Snapshot) TasksByPrefix(prefix string) []*dv1.Task {
	prefix = strings.ToLower(prefix)
	raw, err := hex.DecodeString(prefix[:len(prefix)&^1])
	if prefix == "" || err != nil {
		return nil
	}
	var out []*dv1.Task
	for id, t := range s.tasks.from(string(raw)) {
		if len(prefix)%2 == 0 || strings.HasPrefix(hex.EncodeToString([]byte(id)), prefix) {
			out = append(out, t)
		}
	}
	return out
}

// Tasks yields all tasks in the order of their ids.
func (s *Snapshot) Tasks() iter.Seq[*dv1.Task] { return s.tasks.values("") }

// TasksOfNode yields the tasks placed on a node.
func (s *Snapshot) TasksOfNode(node string) iter.Seq[*dv1.Task] {
	return s.tasksOf(s.nodeTasks, node+"\x00")
}

// TasksOfRun yields the tasks of a run.
func (s *Snapshot) TasksOfRun(run []byte) iter.Seq[*dv1.Task] {
	return s.tasksOf(s.runTasks, string(run))
}

// TasksOfImage yields the tasks whose spec names the image.
func (s *Snapshot) TasksOfImage(digest string) iter.Seq[*dv1.Task] {
	return s.tasksOf(s.imgTasks, digest+"\x00")
}

func (s *Snapshot) tasksOf(index tree[none], prefix string) iter.Seq[*dv1.Task] {
	return func(yield func(*dv1.Task) bool) {
		for k := range index.from(prefix) {
			if t := s.tasks.get(k[len(prefix):]); t != nil && !yield(t) {
				return
			}
		}
	}
}

// SpecHasRuns says whether at least n runs, above 0, use a spec.
func (s *Snapshot) SpecHasRuns(spec []byte, n int) bool {
	for range s.specRuns.from(string(spec)) {
		if n--; n <= 0 {
			return true
		}
	}
	return false
}

func (s *Snapshot) Spec(id []byte) *dv1.Spec            { return s.specs.get(string(id)) }
func (s *Snapshot) Run(id []byte) *dv1.Run              { return s.runs.get(string(id)) }
func (s *Snapshot) Node(id string) *dv1.Node            { return s.nodes.get(id) }
func (s *Snapshot) Nodes() iter.Seq[*dv1.Node]          { return s.nodes.values("") }
func (s *Snapshot) Image(digest string) *dv1.Image      { return s.images.get(digest) }
func (s *Snapshot) Images() iter.Seq[*dv1.Image]        { return s.images.values("") }
func (s *Snapshot) Tag(ref string) *dv1.Tag             { return s.tags.get(ref) }
func (s *Snapshot) Tags() iter.Seq[*dv1.Tag]            { return s.tags.values("") }
func (s *Snapshot) Identity(uri string) *dv1.Identity   { return s.identities.get(uri) }
func (s *Snapshot) Identities() iter.Seq[*dv1.Identity] { return s.identities.values("") }
func (s *Snapshot) Sealed(name string) *dv1.Sealed      { return s.sealed.get(name) }
func (s *Snapshot) SealedAll() iter.Seq[*dv1.Sealed]    { return s.sealed.values("") }

func (s *Snapshot) Controller(id string) *dv1.Controller   { return s.members.get(id) }
func (s *Snapshot) Controllers() iter.Seq[*dv1.Controller] { return s.members.values("") }
func (s *Snapshot) Token(id string) *dv1.Token             { return s.tokens.get(id) }
func (s *Snapshot) Tokens() iter.Seq[*dv1.Token]           { return s.tokens.values("") }

// Ended is an auto-removed task as it was last, nil if it is not (or no longer) known.
func (s *Snapshot) Ended(id []byte) *dv1.Task { return s.ended.get(string(id)) }

// EndedCount is how many ended tasks are kept.
func (s *Snapshot) EndedCount() int { return s.ended.t.Len() }

// EndedByAge yields ended tasks, oldest first.
func (s *Snapshot) EndedByAge() iter.Seq[*dv1.Task] {
	return func(yield func(*dv1.Task) bool) {
		for k := range s.endedAge.from("") {
			if t := s.ended.get(k[8:]); t != nil && !yield(t) {
				return
			}
		}
	}
}

// NodeByName is nil if there is none. The name may be the node's id.
func (s *Snapshot) NodeByName(name string) *dv1.Node {
	if n := s.Node(name); n != nil {
		return n
	}
	return s.NodeNamed(name)
}

// NodeNamed is nil if there is none.
func (s *Snapshot) NodeNamed(name string) *dv1.Node { return s.Node(s.nodeNames.get(name)) }

// Subnets is how many nodes have a subnet; SubnetAt gives the number of the i-th of
// them, in rising order, as subnet.Free wants them.
func (s *Snapshot) Subnets() int { return s.subnets.t.Len() }

// SubnetAt is in O(log n).
func (s *Snapshot) SubnetAt(i int) uint32 {
	it, _ := s.subnets.t.GetAt(i)
	return binary.BigEndian.Uint32([]byte(it.key))
}

// NodeOfSubnet is nil if the subnet is free.
func (s *Snapshot) NodeOfSubnet(number uint32) *dv1.Node {
	return s.Node(s.subnets.get(subnetKey(number)))
}

func subnetKey(number uint32) string { return string(binary.BigEndian.AppendUint32(nil, number)) }

// Result is what a key was answered with, nil if it is not (or no longer) known.
func (s *Snapshot) Result(key string) *dv1.KeyResult { return s.results.get(key) }

// ResultCount is how many key results are kept.
func (s *Snapshot) ResultCount() int { return s.results.t.Len() }

// ResultBytes is how much key results take.
func (s *Snapshot) ResultBytes() int { return s.resultLen }

// ResultsByAge yields key results, oldest first.
func (s *Snapshot) ResultsByAge() iter.Seq[*dv1.KeyResult] {
	return func(yield func(*dv1.KeyResult) bool) {
		for k := range s.resultAge.from("") {
			if r := s.results.get(k[8:]); r != nil && !yield(r) {
				return
			}
		}
	}
}

// ImagesByPrefix gives the images whose digest starts with prefix, with or
// without "sha256:".
func (s *Snapshot) ImagesByPrefix(prefix string) []*dv1.Image {
	prefix = "sha256:" + strings.TrimPrefix(strings.ToLower(prefix), "sha256:")
	var out []*dv1.Image
	for i := range s.images.values(prefix) {
		out = append(out, i)
	}
	return out
}

// TagsOf gives the refs that name a digest, sorted.
func (s *Snapshot) TagsOf(digest string) []string {
	var out []string
	for k := range s.digTags.from(digest + "\x00") {
		out = append(out, k[len(digest)+1:])
	}
	return out
}

// Tombstone is a removal that its agent has not acknowledged, nil if there is none.
func (s *Snapshot) Tombstone(task []byte) *dv1.Tombstone { return s.tombstones.get(string(task)) }

// Tombstones yields a node's removals that it has not acknowledged; "" for all.
func (s *Snapshot) Tombstones(node string) iter.Seq[*dv1.Tombstone] {
	if node == "" {
		return s.tombstones.values("")
	}
	return func(yield func(*dv1.Tombstone) bool) {
		for k := range s.nodeTombs.from(node + "\x00") {
			if t := s.tombstones.get(k[len(node)+1:]); t != nil && !yield(t) {
				return
			}
		}
	}
}

// clone of a message that is about to be stamped, so that callers keep theirs.
func stamped[M proto.Message](m M, stamp func(M)) M {
	c := proto.Clone(m).(M)
	stamp(c)
	return c
}
