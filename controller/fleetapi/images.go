package fleetapi

import (
	"context"

	"connectrpc.com/connect"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

// images implements dv1connect.ImagesHandler.
type images struct{ *server }

// Resolve also serves a node's mirror, which may only resolve what it needs: public
// images, and those of its tasks.
func (s images) Resolve(ctx context.Context, r *connect.Request[dv1.ResolveImageRequest]) (*connect.Response[dv1.ResolveImageResponse], error) {
	snap, err := s.state(ctx, r.Header())
	if err != nil {
		return nil, err
	}
	t := snap.Tag(r.Msg.Reference)
	if t == nil {
		return nil, refuse(dv1.Error_NOT_FOUND, "No such image: %s", r.Msg.Reference)
	}
	out := &dv1.ResolveImageResponse{Digest: t.Digest, Public: snap.Image(t.Digest).GetPublic()}
	if p, _ := pki.PrincipalFrom(ctx); p.Kind == pki.KindNode {
		if !out.Public && !needs(snap, p.ID, t.Digest) {
			return nil, refuse(dv1.Error_FORBIDDEN, "%s is a private image: its registry requires a credential", r.Msg.Reference)
		}
		if s.Grant != nil {
			if out.Grant, err = s.Grant(p.ID, t.Digest); err != nil {
				return nil, refuse(dv1.Error_INTERNAL, "granting %s: %v", r.Msg.Reference, err)
			}
		}
	}
	for _, id := range s.Fleet.Observe(ctx, fleet.Query{Images: []string{t.Digest}}).Holders(t.Digest) {
		if n := snap.Node(id); n != nil {
			out.Holders = append(out.Holders, n.Addr)
		}
	}
	return reply(snap, out), nil
}

func needs(snap *state.Snapshot, node, digest string) bool {
	for t := range snap.TasksOfImage(digest) {
		if t.NodeId == node {
			return true
		}
	}
	return false
}
