package shim

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/shim/shimapi"
)

// followLifeline asks the service to shut down when the agent that started this shim has
// ended: a service with a container stays. Without a lifeline it does nothing.
func followLifeline(ctx context.Context, tasks taskAPI.TTRPCTaskService, sd shutdown.Service) error {
	value := os.Getenv(shimapi.LifelineEnv)
	if value == "" {
		return nil
	}
	fd, err := strconv.Atoi(value)
	if err == nil {
		unix.CloseOnExec(fd) // neither inits nor hooks have it
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return fmt.Errorf("the agent's lifeline %q: %w", value, err)
	}
	line := os.NewFile(uintptr(fd), "lifeline")
	sd.RegisterCallback(func(context.Context) error { return line.Close() })
	go func() { // until the agent, or this shim, has ended
		if _, err := io.Copy(io.Discard, line); err == nil {
			_, _ = tasks.Shutdown(context.WithoutCancel(ctx), &taskAPI.ShutdownRequest{})
		}
	}()
	return nil
}
