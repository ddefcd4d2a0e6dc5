package consensus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// memory is a log on a disk that survives its member.
type memory struct{ *raft.InmemStore }

func (memory) Close() error { return nil }

// simulated is a cluster in one process, on virtual time.
type simulated struct {
	t       *testing.T
	rnd     *rand.Rand
	ids     []string
	dir     string // of the members' real files; "" keeps them in memory
	with    func(*Options)
	logs    map[string]memory
	snaps   map[string]*raft.InmemSnapshotStore
	trans   map[string]*raft.InmemTransport
	mu      sync.Mutex // guards members
	members map[string]*alive
}

type alive struct {
	*Node
	cancel context.CancelFunc
	ended  chan error
}

func (s *simulated) boot(id string) {
	s.t.Helper()
	_, tr := raft.NewInmemTransportWithTimeout(raft.ServerAddress(id), 200*time.Millisecond)
	s.trans[id] = tr
	for other, o := range s.trans {
		if other != id && s.members[other] != nil {
			tr.Connect(raft.ServerAddress(other), o)
			o.Connect(raft.ServerAddress(id), tr)
		}
	}
	o := Options{ID: id, Dir: filepath.Join(s.dir, id), Addr: raft.ServerAddress(id), Transport: tr, segment: 8 << 10}
	if s.dir != "" {
		o.TimingFile = filepath.Join(s.dir, id, "timing")
	}
	if s.with != nil {
		s.with(&o)
	}
	n, err := s.open(o)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	a := &alive{Node: n, cancel: cancel, ended: make(chan error, 1)}
	go func() { a.ended <- n.Run(ctx) }()
	s.mu.Lock()
	s.members[id] = a
	s.mu.Unlock()
}

func (s *simulated) open(o Options) (*Node, error) {
	if s.dir != "" {
		return Open(o)
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	return open(o, s.logs[o.ID], s.snaps[o.ID], silent)
}

func (s *simulated) crash(id string) {
	s.mu.Lock()
	a := s.members[id]
	s.members[id] = nil
	s.mu.Unlock()
	for other, tr := range s.trans {
		if other != id {
			tr.Disconnect(raft.ServerAddress(id))
		}
	}
	a.cancel()
	if err := <-a.ended; err != nil {
		s.t.Errorf("member %s halted: %v", id, err)
	}
	if err := a.Close(); err != nil {
		s.t.Errorf("closing member %s: %v", id, err)
	}
}

// split cuts members into two halves that can't hear each other; nil heals.
func (s *simulated) split(side map[string]bool) {
	for x, tx := range s.trans {
		for y, ty := range s.trans {
			if x == y || s.members[x] == nil || s.members[y] == nil {
				continue
			}
			if side == nil || side[x] == side[y] {
				tx.Connect(raft.ServerAddress(y), ty)
			} else {
				tx.Disconnect(raft.ServerAddress(y))
			}
		}
	}
}

func (s *simulated) any() *alive {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.members[s.ids[s.rnd.IntN(len(s.ids))]]
}

// ask proposes at any member until somebody answers, as clients do: with one key.
// A command that names nobody is the admin's.
func (s *simulated) ask(ctx context.Context, c *dv1.Command) *dv1.CommandResult {
	if c.Principal == "" {
		c = proto.CloneOf(c)
		c.Principal = admin
	}
	for ctx.Err() == nil {
		if m := s.any(); m != nil {
			try, cancel := context.WithTimeout(ctx, time.Second)
			r, err := m.Propose(try, proto.CloneOf(c))
			cancel()
			if err == nil {
				return r
			}
			if errors.Is(err, ErrKeyReused) {
				s.t.Errorf("key %s: %v", c.Key, err)
				return nil
			}
		}
		time.Sleep(time.Duration(5+s.rnd.IntN(50)) * time.Millisecond)
	}
	return nil
}

// simulate makes a cluster of three, and what every create needs.
func simulate(ctx context.Context, t *testing.T, seed uint64, dir string, with ...func(*Options)) *simulated {
	s := &simulated{t: t, rnd: rand.New(&locked{r: rand.NewPCG(seed, 7)}), ids: []string{"c1", "c2", "c3"}, dir: dir, logs: map[string]memory{},
		snaps: map[string]*raft.InmemSnapshotStore{}, trans: map[string]*raft.InmemTransport{}, members: map[string]*alive{}}
	for _, f := range with {
		s.with = f
	}
	var servers []raft.Server
	for _, id := range s.ids {
		s.logs[id], s.snaps[id] = memory{raft.NewInmemStore()}, raft.NewInmemSnapshotStore()
		servers = append(servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
	}
	for _, id := range s.ids {
		s.boot(id)
	}
	if err := s.members["c1"].Bootstrap(servers); err != nil {
		t.Fatal(err)
	}
	for i, c := range []*dv1.Command{initCluster, registerNode, commitImage} {
		c = proto.CloneOf(c)
		c.Key = fmt.Sprint("setup-", i)
		if r := s.ask(ctx, c); r.GetError() != nil {
			t.Fatalf("seed %d: %v", seed, r.Error)
		}
	}
	return s
}

// history is one life of a cluster: clients that create and remove, while members
// crash and networks split; then everything heals and is compared.
func history(t *testing.T, seed uint64, dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour) // virtual
	defer cancel()
	s := simulate(ctx, t, seed, dir)

	type outcome struct {
		key  string
		name string
		task []byte
		res  *dv1.CommandResult
		gone bool
	}
	var mu sync.Mutex
	var made []*outcome
	var clients sync.WaitGroup
	for c := range 3 {
		clients.Go(func() {
			for i := range 3 {
				name := fmt.Sprintf("n%d", s.rnd.IntN(4)) // names are fought for
				task := id(fmt.Sprintf("t-%d-%d-%d", seed, c, i))
				o := &outcome{key: fmt.Sprintf("k-%d-%d", c, i), name: name, task: task}
				o.res = s.ask(ctx, &dv1.Command{Key: o.key, Of: &dv1.Command_Create{Create: &dv1.CreateRun{RunId: id("r" + string(task)), TaskIds: [][]byte{task}, Name: name,
					Spec: &dv1.Spec{Body: []byte(`{"Image":"alpine"}`), Image: "alpine"}}}})
				if o.res.GetError() == nil && s.rnd.IntN(2) == 0 {
					r := s.ask(ctx, &dv1.Command{Key: o.key + "-rm", Of: &dv1.Command_Remove{Remove: &dv1.Remove{TaskId: task, Force: true}}})
					if r.GetError() != nil {
						t.Errorf("seed %d: removing %s, which was answered as made: %s", seed, name, r.Error.Message)
					}
					o.gone = true
				}
				mu.Lock()
				made = append(made, o)
				mu.Unlock()
			}
		})
	}
	for range 2 + s.rnd.IntN(3) {
		time.Sleep(time.Duration(s.rnd.IntN(300)) * time.Millisecond)
		victim := s.ids[s.rnd.IntN(3)]
		if s.rnd.IntN(2) == 0 {
			s.crash(victim)
			time.Sleep(time.Duration(s.rnd.IntN(800)) * time.Millisecond)
			s.boot(victim)
		} else {
			s.split(map[string]bool{victim: true})
			time.Sleep(time.Duration(s.rnd.IntN(800)) * time.Millisecond)
			s.split(nil)
		}
	}
	clients.Wait()

	// Nothing that was answered is lost, changed, or done twice.
	last := s.ask(ctx, &dv1.Command{Key: "last", Of: &dv1.Command_PutTag{PutTag: &dv1.PutTag{Ref: "docker.io/library/last:latest", Source: digest}}})
	if last.GetError() != nil {
		t.Fatalf("seed %d: %v", seed, last.Error)
	}
	for _, o := range made {
		if o.res.GetError() != nil {
			continue // a refusal is not kept: asked again, it may be granted
		}
		again := s.ask(ctx, &dv1.Command{Key: o.key, Of: &dv1.Command_Create{Create: &dv1.CreateRun{RunId: id("r" + string(o.task)), TaskIds: [][]byte{o.task}, Name: o.name,
			Spec: &dv1.Spec{Body: []byte(`{"Image":"alpine"}`), Image: "alpine"}}}})
		if string(again.GetTaskId()) != string(o.task) || again.GetIndex() != o.res.Index {
			t.Errorf("seed %d: %s was answered with %v, then with %v", seed, o.key, o.res, again)
		}
	}
	var hash [32]byte
	for i, id := range s.ids {
		snap, err := s.members[id].WaitIndex(ctx, last.Index)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for _, o := range made {
			have := snap.Task(o.task) != nil
			if want := o.res.GetError() == nil && !o.gone; have != want {
				t.Errorf("seed %d: on %s task %s is there: %v, want %v", seed, id, o.key, have, want)
			}
		}
		for task := range snap.Tasks() {
			if named := snap.TaskByName(task.Name); string(named.GetId()) != string(task.Id) {
				t.Errorf("seed %d: on %s two tasks are named %s", seed, id, task.Name)
			}
		}
		if h := snap.Hash(); i > 0 && h != hash && snap.Index() == last.Index {
			t.Errorf("seed %d: the states of members differ", seed)
		} else {
			hash = h
		}
	}
	for _, id := range s.ids {
		s.crash(id)
	}
}

// locked is a source for several goroutines.
type locked struct {
	mu sync.Mutex // guards r
	r  rand.Source
}

func (l *locked) Uint64() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Uint64()
}

// Rule 2, over a thousand lives, every fortieth of them on the log's real files,
// which take long. DROVER_SEED runs one of them again, on files.
func TestRandomHistories(t *testing.T) {
	first, n, onFiles := uint64(1), 1000, uint64(40)
	if v, err := strconv.ParseUint(os.Getenv("DROVER_SEED"), 10, 64); err == nil {
		first, n, onFiles = v, 1, 1
	}
	seeds := make(chan uint64)
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for seed := range seeds {
				t.Run("", func(t *testing.T) {
					dir := ""
					if seed%onFiles == 0 {
						dir = t.TempDir()
					}
					synctest.Test(t, func(t *testing.T) { history(t, seed, dir) })
				})
			}
		})
	}
	for i := range n {
		seeds <- first + uint64(i)
	}
	close(seeds)
	workers.Wait()
}
