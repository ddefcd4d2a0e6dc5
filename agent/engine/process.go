package engine

import (
	"context"
	"errors"
	"strings"
	"syscall"

	taskspb "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs"
)

// process is a process of a container: its own, or an exec's.
type process struct {
	tasks taskspb.TasksClient
	id    string // of the task
	exec  string // "": the task's own
}

func (p process) start(ctx context.Context) (pid uint32, err error) {
	r, err := p.tasks.Start(ctx, &taskspb.StartRequest{ContainerID: p.id, ExecID: p.exec})
	return r.GetPid(), err
}

func (p process) resize(ctx context.Context, width, height uint32) error {
	_, err := p.tasks.ResizePty(ctx, &taskspb.ResizePtyRequest{ContainerID: p.id, ExecID: p.exec, Width: width, Height: height})
	return err
}

// wait returns how the process ended, once it has.
func (p process) wait(ctx context.Context) (*taskspb.WaitResponse, error) {
	return p.tasks.Wait(ctx, &taskspb.WaitRequest{ContainerID: p.id, ExecID: p.exec})
}

// kill ends the process, and all of the container's for a task's own, and returns once it
// has ended.
func (p process) kill(ctx context.Context) error {
	_, err := p.tasks.Kill(ctx, &taskspb.KillRequest{ContainerID: p.id, ExecID: p.exec, Signal: uint32(syscall.SIGKILL), All: p.exec == ""})
	if err != nil && notCreated(err) { // it has no end to wait for
		return nil
	}
	if err == nil || alreadyEnded(err) {
		_, err = p.wait(ctx)
	}
	if err != nil && !notFound(err) {
		return err
	}
	return nil
}

// delete removes an exec that has ended, or kills it first.
func (p process) delete(ctx context.Context, kill bool) error {
	var err error
	if kill {
		err = p.kill(ctx)
	}
	_, derr := p.tasks.DeleteProcess(ctx, &taskspb.DeleteProcessRequest{ContainerID: p.id, ExecID: p.exec})
	return errors.Join(err, derr)
}

// notCreated reports whether a signal was for an exec that was not started.
func notCreated(err error) bool { return strings.Contains(err.Error(), "process not created") }

// alreadyEnded reports whether a signal came too late.
func alreadyEnded(err error) bool {
	return strings.Contains(err.Error(), "process already finished") || errdefs.IsFailedPrecondition(err) || strings.Contains(err.Error(), "FailedPrecondition")
}
