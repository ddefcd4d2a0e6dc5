package controller

import (
	"slices"
	"testing"

	"github.com/hashicorp/raft"
)

// A follower comes back at another address, where nobody dials it: it says so, and the
// quorum has it there.
func TestAControllerComesBackAtAnotherAddress(t *testing.T) {
	noLeaks(t)
	all, _ := fleet(t, 3)
	lead, others := split(t, all)
	moved := others[0]
	was := moved.addr
	moved.off()
	moved.addr = machine(t).addr
	if err := moved.on(); err != nil {
		t.Fatal(err)
	}
	at := func(h *host) string {
		for _, s := range h.c.node.Load().Raft().GetConfiguration().Configuration().Servers {
			if s.ID == raft.ServerID(moved.id()) {
				return string(s.Address)
			}
		}
		return ""
	}
	for _, h := range all {
		until(t, "the new address at "+h.addr, func() bool {
			return at(h) == moved.addr && h.c.node.Load().Snapshot().Controller(moved.id()).GetAddr() == moved.addr
		})
	}
	if v := lead.voters(); len(v) != 3 || !slices.Contains(v, moved.id()) {
		t.Errorf("the voters are %v", v)
	}
	// It counts: with it, one of the two others may go.
	others[1].off()
	until(t, "a leader with whom the moved one answers", func() bool {
		return moved.leader() != "" && lead.fleet("Nodes/AddPool", `{"pool":"10.9.0.0/24"}`).code == 200
	})
	if was == moved.addr {
		t.Fatal("it did not move")
	}
}

// So does the only controller of a fleet.
func TestTheOnlyControllerComesBackAtAnotherAddress(t *testing.T) {
	noLeaks(t)
	h := newHost(t)
	for range 2 {
		h.up()
		until(t, "the new address", func() bool { return h.c.node.Load().Snapshot().Controller(h.nodeID()).GetAddr() == h.addr })
		h.down()
	}
}
