package command

import (
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/volumes"
)

// moveVolume begins a move. From now on nobody can use the volume: what is copied does not
// change.
func (d *decision) moveVolume(c *dv1.MoveVolume) *dv1.Error {
	v, to := d.Volume(c.VolumeId), d.Node(c.To)
	users := d.usersOf(c.VolumeId, nil)
	switch {
	case d.Level() < state.LevelMoves:
		return refuse(dv1.Error_UNAVAILABLE, "moves of volumes have to wait until all controllers know them: drover controller ls shows which is older")
	case v == nil:
		return refuse(dv1.Error_NOT_FOUND, "move: no such volume")
	case len(c.CopyId) != 32 || d.Volume(c.CopyId) != nil || d.Tombstone(c.CopyId) != nil:
		return refuse(dv1.Error_INVALID, "a move needs a new id of 32 bytes")
	case to == nil:
		return refuse(dv1.Error_NOT_FOUND, "move %s: No such node: %s", v.Name, c.To)
	case v.Moving != nil:
		return refuse(dv1.Error_CONFLICT, "move %s: volume is being moved to %s already", v.Name, d.homeName(v.Moving.To))
	case volumes.Mounted(v.Options):
		return refuse(dv1.Error_INVALID, "move %s: its data is what its options mount (%s), which is not drover's to move", v.Name, v.Options["device"])
	case v.Home == "":
		return refuse(dv1.Error_INVALID, "move %s: it has no data yet: its first container chooses its node", v.Name)
	case v.Home == to.Id:
		return refuse(dv1.Error_INVALID, "move %s: its data is on %s already", v.Name, to.Name)
	case len(users) > 0:
		return refuse(dv1.Error_CONFLICT, "move %s: volume is in use - [%s]: containers stay on their node, so remove them first and create them again afterwards (drover rm keeps the volume)", v.Name, strings.Join(users, ", "))
	case to.Availability != dv1.Node_ACTIVE:
		return refuse(dv1.Error_UNAVAILABLE, "move %s: node %s is drained", v.Name, to.Name)
	case d.Node(v.Home) == nil:
		return refuse(dv1.Error_UNAVAILABLE, "move %s: its data is on %s", v.Name, d.homeName(v.Home))
	}
	v = proto.CloneOf(v)
	v.Moving = &dv1.Moving{To: to.Id, CopyId: c.CopyId}
	d.add(&dv1.Effect{Of: &dv1.Effect_Volume{Volume: v}})
	return nil
}

// endMove ends a move, in one entry: the volume is what it was, or what was copied.
func (d *decision) endMove(c *dv1.EndMove) *dv1.Error {
	v := d.Volume(c.VolumeId)
	if v.GetMoving() == nil || string(v.Moving.CopyId) != string(c.CopyId) {
		return refuse(dv1.Error_CONFLICT, "the move was given up")
	}
	v = proto.CloneOf(v)
	m := v.Moving
	v.Moving = nil
	switch {
	case !c.Copied:
		d.dropData(m.CopyId, m.To)
		d.add(&dv1.Effect{Of: &dv1.Effect_Volume{Volume: v}})
	case d.Node(m.To) == nil:
		return refuse(dv1.Error_CONFLICT, "move %s: the node was removed meanwhile", v.Name)
	default:
		d.dropVolume(v)
		v = proto.CloneOf(v)
		v.Id, v.Home = m.CopyId, m.To
		d.add(&dv1.Effect{Of: &dv1.Effect_Volume{Volume: v}})
	}
	return nil
}
