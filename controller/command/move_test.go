package command

import (
	"encoding/hex"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

func (f *fleet) move(volume, to, copied string) *dv1.Command {
	return &dv1.Command{Of: &dv1.Command_MoveVolume{MoveVolume: &dv1.MoveVolume{VolumeId: f.store.Snapshot().VolumeByName(volume).GetId(), To: to, CopyId: id(copied)}}}
}

func (f *fleet) endOf(volume, copied string, done bool) *dv1.Command {
	return &dv1.Command{Of: &dv1.Command_EndMove{EndMove: &dv1.EndMove{VolumeId: f.store.Snapshot().VolumeByName(volume).GetId(), CopyId: id(copied), Copied: done}}}
}

func (f *fleet) tombOf(copied []byte) string { return f.store.Snapshot().Tombstone(copied).GetNodeId() }

func TestAVolumeMoves(t *testing.T) {
	f := current(t, "a", "b", "c")
	f.ok(mountingTask("one", `"Binds":["data:/x"]`, "node==b"))
	f.ok(removed("one", false))
	old := f.store.Snapshot().VolumeByName("data")
	f.ok(f.move("data", "n2", "copy"))
	f.has("while it is copied", "data@n1")
	// Nobody uses it, removes it or moves it again meanwhile.
	f.no(mountingTask("two", `"Binds":["data:/x"]`), dv1.Error_UNAVAILABLE, "volume data is being moved to c")
	f.no(removeVolumes(false, "data")(f), dv1.Error_CONFLICT, "remove data: volume is being moved to c")
	f.ok(removeVolumes(true, "data")(f))
	f.no(f.move("data", "n0", "another"), dv1.Error_CONFLICT, "volume is being moved to c already")
	f.no(f.endOf("data", "another", true), dv1.Error_CONFLICT, "the move was given up")
	f.ok(newVolume("data")) // docker returns the one that is there
	f.has("it is there", "data@n1")

	f.ok(f.endOf("data", "copy", true))
	f.has("afterwards", "data@n2")
	now := f.store.Snapshot().VolumeByName("data")
	if string(now.Id) != string(id("copy")) || now.Moving != nil || now.Created != old.Created || f.store.Snapshot().Volume(old.Id) != nil {
		t.Errorf("it is %v", now)
	}
	if f.tombOf(old.Id) != "n1" || f.tombOf(now.Id) != "" {
		t.Errorf("removed are its data on %q, and on %q", f.tombOf(old.Id), f.tombOf(now.Id))
	}
	f.no(f.endOf("data", "copy", false), dv1.Error_CONFLICT, "the move was given up")
	if r := f.ok(mountingTask("two", `"Binds":["data:/x"]`)); r.NodeId != "n2" {
		t.Errorf("its user is on %s", r.NodeId)
	}
}

func TestAMoveThatIsGivenUp(t *testing.T) {
	f := current(t, "a", "b", "c")
	f.ok(mountingTask("one", `"Binds":["data:/x"]`, "node==b"))
	f.ok(removed("one", false))
	old := f.store.Snapshot().VolumeByName("data")
	f.ok(f.move("data", "n2", "copy"))
	f.ok(f.endOf("data", "copy", false))
	if now := f.store.Snapshot().VolumeByName("data"); string(now.Id) != string(old.Id) || now.Moving != nil || now.Home != "n1" {
		t.Errorf("it is %v", now)
	}
	if f.tombOf(id("copy")) != "n2" || f.tombOf(old.Id) != "" {
		t.Errorf("removed are the copy on %q, and the data on %q", f.tombOf(id("copy")), f.tombOf(old.Id))
	}
	f.no(f.endOf("data", "copy", true), dv1.Error_CONFLICT, "the move was given up")
	f.no(f.move("data", "n2", "copy"), dv1.Error_INVALID, "a move needs a new id") // its removal is on its way
	// The node that it was to move to goes.
	f.ok(f.move("data", "n2", "second"))
	f.ok(&dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: "n2", Force: true}}})
	f.no(f.endOf("data", "second", true), dv1.Error_CONFLICT, "the node was removed meanwhile")
	f.ok(f.endOf("data", "second", false))
	f.has("it is where it was", "data@n1")
	if f.tombOf(id("second")) != "" {
		t.Error("a node that is gone has something to remove")
	}
}

func TestWhatDoesNotMove(t *testing.T) {
	f := current(t, "a", "b", "c")
	contact := func(c *dv1.CreateVolume) { c.Contact = "n1" }
	f.ok(newVolume("unused"))
	f.ok(newVolume("path", options("type", "none", "o", "bind", "device", "/srv"), contact))
	f.ok(newVolume("nas", options("type", "nfs", "o", "addr=10.0.0.9", "device", ":/srv")))
	f.ok(mountingTask("one", `"Binds":["data:/x"]`, "node==b"))
	f.ok(&dv1.Command{Of: &dv1.Command_UpdateNode{UpdateNode: &dv1.UpdateNode{NodeId: "c", Availability: dv1.Node_DRAIN}}})
	for _, c := range []struct {
		cmd   *dv1.Command
		kind  dv1.Error_Kind
		words string
	}{
		{f.move("data", "n0", "copy"), dv1.Error_CONFLICT, "move data: volume is in use - [" + hex.EncodeToString(id("one")) + "]: containers stay on their node"},
		{f.move("data", "n1", "copy"), dv1.Error_INVALID, "its data is on b already"},
		{f.move("data", "n9", "copy"), dv1.Error_NOT_FOUND, "No such node: n9"},
		{f.move("nothing", "n0", "copy"), dv1.Error_NOT_FOUND, "no such volume"},
		{f.move("unused", "n0", "copy"), dv1.Error_INVALID, "it has no data yet"},
		{f.move("path", "n0", "copy"), dv1.Error_INVALID, "its data is what its options mount (/srv)"},
		{f.move("nas", "n0", "copy"), dv1.Error_INVALID, "its data is what its options mount (:/srv)"},
		{f.move("data", "n0", "v-unused"), dv1.Error_INVALID, "a move needs a new id"},
	} {
		f.no(c.cmd, c.kind, c.words)
	}
	f.ok(removed("one", false))
	f.no(f.move("data", "n2", "copy"), dv1.Error_UNAVAILABLE, "node c is drained")
	f.ok(&dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: "n1", Force: true}}})
	f.no(f.move("data", "n0", "copy"), dv1.Error_UNAVAILABLE, "its data is on node n1, which was removed")
}
