package fleetapi

import (
	"context"
	"errors"
	"slices"
	"strings"

	"connectrpc.com/connect"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/timing"
)

// controllers implements dv1connect.ControllersHandler.
type controllers struct{ *server }

func (s controllers) List(ctx context.Context, r *connect.Request[dv1.ListControllersRequest]) (*connect.Response[dv1.ListControllersResponse], error) {
	all := s.Members()
	slices.SortFunc(all, func(a, b *dv1.ControllerInfo) int { return strings.Compare(a.Name, b.Name) })
	return connect.NewResponse(&dv1.ListControllersResponse{Controllers: all}), nil
}

func (s controllers) Remove(ctx context.Context, r *connect.Request[dv1.RemoveControllerRequest]) (*connect.Response[dv1.RemoveControllerResponse], error) {
	var res *dv1.CommandResult
	err := s.Options.Remove(ctx, r.Msg.Controller, func() (err error) {
		res, err = s.propose(ctx, r, &dv1.Command{Of: &dv1.Command_RemoveController{RemoveController: &dv1.RemoveController{Id: r.Msg.Controller}}})
		return err
	})
	var refused *connect.Error
	switch {
	case err == nil:
		return done(res, &dv1.RemoveControllerResponse{}), nil
	case errors.As(err, &refused):
		return nil, refused
	default:
		return nil, refuse(dv1.Error_CONFLICT, "%v", err)
	}
}

func (s controllers) GetTiming(ctx context.Context, r *connect.Request[dv1.GetTimingRequest]) (*connect.Response[dv1.GetTimingResponse], error) {
	snap, err := s.state(ctx, r.Header())
	if err != nil {
		return nil, err
	}
	t := timing.FromProto(snap.Cluster().GetTiming())
	return reply(snap, &dv1.GetTimingResponse{Profile: t.Profile(), Timing: t.String()}), nil
}

func (s controllers) SetTiming(ctx context.Context, r *connect.Request[dv1.SetTimingRequest]) (*connect.Response[dv1.SetTimingResponse], error) {
	if r.Msg.Timing == "" {
		return nil, refuse(dv1.Error_INVALID, "the new timing is missing")
	}
	t, err := timing.Parse(r.Msg.Timing)
	if err != nil {
		return nil, refuse(dv1.Error_INVALID, "%v", err)
	}
	res, err := s.propose(ctx, r, &dv1.Command{Of: &dv1.Command_SetTiming{SetTiming: &dv1.SetTiming{Timing: t.Proto()}}})
	if err != nil {
		return nil, err
	}
	return done(res, &dv1.SetTimingResponse{}), nil
}
