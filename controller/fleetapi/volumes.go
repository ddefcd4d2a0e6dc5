package fleetapi

import (
	"context"
	"crypto/rand"

	"connectrpc.com/connect"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// volumes implements dv1connect.VolumesHandler.
type volumes struct{ *server }

// Move reports progress until the volume's data is on the other node. A caller that is gone
// gives it up.
func (s volumes) Move(ctx context.Context, r *connect.Request[dv1.MoveVolumeRequest], out *connect.ServerStream[dv1.MoveVolumeResponse]) error {
	snap, err := s.state(ctx, r.Header())
	if err != nil {
		return err
	}
	v := snap.VolumeByName(r.Msg.Volume)
	if v == nil {
		return refuse(dv1.Error_NOT_FOUND, "get %s: no such volume", r.Msg.Volume)
	}
	to := snap.NodeByName(r.Msg.Node)
	if to == nil {
		return refuse(dv1.Error_NOT_FOUND, "No such node: %s", r.Msg.Node)
	}
	copied := make([]byte, 32)
	_, _ = rand.Read(copied) // it never fails
	ctx, gone := context.WithCancel(ctx)
	defer gone()
	at := &dv1.MoveVolumeResponse{FromNode: snap.Node(v.Home).GetName(), ToNode: to.Name}
	begin := func() (*dv1.CommandResult, error) {
		return s.propose(ctx, r, &dv1.Command{Of: &dv1.Command_MoveVolume{MoveVolume: &dv1.MoveVolume{VolumeId: v.Id, To: to.Id, CopyId: copied}}})
	}
	err = s.Options.Move(ctx, v.Id, copied, begin, func(written, total int64) {
		if at.Written, at.Total = written, total; out.Send(at) != nil {
			gone()
		}
	})
	if err != nil {
		return unmoved(err)
	}
	at.Done = true
	return out.Send(at)
}

// unmoved is why a move was given up. What was refused says so by itself.
func unmoved(err error) error {
	if connect.CodeOf(err) != connect.CodeUnknown {
		return err
	}
	return refuse(dv1.Error_UNAVAILABLE, "%v: the move is given up", err)
}
