package command

import (
	"fmt"
	"testing"

	"github.com/drover/drover/controller/access/accesstest"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

func node(id string) *dv1.Command {
	return &dv1.Command{Of: &dv1.Command_RegisterNode{RegisterNode: &dv1.RegisterNode{Node: &dv1.Node{Id: id, Name: "host-" + id}}}}
}

func addPool(p string) *dv1.Command {
	return &dv1.Command{Of: &dv1.Command_AddPool{AddPool: &dv1.AddPool{Pool: p}}}
}

// A fleet whose pool is used up goes on in another; nobody's subnet changes, and
// what a removed node had is given again.
func TestAFleetGetsAnotherPool(t *testing.T) {
	f := newFleet(t, "10.210.0.0/23", "a", "b")
	f.no(node("c"), dv1.Error_UNAVAILABLE, "left in 10.210.0.0/23: each node takes a /24; add a pool")
	f.no(addPool("10.210.1.0/24"), dv1.Error_CONFLICT, "overlaps 10.210.0.0/23")
	f.no(addPool("10.300.0.0/24"), dv1.Error_INVALID, "is no network")
	f.ok(addPool("10.9.0.0/24"))
	if r := f.ok(addPool("10.9.0.0/24")); r.Changed {
		t.Error("a pool that was there is added again")
	}
	f.ok(node("c"))
	f.no(node("d"), dv1.Error_UNAVAILABLE, "left in 10.210.0.0/23 and 10.9.0.0/24")
	f.ok(&dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: "b", Force: true}}})
	f.ok(node("d"))
	f.ok(node("c")) // says hello again
	for name, want := range map[string]string{"a": "10.210.0.0/24", "host-c": "10.9.0.0/24", "host-d": "10.210.1.0/24"} {
		if n := f.store.Snapshot().NodeByName(name); n.GetSubnet() != want {
			t.Errorf("%s has %q, want %s", name, n.GetSubnet(), want)
		}
	}
}

// Networks get their subnets of the default pool, then of those that were added.
func TestAFleetGetsAnotherPoolOfNetworks(t *testing.T) {
	add := func(pool string) *dv1.Command {
		return &dv1.Command{Of: &dv1.Command_AddPool{AddPool: &dv1.AddPool{NetworkPool: pool}}}
	}
	f := current(t, "a")
	for i := range 64 {
		f.ok(newNetwork(fmt.Sprint("n", i)))
	}
	f.no(newNetwork("more"), dv1.Error_INVALID, "have been fully subnetted: choose a subnet, or add a pool (drover node pool add --networks)")
	f.no(add("10.64.0.0/12"), dv1.Error_INVALID, "is not of the form base=10.64.0.0/12,size=20")
	f.no(add("base=10.223.0.0/16,size=24"), dv1.Error_CONFLICT, "network pool base=10.223.0.0/16,size=24 overlaps base=10.220.0.0/14,size=20")
	f.no(&dv1.Command{Of: &dv1.Command_AddPool{AddPool: &dv1.AddPool{Pool: "10.9.0.0/16", NetworkPool: "base=10.64.0.0/12,size=20"}}}, dv1.Error_INVALID, "for nodes or for networks")
	f.ok(add("size=25,base=172.31.0.0/24"))
	if r := f.ok(add("base=172.31.0.0/24,size=25")); r.Changed {
		t.Error("a pool that was there is added again")
	}
	f.ok(newNetwork("more"))
	if n := f.store.Snapshot().NetworkByName("more"); n.Subnets[0].Prefix != "172.31.0.0/25" {
		t.Errorf("it has %v", n.Subnets)
	}
	f.ok(rmNetwork("n17"))
	f.ok(newNetwork("again"))
	if n := f.store.Snapshot().NetworkByName("again"); n.Subnets[0].Prefix != "10.220.16.0/20" && n.Subnets[0].Prefix != "10.221.16.0/20" {
		t.Errorf("after a removal it has %v", n.Subnets)
	}
}

// The default is for thousands of nodes, each with a subnet and a name of its own.
func TestAFleetOfThousands(t *testing.T) {
	txn := crowd(t, "10.208.0.0/12", 4096)
	if n := txn.Subnets(); n != 4096 {
		t.Errorf("%d subnets", n)
	}
	if _, r := Decide(txn, accesstest.Named(txn.View(), node("n4096")), 1); r.Error == nil {
		t.Error("one more than fit")
	}
	twin := node("twin")
	twin.GetRegisterNode().Node.Name = "host-n17"
	if _, r := Decide(txn, accesstest.Named(txn.View(), twin), 1); r.Error.GetKind() != dv1.Error_CONFLICT {
		t.Errorf("a second node of a name: %v", r)
	}
}

// crowd is n nodes, each admitted on the state with those before it.
func crowd(t testing.TB, pool string, n int) *state.Txn {
	t.Helper()
	txn := state.NewTxn(state.NewStore().Snapshot())
	ids := []string{"n" + fmt.Sprint(n), "twin", "more"}
	for i := range n {
		ids = append(ids, fmt.Sprint("n", i))
	}
	for i := range n + 1 {
		c := node(fmt.Sprint("n", i-1))
		if i == 0 {
			c = &dv1.Command{Of: &dv1.Command_Init{Init: &dv1.Init{Cluster: &dv1.Cluster{Id: "fleet", Pool: pool}, Identities: accesstest.Identities("fleet", ids...)}}}
		}
		effects, r := Decide(txn, accesstest.Named(txn.View(), c), 1)
		if r.Error != nil {
			t.Fatalf("node %d: %v", i-1, r.Error)
		}
		if err := txn.Apply(effects...); err != nil {
			t.Fatal(err)
		}
	}
	return txn
}

// BenchmarkAdmit is the cost of one more node: of the 5,000th as of the 50th.
func BenchmarkAdmit(b *testing.B) {
	for _, n := range []int{50, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			txn := crowd(b, "10.0.0.0/8", n)
			c := accesstest.Named(txn.View(), node("more"))
			b.ReportAllocs()
			for b.Loop() {
				if _, r := Decide(txn, c, 1); r.Error != nil {
					b.Fatal(r.Error)
				}
			}
		})
	}
}
