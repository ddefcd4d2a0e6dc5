package controller

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/clitest"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
)

type controllers struct {
	dv1connect.UnimplementedControllersHandler
	timing *dv1.GetTimingResponse
}

func (c *controllers) List(context.Context, *connect.Request[dv1.ListControllersRequest]) (*connect.Response[dv1.ListControllersResponse], error) {
	return connect.NewResponse(&dv1.ListControllersResponse{Controllers: []*dv1.ControllerInfo{
		{Id: strings.Repeat("a", 32), Name: "a", Addr: "10.0.0.1:7443", Role: dv1.ControllerInfo_LEADER, Joined: clitest.At(72 * time.Hour)},
		{Id: "short", Name: "bbbbbbbbbb", Addr: "10.0.0.2:7443", Role: dv1.ControllerInfo_CATCHING_UP, Joined: clitest.At(time.Minute)},
	}}), nil
}

func (c *controllers) Remove(_ context.Context, r *connect.Request[dv1.RemoveControllerRequest]) (*connect.Response[dv1.RemoveControllerResponse], error) {
	if r.Msg.Controller == "a" {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("a is the only controller"))
	}
	return connect.NewResponse(&dv1.RemoveControllerResponse{}), nil
}

func (c *controllers) GetTiming(context.Context, *connect.Request[dv1.GetTimingRequest]) (*connect.Response[dv1.GetTimingResponse], error) {
	return connect.NewResponse(c.timing), nil
}

func (c *controllers) SetTiming(_ context.Context, r *connect.Request[dv1.SetTimingRequest]) (*connect.Response[dv1.SetTimingResponse], error) {
	c.timing = &dv1.GetTimingResponse{Timing: r.Msg.Timing}
	return connect.NewResponse(&dv1.SetTimingResponse{}), nil
}

func TestWhatPeopleRead(t *testing.T) {
	for name, args := range map[string]string{
		"ls.txt": "ls", "rm.txt": "rm b a c", "timing.txt": "timing", "timing-set.txt": "timing 1s/1s/1s", "rm-none.txt": "rm",
	} {
		mux := http.NewServeMux()
		mux.Handle(dv1connect.NewControllersHandler(&controllers{timing: &dv1.GetTimingResponse{Profile: "lan", Timing: "150ms/150ms/140ms"}}))
		s := clitest.Serve(t, mux)
		parent := &cobra.Command{Use: "controller"}
		parent.AddCommand(Commands(s)...)
		clitest.Golden(t, name, clitest.Run(t, s, parent, strings.Fields(args)...))
	}
}
