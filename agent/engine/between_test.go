package engine_test

import (
	"context"
	"testing"

	taskspb "github.com/containerd/containerd/api/services/tasks/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/drover/drover/agent/engine"
	"github.com/drover/drover/agent/shim/shimapi"
	begin "github.com/drover/drover/agent/shims"
)

// moment is a point in a call to a shim: before it is made, or after it was answered and
// before the engine learns of it.
type moment struct {
	call  string
	id    string // of the task; "": of any
	after bool
}

// between calls at at each moment of the engines that the test opens from now on. Its
// error is what the engine gets.
func between(t *testing.T, at func(moment) error) {
	t.Helper()
	t.Cleanup(engine.Disturb(func(inner engine.Tasks) engine.Tasks { return disturbed{inner, at} }))
}

type disturbed struct {
	engine.Tasks
	at func(moment) error
}

func disturb[R any](d disturbed, call, id string, f func() (R, error)) (R, error) {
	var none R
	if err := d.at(moment{call, id, false}); err != nil {
		return none, err
	}
	r, err := f()
	if err != nil {
		return r, err
	}
	return r, d.at(moment{call, id, true})
}

func (d disturbed) Launch(id string, runtime shimapi.Choice) error {
	_, err := disturb(d, launchShim, id, func() (struct{}, error) { return struct{}{}, d.Tasks.Launch(id, runtime) })
	return err
}

func (d disturbed) Begin(ctx context.Context, c begin.Container) (uint32, error) {
	return disturb(d, createTask, c.ID, func() (uint32, error) { return d.Tasks.Begin(ctx, c) })
}

func (d disturbed) Start(ctx context.Context, in *taskspb.StartRequest, opts ...grpc.CallOption) (*taskspb.StartResponse, error) {
	return disturb(d, startTask, in.ContainerID, func() (*taskspb.StartResponse, error) { return d.Tasks.Start(ctx, in, opts...) })
}

func (d disturbed) Exec(ctx context.Context, in *taskspb.ExecProcessRequest, opts ...grpc.CallOption) (*emptypb.Empty, error) {
	return disturb(d, execTask, in.ContainerID, func() (*emptypb.Empty, error) { return d.Tasks.Exec(ctx, in, opts...) })
}

func (d disturbed) Kill(ctx context.Context, in *taskspb.KillRequest, opts ...grpc.CallOption) (*emptypb.Empty, error) {
	return disturb(d, killTask, in.ContainerID, func() (*emptypb.Empty, error) { return d.Tasks.Kill(ctx, in, opts...) })
}

var errGone = status.Error(codes.Unavailable, "error reading from server: EOF")
