package fleetapi

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"slices"

	"connectrpc.com/connect"

	"github.com/drover/drover/controller/create"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/fields"
)

// runs implements dv1connect.RunsHandler.
type runs struct{ *server }

// Create returns once the run is filled, however many entries of the log that takes.
// The leader goes on by itself when this caller, or this controller, is gone; who asks
// again with the same key waits for the same run.
func (s runs) Create(ctx context.Context, r *connect.Request[dv1.CreateRunRequest]) (*connect.Response[dv1.CreateRunResponse], error) {
	if r.Msg.Mode != dv1.Run_EACH {
		return nil, refuse(dv1.Error_INVALID, "runs of mode %s are made over docker's API: here it is EACH", r.Msg.Mode)
	}
	snap, err := s.state(ctx, r.Header())
	if err != nil {
		return nil, err
	}
	c, warnings, err := create.Command(snap, create.Request{Body: r.Msg.Body, Name: r.Msg.Name, Platform: r.Msg.Platform, Mode: r.Msg.Mode, On: r.Msg.On})
	if err != nil {
		return nil, unchecked(err)
	}
	res, err := s.propose(ctx, r, &dv1.Command{Of: &dv1.Command_Create{Create: c}})
	if err != nil {
		return nil, err
	}
	if snap, err = s.filled(ctx, res.RunId, res.Index); err != nil {
		return nil, err
	}
	out := &dv1.CreateRunResponse{Id: hex.EncodeToString(res.RunId), Name: res.Name, Warnings: append(warnings, res.Warnings...), Tasks: tasksOf(snap, res.RunId)}
	for _, j := range res.Rejected {
		out.PassedOver = append(out.PassedOver, &dv1.PassedOver{Nodes: j.Nodes, Why: j.Why})
	}
	return reply(snap, out), nil
}

// filled blocks until a run wants no more tasks, and returns the state of then. Each
// entry that makes some of them moves the index on.
func (s runs) filled(ctx context.Context, run []byte, least uint64) (*state.Snapshot, error) {
	for {
		snap, err := s.Fleet.State(ctx, least)
		if err != nil {
			return nil, failed(err)
		}
		if !snap.Run(run).GetFilling() {
			return snap, nil
		}
		least = snap.Index() + 1
	}
}

// tasksOf are a run's tasks by slot, less those that were removed since.
func tasksOf(snap *state.Snapshot, run []byte) (out []*dv1.RunTask) {
	for _, t := range slices.SortedFunc(snap.TasksOfRun(run), func(a, b *dv1.Task) int { return cmp.Compare(a.Slot, b.Slot) }) {
		out = append(out, &dv1.RunTask{Id: hex.EncodeToString(t.Id), Name: t.Name, NodeId: t.NodeId, NodeName: cmp.Or(snap.Node(t.NodeId).GetName(), t.NodeId)})
	}
	return out
}

// unchecked is a create's refusal before anything was decided.
func unchecked(err error) error {
	var e *create.Error
	var field *fields.Error
	switch {
	case errors.As(err, &e):
		return refuse(e.Kind, "%s", e.Message)
	case errors.As(err, &field):
		return refuse(dv1.Error_INVALID, "%v", field)
	}
	return refuse(dv1.Error_INTERNAL, "checking the request: %v", err)
}
