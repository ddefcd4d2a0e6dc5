package shims

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/drover/drover/agent/shim/shimapi"
)

// deletedEnv names a file to which a fake shim's `delete` appends its id.
const deletedEnv = "SHIMS_TEST_DELETED"

// This program is also the shim that its tests start.
func TestMain(m *testing.M) {
	if len(os.Args) < 2 || os.Args[1] != "-namespace" {
		os.Exit(m.Run())
	}
	if os.Args[len(os.Args)-1] == "delete" {
		if _, err := shimapi.ReadChoice("."); err != nil { // as the shim does
			_, _ = fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		f, err := os.OpenFile(os.Getenv(deletedEnv), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = fmt.Fprintln(f, strings.Join(os.Args[1:], " "))
		}
		if err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	serve()
}

func serve() {
	l, err := net.FileListener(os.NewFile(3, "socket"))
	if err != nil {
		panic(err)
	}
	srv, err := ttrpc.NewServer()
	if err != nil {
		panic(err)
	}
	f := &fake{}
	if line := os.Getenv(shimapi.LifelineEnv); line != "" {
		go func() {
			_, _ = io.Copy(io.Discard, os.NewFile(4, line))
			_, _ = f.Shutdown(context.Background(), nil)
		}()
	}
	taskAPI.RegisterTTRPCTaskService(srv, f)
	_ = srv.Serve(context.Background(), l)
}

// fake does as the streams of the container say, for want of anything else to be told by.
type fake struct {
	taskAPI.TTRPCTaskService

	mu   sync.Mutex
	made bool
	how  string
}

func (f *fake) Create(ctx context.Context, r *taskAPI.CreateTaskRequest) (*taskAPI.CreateTaskResponse, error) {
	if r.Stdout == "creates" { // for longer than anybody waits
		if err := os.WriteFile("creating", nil, 0o600); err != nil {
			return nil, err
		}
		select {}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch f.how = r.Stdout; f.how {
	case "refuses":
		return nil, errgrpc.ToGRPC(fmt.Errorf("no such program: %w", errdefs.ErrInvalidArgument))
	case "dies":
		os.Exit(1)
	case "hangs":
		<-ctx.Done()
		select {}
	}
	f.made = true
	return &taskAPI.CreateTaskResponse{Pid: uint32(os.Getpid())}, nil
}

func (f *fake) State(_ context.Context, r *taskAPI.StateRequest) (*taskAPI.StateResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.made {
		return nil, errgrpc.ToGRPC(fmt.Errorf("no container: %w", errdefs.ErrNotFound))
	}
	return &taskAPI.StateResponse{ID: r.ID, Pid: uint32(os.Getpid()), Status: tasktypes.Status_RUNNING}, nil
}

func (f *fake) Kill(_ context.Context, r *taskAPI.KillRequest) (*emptypb.Empty, error) {
	if r.Signal == uint32(syscall.SIGQUIT) { // the shim itself dies of it
		os.Exit(2)
	}
	return &emptypb.Empty{}, nil
}

func (f *fake) Delete(context.Context, *taskAPI.DeleteRequest) (*taskAPI.DeleteResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.made {
		return nil, errgrpc.ToGRPC(fmt.Errorf("no container: %w", errdefs.ErrNotFound))
	}
	f.made = false
	return &taskAPI.DeleteResponse{Pid: uint32(os.Getpid()), ExitStatus: 7}, nil
}

func (f *fake) Shutdown(context.Context, *taskAPI.ShutdownRequest) (*emptypb.Empty, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := os.Stat("creating"); err == nil || f.made { // as the shim does
		return &emptypb.Empty{}, nil
	}
	if f.how != "stays" {
		os.Exit(0)
	}
	return &emptypb.Empty{}, nil
}
