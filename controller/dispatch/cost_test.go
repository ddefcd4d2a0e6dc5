package dispatch

import (
	"fmt"
	"slices"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// tasksPerNode of crowd.
const tasksPerNode = 20

// crowd is a hub that leads, and nodes with tasks that said hello.
func crowd(t testing.TB, nodes int) (*fakeLog, []*session) {
	t.Helper()
	f := newFakeLog()
	var effects []*dv1.Effect
	for i := range nodes {
		effects = append(effects, aNode(fmt.Sprint("n", i)))
		for k := range tasksPerNode {
			effects = append(effects, &dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: tid(i*tasksPerNode + k), Name: fmt.Sprint(i, "-", k), NodeId: fmt.Sprint("n", i)}}})
		}
	}
	f.put(effects...)
	f.hub.begin()
	sessions := make([]*session, nodes)
	for i := range nodes {
		sessions[i] = sayHello(t, f.hub, i, 1)
	}
	return f, sessions
}

// sayHello is what a session of node i costs this side: entering it, its welcome, its
// inventory, and its first sync.
func sayHello(t testing.TB, h *Hub, i int, number uint64) *session {
	term := h.term.Load()
	s := newSession(fmt.Sprint("n", i), func(error) {})
	if err := term.enter(s, number); err != nil {
		t.Fatal(err)
	}
	term.greet(s, "", nil)
	term.observe(s, inventoryOf(i))
	for _, part := range term.next(s, true, 0) {
		term.sources(s.node, part)
	}
	return s
}

func inventoryOf(i int) *dv1.Observation {
	o := &dv1.Observation{Full: true, Images: []*dv1.ImageStatus{{Digest: "sha256:d"}}}
	for k := range tasksPerNode {
		o.Tasks = append(o.Tasks, &dv1.TaskStatus{Id: tid(i*tasksPerNode + k), Attempt: 1})
	}
	return o
}

// flat fails if f costs more allocations with many nodes than with few, beyond what
// a tree grows by with its depth.
func flat(t *testing.T, few, many float64) {
	t.Helper()
	if many > 1.25*few+8 {
		t.Errorf("%v allocations with few nodes, %v with many", few, many)
	}
}

// After an election everybody says hello at once: none of them costs more for the
// others.
func TestAHelloCostsTheSameInALargeFleet(t *testing.T) {
	cost := func(nodes int) float64 {
		f, _ := crowd(t, nodes)
		n, i := uint64(1), 0
		return testing.AllocsPerRun(50, func() {
			i, n = (i+7)%nodes, n+1
			sayHello(t, f.hub, i, n)
		})
	}
	flat(t, cost(20), cost(2000))
}

// A commit wakes the sessions of those nodes that its effects name, and costs nothing
// for the others.
func TestACommitWakesOnlyWhomItConcerns(t *testing.T) {
	cost := func(nodes int) float64 {
		f, sessions := crowd(t, nodes)
		effects := []*dv1.Effect{
			{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: tid(0), NodeId: "n0"}}},
			{Of: &dv1.Effect_Tombstone{Tombstone: &dv1.Tombstone{TaskId: tid(9e6), NodeId: "n3"}}},
			aNode("n5"), // as for its liveness: who talks to it elsewhere need not know
		}
		_, changed := f.hub.term.Load().roster.current()
		f.hub.Committed(effects, 7)
		var woken []string
		for _, s := range sessions {
			if len(s.wake) > 0 {
				woken = append(woken, s.node)
			}
		}
		select {
		case <-changed:
			t.Error("every session is woken")
		default:
		}
		if !slices.Equal(woken, []string{"n0", "n3"}) {
			t.Errorf("woken are %v", woken)
		}
		return testing.AllocsPerRun(50, func() { f.hub.Committed(effects, 8) })
	}
	if few, many := cost(10), cost(5000); many != few {
		t.Errorf("%v allocations with few sessions, %v with many", few, many)
	}
}

// Hellos of a whole fleet, as after an election.
func BenchmarkHellos(b *testing.B) {
	for _, nodes := range []int{1000, 5000} {
		b.Run(fmt.Sprint("nodes=", nodes), func(b *testing.B) {
			f, _ := crowd(b, nodes)
			b.ReportAllocs()
			n := uint64(1)
			for b.Loop() {
				n++
				f.hub.end(f.hub.term.Load())
				f.hub.begin()
				for i := range nodes {
					sayHello(b, f.hub, i, n)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(nodes), "ns/hello")
		})
	}
}

func BenchmarkCommitted(b *testing.B) {
	for _, sessions := range []int{10, 10_000} {
		b.Run(fmt.Sprint("sessions=", sessions), func(b *testing.B) {
			f, _ := crowd(b, sessions)
			b.ReportAllocs()
			for b.Loop() {
				f.hub.Committed([]*dv1.Effect{{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: tid(0), NodeId: "n0"}}}}, 7)
			}
		})
	}
}
