package controller

import (
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/controller/membership"
	"github.com/drover/drover/controller/peer"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/identity"
)

// gone waits for a controller to end as removed.
func (h *host) gone() {
	h.t.Helper()
	select {
	case err := <-h.ended:
		h.ended <- err
		if !errors.Is(err, membership.ErrRemoved) {
			h.t.Fatalf("it ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		h.t.Fatal("it still runs after 20 s")
	}
	if identity.HasController(h.data) {
		h.t.Error("its files are still in place")
	}
	if _, err := os.Stat(identity.AdminPKI(h.data)); err == nil {
		h.t.Error("it still has an admin's identity")
	}
	if !identity.IsMember(h.data) {
		h.t.Error("its agent's identity is gone")
	}
}

// The entry that removes a controller is sent to members only: who was off then, or
// cut off, asks the others, which refuse it.
func TestAControllerThatWasRemovedWhileOffLearnsIt(t *testing.T) {
	noLeaks(t)
	all, _ := fleet(t, 3)
	lead, others := split(t, all)
	off := others[0]
	off.off()
	lead.propose(&dv1.Command{Of: &dv1.Command_RemoveController{RemoveController: &dv1.RemoveController{Id: off.id()}}})
	until(t, "two voters", func() bool { return len(lead.voters()) == 2 })
	if err := off.on(); err != nil && !errors.Is(err, membership.ErrRemoved) {
		t.Fatal(err)
	} else if err == nil {
		off.gone()
	}
	if r := lead.local("GET", "/containers/json", ""); r.code != 200 {
		t.Errorf("the others answer %v", r)
	}
}

// Whoever removes a controller at its own socket is told that it is done. It passes on
// nothing more.
func TestAControllerThatIsRemovedAtItsOwnSocketAnswers(t *testing.T) {
	noLeaks(t)
	all, _ := fleet(t, 3)
	lead, others := split(t, all)
	self := others[0]
	files := self.files(identity.ControllerPKI(self.data))
	rt, done := lead.over(files, wire.ALPNRelay, "", true)
	defer done()
	admin := lead.files(identity.AdminPKI(lead.data)).Principal.URI
	tokens := func() response {
		return send(t, rt, http.MethodPost, dv1connect.TokensListProcedure, http.Header{"Drover-Principal": {admin}, "Content-Type": {"application/json"}}, []byte("{}"))
	}
	if r := tokens(); r.code != http.StatusOK {
		t.Fatalf("as a controller it gets %v", r)
	}
	if r := self.fleet("Controllers/Remove", `{"controller":"`+self.id()+`"}`); r.code != http.StatusOK {
		t.Errorf("removing it: %v", r)
	}
	if r := tokens(); r.code == http.StatusOK {
		t.Errorf("on a connection from before it still gets %v", r)
	}
	self.gone()
	until(t, "two voters", func() bool { return len(lead.voters()) == 2 })
}

func TestTheOnlyControllerStays(t *testing.T) {
	noLeaks(t)
	h := newHost(t)
	h.up()
	if r := h.fleet("Controllers/Remove", `{"controller":"`+h.id()+`"}`); r.code != http.StatusBadRequest || !strings.Contains(r.body, "istheonlycontroller") {
		t.Errorf("removing it: %v", r)
	}
}

// Of two controllers one votes, and is not removed: the other could never lead.
func TestTheOnlyVoterStays(t *testing.T) {
	noLeaks(t)
	all, _ := fleet(t, 2)
	lead, others := split(t, all)
	for _, at := range all {
		if r := at.fleet("Controllers/Remove", `{"controller":"`+lead.id()+`"}`); r.code != http.StatusBadRequest || !strings.Contains(r.body, "nocontrollerwouldvote") {
			t.Fatalf("removing it: %v", r)
		}
	}
	if r := lead.fleet("Controllers/Remove", `{"controller":"`+others[0].id()+`"}`); r.code != http.StatusOK {
		t.Errorf("removing the other: %v", r)
	}
	others[0].gone()
	if r := lead.local("GET", "/containers/json", ""); r.code != http.StatusOK {
		t.Errorf("the one that stays answers %v", r)
	}
}

// The quorum is not left to those who don't answer.
func TestAControllerThatTheQuorumNeedsIsNotRemoved(t *testing.T) {
	noLeaks(t)
	all, _ := fleet(t, 3)
	lead, others := split(t, all)
	name := func(h *host) string { return lead.c.node.Load().Snapshot().Controller(h.id()).Name }
	dead, live := others[0], others[1]
	dead.off()
	r := lead.fleet("Controllers/Remove", `{"controller":"`+name(live)+`"}`)
	if want := "of which 2 must answer, and " + name(dead) + " does not"; r.code != http.StatusBadRequest || !strings.Contains(r.body, strings.ReplaceAll(want, " ", "")) {
		t.Fatalf("removing one of two that answer: %v, want %q", r, want)
	}
	if r = live.fleet("Controllers/Remove", `{"controller":"`+lead.id()+`"}`); r.code != http.StatusBadRequest {
		t.Fatalf("removing the leader, asked at the other: %v", r)
	}
	if r = lead.fleet("Controllers/Remove", `{"controller":"`+name(dead)+`"}`); r.code != http.StatusOK {
		t.Fatalf("removing the one that does not answer: %v", r)
	}
	until(t, "two voters", func() bool { return len(lead.voters()) == 2 })
	if r = lead.fleet("Controllers/Remove", `{"controller":"`+name(live)+`"}`); r.code != http.StatusOK {
		t.Fatalf("removing one of two: %v", r)
	}
	until(t, "one voter", func() bool { return len(lead.voters()) == 1 })
	lead.propose(&dv1.Command{Of: &dv1.Command_PutToken{PutToken: &dv1.PutToken{Token: &dv1.Token{Id: "x", Hash: make([]byte, 32), Role: "agent"}}}})
	live.gone()
}

// Two of three controllers are lost: the third goes on alone with all it has, in a
// new epoch; if one comes back after all, it finds that it was removed.
func TestTheWayBackWithoutAMajority(t *testing.T) {
	noLeaks(t)
	all, _ := fleet(t, 3)
	lead, others := split(t, all)
	image(lead)
	id := lead.create("kept", `{"Image":"busybox","Cmd":["true"]}`)
	left := others[0]
	until(t, "the container at a follower", func() bool { return left.c.node.Load().Snapshot().TaskByName("kept") != nil })
	epoch, key := left.c.node.Load().Snapshot().Cluster().Epoch, left.dataKey()
	if _, err := membership.Recover(left.data, left.addr, nil); err == nil || !strings.Contains(err.Error(), "stop drover here") {
		t.Fatalf("beside a controller that runs: %v", err)
	}
	for _, h := range all {
		h.off()
	}
	r, err := membership.Recover(left.data, left.addr, nil)
	if err != nil || r.Epoch != epoch+1 || len(r.Removed) != 2 {
		t.Fatalf("recovered: %+v %v", r, err)
	}
	if err := left.on(); err != nil {
		t.Fatal(err)
	}
	snap := left.c.node.Load().Snapshot()
	if snap.Cluster().Epoch != epoch+1 || snap.TaskByName("kept") == nil {
		t.Errorf("after recovering: epoch %d, %v", snap.Cluster().Epoch, snap.TaskByName("kept"))
	}
	if v := left.voters(); len(v) != 1 || v[0] != left.id() {
		t.Errorf("voters are %v", v)
	}
	if r := left.local("DELETE", "/containers/"+id, ""); r.code != 204 {
		t.Errorf("a change: %v", r)
	}
	until(t, "a new data key", func() bool { return left.dataKey() != key })
	if err := others[1].on(); err != nil && !errors.Is(err, membership.ErrRemoved) {
		t.Fatal(err)
	} else if err == nil {
		others[1].gone()
	}
	left.off()
	if err := left.on(); err != nil {
		t.Fatal(err)
	}
	if left.c.node.Load().Snapshot().TaskByName("kept") != nil {
		t.Error("a restart lost what was decided after recovering")
	}
}

// Two that were removed while they were cut off together must not keep each other
// from learning it.
func TestAControllerWithoutALeaderVouchesForNobody(t *testing.T) {
	noLeaks(t)
	all, _ := fleet(t, 3)
	lead, others := split(t, all)
	asked, asks := others[0], others[1].files(identity.ControllerPKI(others[1].data))
	rt, done := asked.over(asks, wire.ALPNPeer, "", true)
	defer done()
	vouches := func() bool {
		r := send(t, rt, http.MethodGet, peer.StatusPath, nil, nil)
		if r.header.Get(wire.HeaderRemoved) == "true" {
			t.Fatal("it says that the other was removed")
		}
		return r.code == http.StatusOK && r.header.Get(wire.HeaderLeader) != ""
	}
	if !vouches() {
		t.Fatal("a member of the quorum vouches for nobody")
	}
	lead.off()
	others[1].off()
	until(t, "nobody vouches", func() bool { return !vouches() })
}
