package controller

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/access/accesstest"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/identity"
)

// install makes every follower take a snapshot in which effects were done, instead of
// the entry that did them.
func (h *host) install(effects ...*dv1.Effect) {
	h.t.Helper()
	node := h.c.node.Load()
	txn := state.NewTxn(node.Snapshot())
	if err := txn.Apply(effects...); err != nil {
		h.t.Fatal(err)
	}
	var b bytes.Buffer
	if err := txn.View().Write(&b); err != nil {
		h.t.Fatal(err)
	}
	meta := &raft.SnapshotMeta{Version: raft.SnapshotVersionMax, Index: node.Raft().LastIndex(), Term: node.Term(), Size: int64(b.Len())}
	if err := node.Raft().Restore(meta, &b, 20*time.Second); err != nil {
		h.t.Fatal(err)
	}
}

// A follower learns by a snapshot what it missed: connections of who was revoked are
// cut, events tell nothing that is not so, and a removed controller ends.
func TestASnapshotIsAsGoodAsTheEntriesThatItHolds(t *testing.T) {
	noLeaks(t)
	all, _ := fleet(t, 3)
	lead, others := split(t, all)
	at, gone := others[0], others[1]
	image(lead)
	lead.create("old", `{"Image":"busybox","Cmd":["true"]}`)
	until(t, "the container at a follower", func() bool { return at.c.node.Load().Snapshot().TaskByName("old") != nil })
	snap := lead.c.node.Load().Snapshot()

	admin := at.files(identity.AdminPKI(gone.data))
	conn := at.connect(admin, "http/1.1")
	_, _ = io.WriteString(conn, "GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
	r := bufio.NewReader(conn)
	if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("the request of an admin: %v %v", resp, err)
	}
	cut := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, r); cut <- err }()

	old := snap.TaskByName("old")
	young := proto.CloneOf(old)
	young.Id, young.RunId, young.Name = bytes.Repeat([]byte{7}, 32), bytes.Repeat([]byte{8}, 32), "new"
	revoked := proto.CloneOf(snap.Identity(admin.Principal.URI))
	revoked.Revoked = true
	lead.install(&dv1.Effect{Of: &dv1.Effect_Identity{Identity: revoked}}, &dv1.Effect{Of: &dv1.Effect_DeleteController{DeleteController: gone.id()}},
		&dv1.Effect{Of: &dv1.Effect_DeleteTask{DeleteTask: old.Id}}, &dv1.Effect{Of: &dv1.Effect_Task{Task: young}},
		&dv1.Effect{Of: &dv1.Effect_Tag{Tag: &dv1.Tag{Ref: "docker.io/library/busybox:old", Digest: "sha256:x"}}})

	gone.gone()
	select {
	case <-cut:
	case <-time.After(10 * time.Second):
		t.Error("a revoked admin's connection is still open")
	}

	// What is told from now on is about the state as it is.
	events := at.c.fleet.Events(t.Context(), 1)
	for _, c := range []*dv1.Command{{Of: &dv1.Command_Rename{Rename: &dv1.Rename{TaskId: young.Id, Name: "renamed"}}},
		{Of: &dv1.Command_Untag{Untag: &dv1.Untag{Ref: "docker.io/library/busybox:old"}}}} {
		if r, err := at.c.fleet.Propose(t.Context(), accesstest.Named(at.c.node.Load().Snapshot(), c)); err != nil || r.GetError() != nil {
			t.Fatalf("%T: %v, %v", c.Of, r, err)
		}
	}
	for {
		select {
		case e := <-events:
			if e.TaskId != nil && bytes.Equal(e.TaskId, young.Id) && e.Action != "rename" {
				t.Errorf("a false event: %v", e)
			}
			if e.Action == "untag" {
				if e.Attributes["id"] != "sha256:x" {
					t.Errorf("what was untagged is %v", e)
				}
				return
			}
		case <-time.After(10 * time.Second):
			t.Fatal("no event of the last change")
		}
	}
}
