package task

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := OpenStore(filepath.Join(t.TempDir(), "tasks.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func (s *Store) taken(t *testing.T, y *dv1.Sync) map[string]want {
	t.Helper()
	changed, err := s.take(y)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func (s *Store) count(bucket []byte) (n int) {
	_ = s.db.View(func(tx *bbolt.Tx) error { n = tx.Bucket(bucket).Stats().KeyN; return nil })
	return n
}

func part(index uint64, n uint32, more bool, spec string, ids ...string) *dv1.Sync {
	y := &dv1.Sync{Epoch: 1, Term: 1, Index: index, Full: true, Part: n, More: more}
	if spec != "" {
		y.Specs = []*dv1.Spec{{Id: []byte(spec), Body: []byte(spec + "'s body")}}
	}
	for _, id := range ids {
		y.Tasks = append(y.Tasks, &dv1.Assignment{Task: &dv1.Task{Id: []byte(id), SpecId: []byte(spec)}})
	}
	return y
}

// Parts act at once, but only the last of them moves the agent's position, and says
// who was left out; a sync between what was taken and what is being taken is stale.
func TestASyncInPartsIsTakenWithItsLast(t *testing.T) {
	s := newStore(t)
	s.taken(t, part(5, 0, false, "s", "a", "b", "c"))
	changed := s.taken(t, part(9, 0, true, "s", "a"))
	if w := changed["a"]; len(changed) != 1 || string(w.spec.GetBody()) != "s's body" {
		t.Fatalf("the first part changed %v", changed)
	}
	if at, _ := s.Last(); at.Index != 5 {
		t.Fatalf("after the first part the position is %v", at)
	}
	if _, err := s.take(part(7, 0, false, "s", "a")); !errors.Is(err, ErrStale) {
		t.Fatalf("an older sync than the one of which a part was taken: %v", err)
	}
	if _, err := s.take(part(9, 1, false, "")); err == nil || errors.Is(err, ErrStale) {
		t.Fatalf("a part whose first was let go: %v", err)
	}
	s.taken(t, part(9, 0, true, "s", "a", "c"))
	if _, err := s.take(part(9, 2, false, "s", "b")); err == nil {
		t.Fatal("a part was skipped")
	}
	s.taken(t, part(9, 0, true, "s", "a"))
	s.taken(t, part(9, 1, true, "s", "d"))
	changed = s.taken(t, part(9, 2, false, "s", "e"))
	if !changed["b"].orphan || !changed["c"].orphan || changed["a"].task != nil || len(changed) != 3 {
		t.Fatalf("the last part changed %v", changed)
	}
	if at, _ := s.Last(); at.Index != 9 {
		t.Fatalf("after the last part the position is %v", at)
	}
}

// A spec is kept once for all its tasks, and as long as one of them is there.
func TestASpecIsStoredOnce(t *testing.T) {
	s := newStore(t)
	s.taken(t, part(1, 0, true, "s", "a", "b"))
	s.taken(t, part(1, 1, false, "r", "c"))
	all, err := s.all()
	if err != nil || all["a"].spec != all["b"].spec || string(all["c"].spec.GetBody()) != "r's body" {
		t.Fatalf("%v %v", all, err)
	}
	if s.count(bSpecs) != 2 {
		t.Fatalf("%d specs of three tasks", s.count(bSpecs))
	}
	y := part(2, 0, false, "r", "b") // the same task, of another spec now
	y.Full = false
	if w := s.taken(t, y)["b"]; string(w.spec.GetBody()) != "r's body" {
		t.Fatalf("b is of %s", w.spec)
	}
	for i, id := range []string{"a", "b", "c"} {
		if err := s.forget([]byte(id)); err != nil {
			t.Fatal(err)
		}
		if want := []int{1, 1, 0}[i]; s.count(bSpecs) != want || s.count(bUses) != 2-i {
			t.Errorf("without %s there are %d specs, want %d, and %d uses", id, s.count(bSpecs), want, s.count(bUses))
		}
	}
}

// What a hello named is there for the full sync that it is answered with, though the last
// task that needed it is gone meanwhile; after that it is kept no longer.
func TestASpecThatAHelloNamedStaysUntilItsSync(t *testing.T) {
	s := newStore(t)
	s.taken(t, part(1, 0, true, "s", "a"))
	s.taken(t, part(1, 1, false, "r", "b"))
	ids, err := s.Specs()
	if err != nil || len(ids) != 2 || string(ids[0]) != "r" || string(ids[1]) != "s" {
		t.Fatalf("the specs are %q, %v", ids, err)
	}
	for _, id := range []string{"a", "b"} {
		if err := s.forget([]byte(id)); err != nil {
			t.Fatal(err)
		}
	}
	if s.count(bSpecs) != 2 {
		t.Fatalf("%d specs after the hello", s.count(bSpecs))
	}
	y := part(2, 0, true, "s", "c")
	y.Specs = nil
	if w := s.taken(t, y)["c"]; string(w.spec.GetBody()) != "s's body" {
		t.Fatalf("a task of a spec that the hello named is of %v", w.spec)
	}
	if s.count(bSpecs) != 2 {
		t.Fatalf("%d specs after a first part", s.count(bSpecs))
	}
	s.taken(t, part(2, 1, false, "", "d"))
	if s.count(bSpecs) != 1 {
		t.Fatalf("%d specs after the sync", s.count(bSpecs))
	}
	if err := s.forget([]byte("c")); err != nil || s.count(bSpecs) != 0 {
		t.Fatalf("%v, %d specs without tasks", err, s.count(bSpecs))
	}
}

// A hello names no more specs than it has room for.
func TestAHelloNamesABoundedNumberOfSpecs(t *testing.T) {
	s := newStore(t)
	y := &dv1.Sync{Epoch: 1, Term: 1, Index: 1, Full: true}
	for i := range maxSpecs + 3 {
		id := fmt.Appendf(nil, "%05d", i)
		y.Specs = append(y.Specs, &dv1.Spec{Id: id})
		y.Tasks = append(y.Tasks, &dv1.Assignment{Task: &dv1.Task{Id: id, SpecId: id}})
	}
	s.taken(t, y)
	if ids, err := s.Specs(); err != nil || len(ids) != maxSpecs {
		t.Errorf("it names %d, %v", len(ids), err)
	}
}

// A store of the version before has a spec in each assignment.
func TestAnOlderStoreIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tasks.db")
	s, err := OpenStore(path)
	if err != nil {
		t.Fatal(err)
	}
	old, err := proto.Marshal(&dv1.Assignment{Task: &dv1.Task{Id: []byte("a"), SpecId: []byte("s")}, Spec: &dv1.Spec{Id: []byte("s"), Body: []byte("old")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.db.Update(func(tx *bbolt.Tx) error {
		return errors.Join(tx.Bucket(bMeta).Put(kVersion, u64s(1)), tx.Bucket(bTasks).Put([]byte("a"), old), tx.DeleteBucket(bSpecs), tx.DeleteBucket(bUses))
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = OpenStore(path); err != nil {
		t.Fatal(err)
	}
	all, err := s.all()
	if err != nil || string(all["a"].spec.GetBody()) != "old" {
		t.Fatalf("%v %v", all, err)
	}
	if w := s.taken(t, part(1, 0, false, "s", "a"))["a"]; string(w.spec.GetBody()) != "s's body" {
		t.Fatalf("taken anew it is of %s", w.spec)
	}
	if err := s.forget([]byte("a")); err != nil || s.count(bSpecs) != 0 {
		t.Fatalf("%v, %d specs", err, s.count(bSpecs))
	}
	if err := s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bMeta).Put(kVersion, u64s(storeVersion+1)) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(path); err == nil {
		t.Fatal("a store of a later version was opened")
	}
}

// Many tasks of one large spec take little more than it, on disk and in memory.
func TestManyTasksOfALargeSpec(t *testing.T) {
	s := newStore(t)
	y := part(1, 0, false, "s")
	y.Specs[0].Body = bytes.Repeat([]byte{'x'}, 190<<10)
	for i := range 1000 {
		y.Tasks = append(y.Tasks, &dv1.Assignment{Task: &dv1.Task{Id: fmt.Append(nil, "t", i), SpecId: []byte("s")}})
	}
	changed := s.taken(t, y)
	var size int64
	_ = s.db.View(func(tx *bbolt.Tx) error { size = tx.Size(); return nil })
	if size > 4<<20 {
		t.Errorf("the store is of %d bytes", size)
	}
	specs := map[*dv1.Spec]bool{}
	for _, w := range changed {
		specs[w.spec] = true
	}
	if len(changed) != 1000 || len(specs) != 1 {
		t.Errorf("%d copies of one spec for %d tasks", len(specs), len(changed))
	}
}

// What a sync tells of networks is stored with it, in memory when it was taken, and
// there again after a restart; a full sync replaces it with its last part.
func TestTheTopologyComesWithSyncs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tasks.db")
	s, err := OpenStore(path)
	if err != nil {
		t.Fatal(err)
	}
	id := func(c byte) []byte { return bytes.Repeat([]byte{c}, 32) }
	of := func(y *dv1.Sync, c byte) *dv1.Sync {
		y.Topology = &dv1.Topology{Networks: []*dv1.Network{{Id: id(c), Name: string(c)}},
			Names: []*dv1.Name{{NetworkId: id(c), TaskId: id('t'), Ip: "10.0.0.1", Names: []string{"web"}, Running: true}}}
		return y
	}
	networks := func() (names string) {
		for _, c := range "abc" {
			if n := s.Topology().Network(id(byte(c))); n != nil {
				names += n.Name
			}
		}
		return names
	}
	s.taken(t, of(part(1, 0, false, ""), 'a'))
	s.taken(t, of(part(2, 0, true, ""), 'b'))
	if networks() != "ab" {
		t.Errorf("while a full sync is taken there are %q", networks())
	}
	if _, err := s.take(of(part(1, 0, false, ""), 'c')); !errors.Is(err, ErrStale) || networks() != "ab" {
		t.Errorf("a stale sync left %q: %v", networks(), err)
	}
	bad := part(3, 0, false, "")
	bad.Topology = &dv1.Topology{Networks: []*dv1.Network{{Id: id('c'), Name: "c"}, {Id: []byte("short")}}}
	if _, err := s.take(bad); err == nil || networks() != "ab" {
		t.Errorf("a malformed sync left %q: %v", networks(), err)
	}
	s.taken(t, of(part(2, 0, true, ""), 'b'))
	s.taken(t, of(part(2, 1, false, ""), 'c'))
	for range 2 {
		if _, names := s.Topology().All(); networks() != "bc" || len(names) != 2 {
			t.Errorf("after a full sync there are %q and %v", networks(), names)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if s, err = OpenStore(path); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = s.Close() })
}
