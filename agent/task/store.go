package task

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/agent/topology"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/failpoint"
)

// storeVersion is the format of the store's bytes. The previous one, with a spec in each
// assignment, can be read; others are refused.
const storeVersion = 2

var (
	bMeta    = []byte("meta")
	bTasks   = []byte("tasks")      // id -> dv1.Assignment
	bSpecs   = []byte("specs")      // id -> dv1.Spec
	bUses    = []byte("uses")       // spec's id, task's id -> nothing
	bTombs   = []byte("tombstones") // id -> dv1.Tombstone
	bFailed  = []byte("failed")     // id -> dv1.TaskStatus of an attempt that the engine never had
	bOrphans = []byte("orphans")    // id -> nothing: a full sync did not name it
	bCalls   = []byte("calls")      // key of a call that was done -> its number
	bNumbers = []byte("numbers")    // number -> key, oldest first
	kVersion = []byte("version")
	kNumber  = []byte("number")
	kLast    = []byte("last")  // epoch, term, index
	kFloor   = []byte("floor") // the same, of the highest sync of which a part was stored
	kSubnet  = []byte("subnet")
)

// Store is what an agent must not forget: its assignments, the fleet's networks, the last
// sync it stored, its session number and subnet. Every change is on disk when the call returns. Safe for
// concurrent use.
type Store struct {
	db       *bbolt.DB
	topology *topology.Topology

	mu     sync.Mutex      // guards the fields below; held over the corresponding fsync
	open   *opened         // the sync of which parts are missing; nil if the next part is a first one
	pinned map[string]bool // ids of specs that a hello named, which stay until its full sync is stored
}

// opened is a sync of which some parts were stored.
type opened struct {
	at    Position
	next  uint32
	named map[string]bool // ids of tasks
	told  map[string]bool // keys of the topology
}

// Position is that of a sync in the life of a cluster, compared field by field.
type Position struct{ Epoch, Term, Index uint64 }

// Before reports whether p is older than q.
func (p Position) Before(q Position) bool {
	if p.Epoch != q.Epoch {
		return p.Epoch < q.Epoch
	}
	if p.Term != q.Term {
		return p.Term < q.Term
	}
	return p.Index < q.Index
}

// want is what the store holds about a task.
type want struct {
	task   *dv1.Task // nil: never assigned
	spec   *dv1.Spec
	vols   []*dv1.Volume   // that it mounts
	ends   []*dv1.Endpoint // of the task in networks of the fleet, also those that it has to leave
	tomb   *dv1.Tombstone
	failed *dv1.TaskStatus
	orphan bool
}

// OpenStore opens or creates the store at path, which only one process can have open.
func OpenStore(path string) (*Store, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 5 * time.Second})
	if err != nil {
		return nil, fmt.Errorf("opening the task store %s: %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, b := range [][]byte{bMeta, bTasks, bSpecs, bUses, bTombs, bFailed, bOrphans, bCalls, bNumbers} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		m := tx.Bucket(bMeta)
		if v := m.Get(kVersion); v != nil && (len(v) != 8 || binary.BigEndian.Uint64(v) == 0 || binary.BigEndian.Uint64(v) > storeVersion) {
			return fmt.Errorf("its version is %x, this drover reads %d", v, storeVersion)
		}
		return m.Put(kVersion, u64s(storeVersion))
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the task store %s: %w", path, err), db.Close())
	}
	t, err := topology.Open(db)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the task store %s: %w", path, err), db.Close())
	}
	return &Store{db: db, topology: t}, nil
}

// Topology is what syncs told the node of the fleet's networks.
func (s *Store) Topology() *topology.Topology { return s.topology }

// Close closes the store.
func (s *Store) Close() error { return s.db.Close() }

// NextSession returns a session number above all earlier ones.
func (s *Store) NextSession() (n uint64, err error) {
	err = s.db.Update(func(tx *bbolt.Tx) error {
		m := tx.Bucket(bMeta)
		if v := m.Get(kNumber); len(v) == 8 {
			n = binary.BigEndian.Uint64(v)
		}
		n++
		return m.Put(kNumber, u64s(n))
	})
	if err != nil {
		return 0, fmt.Errorf("storing the session number: %w", err)
	}
	return n, nil
}

// Last returns the position of the highest sync stored.
func (s *Store) Last() (p Position, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error { p = position(tx, kLast); return nil })
	return p, err
}

// Subnet returns the node's own, "" before the first welcome.
func (s *Store) Subnet() (subnet string, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error { subnet = string(tx.Bucket(bMeta).Get(kSubnet)); return nil })
	return subnet, err
}

// maxSpecs bounds how many specs a hello names; the others are sent again.
const maxSpecs = 4096

// Specs returns the ids of specs that the store has, which a full sync need not bring
// again: they stay until it is stored.
func (s *Store) Specs() (ids [][]byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pinned = map[string]bool{}
	err = s.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bSpecs).Cursor()
		for id, _ := c.First(); id != nil && len(ids) < maxSpecs; id, _ = c.Next() {
			ids = append(ids, bytes.Clone(id))
			s.pinned[string(id)] = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the stored specs: %w", err)
	}
	return ids, nil
}

// SetSubnet stores the node's subnet.
func (s *Store) SetSubnet(subnet string) error {
	err := s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bMeta).Put(kSubnet, []byte(subnet)) })
	if err != nil {
		return fmt.Errorf("storing subnet %s: %w", subnet, err)
	}
	return nil
}

// take stores a sync or a part of one, and returns what it changed, by id. A stale one
// changes nothing. A part raises the threshold of what is stale at once, but moves the
// position only with the last part of its sync.
func (s *Store) take(y *dv1.Sync) (map[string]want, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := Position{y.Epoch, y.Term, y.Index}
	o := s.open
	if y.Part == 0 {
		o = &opened{at: at, named: map[string]bool{}, told: map[string]bool{}}
	}
	s.open = nil
	failpoint.Here("task.take.before")
	changed := map[string]want{}
	around, err := topology.Parse(y.Topology)
	if err != nil {
		return nil, fmt.Errorf("storing a sync: %w", err)
	}
	err = s.db.Update(func(tx *bbolt.Tx) error {
		for _, k := range [][]byte{kLast, kFloor} {
			if had := position(tx, k); at.Before(had) {
				return fmt.Errorf("sync %v after %v: %w", at, had, ErrStale)
			}
		}
		if o == nil || o.at != at || o.next != y.Part {
			return fmt.Errorf("part %d of sync %v does not follow what was taken", y.Part, at)
		}
		named, err := s.parts(tx, y)
		if err != nil {
			return err
		}
		for id := range named {
			o.named[id] = true
		}
		around.Name(o.told)
		if y.Full && !y.More {
			around.Sweep(s.topology, o.told)
			orphans, err := unnamed(tx, o.named)
			if err != nil {
				return err
			}
			for _, id := range orphans {
				if err := tx.Bucket(bOrphans).Put(id, []byte{1}); err != nil {
					return err
				}
				named[string(id)] = true
			}
			if err := s.unpin(tx); err != nil {
				return err
			}
		}
		if err := around.Store(tx); err != nil {
			return err
		}
		r := reader{tx, map[string]*dv1.Spec{}}
		for id := range named {
			if changed[id], err = r.want([]byte(id)); err != nil {
				return err
			}
		}
		k := kLast
		if y.More {
			k = kFloor
		}
		return tx.Bucket(bMeta).Put(k, u64s(at.Epoch, at.Term, at.Index))
	})
	if err != nil {
		return nil, fmt.Errorf("storing a sync: %w", err)
	}
	failpoint.Here("task.take.after")
	s.topology.Apply(around) // before anybody acts on what changed
	if y.More {
		o.next++
		s.open = o
	} else if y.Full {
		s.pinned = nil
	}
	return changed, nil
}

// parts stores the content of a sync's part, and returns the tasks that it names.
func (s *Store) parts(tx *bbolt.Tx, y *dv1.Sync) (map[string]bool, error) {
	named := map[string]bool{}
	for _, x := range y.Specs {
		if len(x.Id) == 0 {
			return nil, errors.New("a spec has no id")
		}
		if tx.Bucket(bSpecs).Get(x.Id) != nil {
			continue // the id is derived from the content
		}
		if err := put(tx, bSpecs, x.Id, x); err != nil {
			return nil, err
		}
	}
	for _, a := range y.Tasks {
		id := a.GetTask().GetId()
		if len(id) == 0 {
			return nil, errors.New("an assignment has no task id")
		}
		named[string(id)] = true
		if err := errors.Join(s.use(tx, id, a), put(tx, bTasks, id, a), tx.Bucket(bOrphans).Delete(id)); err != nil {
			return nil, err
		}
	}
	for _, t := range y.Tombstones {
		if len(t.GetTaskId()) == 0 {
			return nil, errors.New("a tombstone has no task id")
		}
		named[string(t.TaskId)] = true
		if err := put(tx, bTombs, t.TaskId, t); err != nil {
			return nil, err
		}
	}
	return named, nil
}

// use records which tasks need a spec that is stored once for all of them, when a task
// is assigned anew; nil: the task is forgotten. It is called with mu held.
func (s *Store) use(tx *bbolt.Tx, id []byte, now *dv1.Assignment) error {
	old := &dv1.Assignment{}
	if err := proto.Unmarshal(tx.Bucket(bTasks).Get(id), old); err != nil {
		return fmt.Errorf("task %x: %w", id, err)
	}
	uses := tx.Bucket(bUses)
	if now != nil && now.Spec == nil {
		if err := uses.Put(usesKey(now.Task.SpecId, id), []byte{1}); err != nil {
			return err
		}
	}
	was := old.GetTask().GetSpecId()
	if was == nil || old.Spec != nil || now != nil && now.Spec == nil && string(now.Task.SpecId) == string(was) {
		return nil
	}
	if err := uses.Delete(usesKey(was, id)); err != nil {
		return err
	}
	if s.pinned[string(was)] || used(tx, was) {
		return nil
	}
	return tx.Bucket(bSpecs).Delete(was)
}

// used reports whether a task needs a spec.
func used(tx *bbolt.Tx, spec []byte) bool {
	prefix := usesKey(spec, nil)
	k, _ := tx.Bucket(bUses).Cursor().Seek(prefix)
	return bytes.HasPrefix(k, prefix)
}

// unpin drops the specs that no task needs any more. It is called with mu held.
func (s *Store) unpin(tx *bbolt.Tx) error {
	for id := range s.pinned {
		if !used(tx, []byte(id)) {
			if err := tx.Bucket(bSpecs).Delete([]byte(id)); err != nil {
				return err
			}
		}
	}
	return nil
}

func usesKey(spec, task []byte) []byte {
	return append(append(u64s(uint64(len(spec))), spec...), task...)
}

// unnamed returns the tasks that a full sync left out without a tombstone.
func unnamed(tx *bbolt.Tx, named map[string]bool) (out [][]byte, err error) {
	err = tx.Bucket(bTasks).ForEach(func(id, _ []byte) error {
		if !named[string(id)] && tx.Bucket(bTombs).Get(id) == nil {
			out = append(out, append([]byte(nil), id...))
		}
		return nil
	})
	return out, err
}

// all returns every task that the store knows.
func (s *Store) all() (map[string]want, error) {
	out := map[string]want{}
	err := s.db.View(func(tx *bbolt.Tx) error {
		r := reader{tx, map[string]*dv1.Spec{}}
		for _, b := range [][]byte{bTasks, bTombs} {
			err := tx.Bucket(b).ForEach(func(id, _ []byte) error {
				w, err := r.want(id)
				out[string(id)] = w
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the task store: %w", err)
	}
	return out, nil
}

// fail records that the attempt never ran, so that a restarted agent doesn't try it
// again.
func (s *Store) fail(st *dv1.TaskStatus) error {
	failpoint.Here("task.fail.before")
	err := s.db.Update(func(tx *bbolt.Tx) error { return put(tx, bFailed, st.Id, st) })
	if err != nil {
		return fmt.Errorf("storing the failure of task %x: %w", st.Id, err)
	}
	return nil
}

// keepCalls bounds how many calls are recorded.
const keepCalls = 4096

// First records a call that must not be made twice, and reports whether it is new.
func (s *Store) First(key string) (first bool, err error) {
	err = s.db.Update(func(tx *bbolt.Tx) error {
		calls, numbers := tx.Bucket(bCalls), tx.Bucket(bNumbers)
		if calls.Get([]byte(key)) != nil {
			return nil
		}
		first = true
		n, err := numbers.NextSequence()
		if err != nil {
			return err
		}
		if n > keepCalls {
			old := u64s(n - keepCalls)
			if k := numbers.Get(old); k != nil {
				if err := errors.Join(calls.Delete(k), numbers.Delete(old)); err != nil {
					return err
				}
			}
		}
		return errors.Join(calls.Put([]byte(key), u64s(n)), numbers.Put(u64s(n), []byte(key)))
	})
	if err != nil {
		return false, fmt.Errorf("storing that a call was made: %w", err)
	}
	return first, nil
}

// Undo removes the record of a call that failed.
func (s *Store) Undo(key string) error {
	err := s.db.Update(func(tx *bbolt.Tx) error {
		n := tx.Bucket(bCalls).Get([]byte(key))
		if n == nil {
			return nil
		}
		return errors.Join(tx.Bucket(bNumbers).Delete(n), tx.Bucket(bCalls).Delete([]byte(key)))
	})
	if err != nil {
		return fmt.Errorf("forgetting a call: %w", err)
	}
	return nil
}

// forget drops a removed task.
func (s *Store) forget(id []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.db.Update(func(tx *bbolt.Tx) error {
		if err := s.use(tx, id, nil); err != nil {
			return err
		}
		for _, b := range [][]byte{bTasks, bTombs, bFailed, bOrphans} {
			if err := tx.Bucket(b).Delete(id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forgetting task %x: %w", id, err)
	}
	return nil
}

// reader reads the wanted state of tasks, with one copy of each spec.
type reader struct {
	tx    *bbolt.Tx
	specs map[string]*dv1.Spec
}

func (r reader) spec(id []byte) (*dv1.Spec, error) {
	x, known := r.specs[string(id)]
	if b := r.tx.Bucket(bSpecs).Get(id); !known && b != nil {
		x = &dv1.Spec{}
		if err := proto.Unmarshal(b, x); err != nil {
			return nil, fmt.Errorf("spec %x: %w", id, err)
		}
		r.specs[string(id)] = x
	}
	return x, nil
}

func (r reader) want(id []byte) (w want, err error) {
	tx := r.tx
	if b := tx.Bucket(bTasks).Get(id); b != nil {
		a := &dv1.Assignment{}
		if err := proto.Unmarshal(b, a); err != nil {
			return w, fmt.Errorf("task %x: %w", id, err)
		}
		w.vols = a.Volumes
		w.ends = a.Endpoints
		if w.task, w.spec = a.Task, a.Spec; w.spec == nil {
			if w.spec, err = r.spec(a.Task.GetSpecId()); err != nil {
				return w, fmt.Errorf("task %x: %w", id, err)
			}
		}
	}
	if b := tx.Bucket(bTombs).Get(id); b != nil {
		w.tomb = &dv1.Tombstone{}
		if err := proto.Unmarshal(b, w.tomb); err != nil {
			return w, fmt.Errorf("tombstone of %x: %w", id, err)
		}
	}
	if b := tx.Bucket(bFailed).Get(id); b != nil {
		w.failed = &dv1.TaskStatus{}
		if err := proto.Unmarshal(b, w.failed); err != nil {
			return w, fmt.Errorf("failure of %x: %w", id, err)
		}
	}
	w.orphan = tx.Bucket(bOrphans).Get(id) != nil
	return w, nil
}

func put(tx *bbolt.Tx, bucket, id []byte, m proto.Message) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	return tx.Bucket(bucket).Put(id, b)
}

func position(tx *bbolt.Tx, key []byte) (p Position) {
	if v := tx.Bucket(bMeta).Get(key); len(v) == 24 {
		p = Position{binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:]), binary.BigEndian.Uint64(v[16:])}
	}
	return p
}

func u64s(vs ...uint64) (out []byte) {
	for _, v := range vs {
		out = binary.BigEndian.AppendUint64(out, v)
	}
	return out
}
