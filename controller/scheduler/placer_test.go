package scheduler

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// plainly is what Place must come to, said as plainly as possible: every node is
// looked at anew for every task.
func plainly(s *state.Snapshot, groups ...Group) []Decision {
	type use struct {
		node  *dv1.Node
		tasks int
		mem   int64
		cpus  int64
		ports []*dv1.Port
	}
	var uses []*use
	for n := range s.Nodes() {
		u := &use{node: n}
		for t := range s.TasksOfNode(n.Id) {
			if t.Desired == dv1.Desired_RUNNING || t.Desired == dv1.Desired_CREATED {
				u.tasks++
				u.mem += reservation(s.Spec(t.SpecId))
			}
			if t.Desired == dv1.Desired_RUNNING {
				u.ports = append(u.ports, t.Ports...)
			}
		}
		uses = append(uses, u)
	}
	var out []Decision
	for _, g := range groups {
		holders := map[string]bool{}
		for _, h := range g.Holders {
			holders[h] = true
		}
		for t := range s.Tasks() {
			if g.Digest != "" && s.Spec(t.SpecId).GetDigest() == g.Digest {
				holders[t.NodeId] = true
			}
		}
		refuse := func(u *use) string {
			switch n := u.node; {
			case n.Liveness == dv1.Node_DOWN:
				return "down"
			case n.Liveness == dv1.Node_SUSPECT:
				return "silent"
			case n.Availability == dv1.Node_DRAIN || n.Availability == dv1.Node_REMOVING:
				return "drained"
			}
			for _, p := range g.Pins {
				if p.Node != u.node.Id {
					return p.Why
				}
			}
			if g.Arch != "" && u.node.Capacity.GetArch() != g.Arch {
				return "are not " + g.Arch
			}
			for _, on := range g.On {
				if is, err := Matches(u.node, []string{on}); err != nil {
					return err.Error()
				} else if !is {
					return "don't match " + on
				}
			}
			for _, p := range g.Ports {
				if slices.Contains(u.node.ReservedPorts, p.Host) && p.Host != 0 {
					return fmt.Sprintf("reserve port %d for drover", p.Host)
				}
			}
			if g.Memory > 0 && u.node.Capacity.GetMemory()-u.mem < g.Memory {
				return map[int64]string{1 << 29: "lack 512 MiB memory", 2 << 29: "lack 1 GiB memory", 3 << 29: "lack 1.5 GiB memory"}[g.Memory]
			}
			if g.NanoCPUs > 0 && u.node.Capacity.GetNanoCpus()-u.cpus < g.NanoCPUs {
				return fmt.Sprintf("lack %g CPUs", float64(g.NanoCPUs)/1e9)
			}
			return ""
		}
		clash := func(u *use) (n int) {
			for _, w := range g.Ports {
				for _, h := range u.ports {
					if Overlap(h, w) {
						n = 1
					}
				}
			}
			return n
		}
		cost := func(u *use) int {
			c := 2 * u.tasks
			if g.Digest != "" && !holders[u.node.Id] {
				c += 2
			}
			if g.Contact != "" && u.node.Id != g.Contact {
				c++
			}
			return c
		}
		d := Decision{Total: len(uses)}
		for range g.Count {
			var fit []*use
			rejected := map[string]int{}
			for _, u := range uses {
				if why := refuse(u); why != "" {
					rejected[why]++
				} else {
					fit = append(fit, u)
				}
			}
			if len(fit) == 0 {
				for _, why := range slices.Sorted(maps.Keys(rejected)) {
					d.Rejected = append(d.Rejected, Rejection{rejected[why], why})
				}
				slices.SortStableFunc(d.Rejected, func(a, b Rejection) int { return b.Nodes - a.Nodes })
				break
			}
			u := slices.MinFunc(fit, func(a, b *use) int {
				return cmp.Or(clash(a)-clash(b), cost(a)-cost(b), cmp.Compare(a.node.Id, b.node.Id))
			})
			u.tasks++
			u.mem += g.Memory
			u.cpus += g.NanoCPUs
			u.ports = append(u.ports, g.Ports...)
			d.Nodes = append(d.Nodes, u.node.Id)
		}
		out = append(out, d)
	}
	return out
}

// reservation reads what the specs of history say.
func reservation(s *dv1.Spec) (bytes int64) {
	_, _ = fmt.Sscanf(string(s.GetBody()), `{"Image":"x","HostConfig":{"MemoryReservation":%d}}`, &bytes)
	return bytes
}

// history changes a fleet at random, and tells a Placer of it.
type history struct {
	t    *testing.T
	r    *rand.Rand
	x    *state.Txn
	p    *Placer
	n    int
	task [][]byte
}

func (h *history) apply(e ...*dv1.Effect) {
	h.t.Helper()
	put(h.t, h.x, e...)
}

func (h *history) digest() string { return fmt.Sprint("sha256:", h.r.IntN(4)) }
func (h *history) nodeID() string { return fmt.Sprintf("n%04d", h.r.IntN(14)) }

func (h *history) group() Group {
	g := Group{Count: 1}
	one := func(n int) bool { return h.r.IntN(n) == 0 }
	if one(8) {
		g.Count = 1 + h.r.IntN(12)
	}
	if !one(4) {
		g.Digest = h.digest()
	}
	if one(3) {
		g.Holders = []string{h.nodeID()}
	}
	if !one(3) {
		g.Contact = h.nodeID()
	}
	if one(4) {
		g.Memory = int64(1+h.r.IntN(3)) << 29
	}
	if one(6) {
		g.NanoCPUs = int64(1+h.r.IntN(4)) * 1e9
	}
	if one(6) {
		g.On = []string{[]string{"zone==a", "zone!=b", "node!=host-1", "zone[==a"}[h.r.IntN(4)]}
	}
	if one(8) {
		g.Arch = "amd64"
	}
	if one(3) {
		g.Ports = []*dv1.Port{{Proto: "tcp", Host: uint32(80 + h.r.IntN(3))}}
	}
	if one(10) {
		g.Pins = []Pin{{h.nodeID(), "lack the bind's source"}}
		if one(2) {
			g.Pins = append(g.Pins, Pin{h.nodeID(), "lack the volume"})
		}
	}
	return g
}

// create writes what a decision says, as a command would.
func (h *history) create(g Group, node string) {
	h.n++
	spec := fmt.Appendf(nil, `{"Image":"x","HostConfig":{"MemoryReservation":%d}}`, g.Memory)
	t := &dv1.Task{Id: id(fmt.Sprint("t", h.n)), RunId: id(fmt.Sprint("r", h.n)), SpecId: id(fmt.Sprint("s", g.Memory, g.Digest)), Name: fmt.Sprint("t", h.n),
		NodeId: node, Desired: dv1.Desired_CREATED}
	if h.r.IntN(2) == 0 {
		t.Desired, t.Attempt, t.Ports = dv1.Desired_RUNNING, 1, g.Ports
	}
	h.apply(&dv1.Effect{Of: &dv1.Effect_Spec{Spec: &dv1.Spec{Id: t.SpecId, Body: spec, Digest: g.Digest}}}, &dv1.Effect{Of: &dv1.Effect_Task{Task: t}})
	h.task = append(h.task, t.Id)
	h.p.Changed(node)
}

// change is what else happens to a fleet between two creates.
func (h *history) change() {
	switch h.r.IntN(6) {
	case 0: // a node says something else, or comes
		n := &dv1.Node{Id: h.nodeID(), Liveness: dv1.Node_Liveness(1 + h.r.IntN(3)), Availability: dv1.Node_Availability(1 + h.r.IntN(2)),
			Labels: map[string]string{"zone": string(rune('a' + h.r.IntN(3)))}, Capacity: &dv1.Capacity{Memory: 4 << 30, NanoCpus: 4e9, Arch: []string{"amd64", "arm64"}[h.r.IntN(2)]}}
		n.Name = "host-" + n.Id
		if h.r.IntN(3) == 0 {
			n.ReservedPorts = []uint32{80}
		}
		h.apply(&dv1.Effect{Of: &dv1.Effect_Node{Node: n}})
		h.p.Changed(n.Id)
	case 1: // a node goes
		if n := h.nodeID(); h.r.IntN(4) == 0 && len(slices.Collect(h.x.TasksOfNode(n))) == 0 {
			h.apply(&dv1.Effect{Of: &dv1.Effect_DeleteNode{DeleteNode: n}})
			h.p.Changed(n)
		}
	default: // a task ends or goes
		if len(h.task) == 0 {
			return
		}
		i := h.r.IntN(len(h.task))
		t := h.x.Task(h.task[i])
		if h.r.IntN(2) == 0 {
			h.apply(&dv1.Effect{Of: &dv1.Effect_DeleteTask{DeleteTask: t.Id}})
			h.task = slices.Delete(h.task, i, i+1)
		} else {
			h.apply(&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: t.Id, RunId: t.RunId, SpecId: t.SpecId, Name: t.Name, NodeId: t.NodeId, Attempt: t.Attempt, Desired: dv1.Desired_STOPPED}}})
		}
		h.p.Changed(t.NodeId)
	}
}

func TestPlacementsAreThoseOfThePlainWay(t *testing.T) {
	for seed := range uint64(20) {
		h := &history{t: t, r: rand.New(rand.NewPCG(seed, 7)), x: fleet(t, int(seed%12))}
		h.p = New(h.x.View())
		for step := range 100 {
			g := []Group{h.group()}
			if h.r.IntN(5) == 0 {
				g = append(g, h.group())
			}
			got, want := h.p.Place(g...), plainly(h.x.View(), g...)
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d, step %d: %+v are placed\n%+v, plainly\n%+v", seed, step, g, got, want)
			}
			for i, d := range got {
				if h.r.IntN(4) == 0 {
					continue // decided, and not done
				}
				for _, n := range d.Nodes {
					h.create(g[i], n)
				}
			}
			for range h.r.IntN(3) {
				h.change()
			}
			if h.r.IntN(6) == 0 { // the next entry
				h.x = state.NewTxn(h.x.View())
				h.p.On(h.x.View())
			}
		}
	}
}

// One entry's worth of creates: what it costs must not depend on how many tasks there are.
func BenchmarkAnEntryOfCreates(b *testing.B) {
	for _, tasks := range []int{1000, 100_000} {
		b.Run(fmt.Sprint("tasks=", tasks), func(b *testing.B) {
			x := fleet(b, 1000)
			put(b, x, &dv1.Effect{Of: &dv1.Effect_Spec{Spec: &dv1.Spec{Id: id("s"), Digest: digest}}})
			for n := range tasks {
				put(b, x, &dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: id(fmt.Sprint(n)), RunId: id(fmt.Sprint(n)), SpecId: id("s"), Name: fmt.Sprint(n),
					NodeId: fmt.Sprintf("n%04d", n%1000), Desired: dv1.Desired_RUNNING, Attempt: 1}}})
			}
			for b.Loop() {
				p := New(x.View())
				for range 64 {
					p.Changed(p.Place(Group{Count: 1, Digest: digest, Contact: "n0001"})[0].Nodes[0])
				}
			}
		})
	}
}

func BenchmarkAThousandOnAThousandNodes(b *testing.B) {
	x := fleet(b, 1000)
	for b.Loop() {
		Place(x.View(), Group{Count: 1000, Digest: digest, On: []string{"arch==amd64"}})
	}
}
