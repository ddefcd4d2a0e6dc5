package client

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// goOn is how long a command looks for another controller when its own is gone.
const goOn = 15 * time.Second

// fleetClient is docker's client, except that it survives the death of a controller:
// retries carry the key of the first request, waits are resumed, and streams of output
// continue where they broke.
type fleetClient struct {
	client.APIClient
	s *Session

	mu    sync.Mutex // guards the fields below
	lost  error
	made  map[string]made      // containers of this command
	exits map[string]*dv1.Exit // of execs that ended
}

// keyKey is the context's key of a *call.
type keyKey struct{}

// call is a request that may be retried, always with the same key.
type call struct {
	key       string
	later     atomic.Bool // the fleet asks for a retry
	unreached atomic.Bool // nobody has ever answered this session, and dialing was retried already
}

type afterKey struct{}

// broken reports whether the connection, not the fleet, is why something failed.
func broken(err error) bool {
	return client.IsErrConnectionFailed(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
}

// again retries f, always with one key, until it fails for another reason than the
// connection: what an earlier try did is not done twice. If there is no leader, it also
// retries changes that may have been made, and requests of commands that have begun.
func again[R any](ctx context.Context, f func(context.Context) (R, error)) (R, error) {
	return againIf(ctx, broken, f)
}

// againIf is again with another test for errors that leave the outcome open.
func againIf[R any](ctx context.Context, broken func(error) bool, f func(context.Context) (R, error)) (R, error) {
	c := &call{key: key()}
	ctx = context.WithValue(ctx, keyKey{}, c)
	for end := time.Now().Add(goOn); ; {
		r, err := f(ctx)
		later := c.later.Swap(false)
		if err == nil || !later && !broken(err) || c.unreached.Load() || ctx.Err() != nil || time.Now().After(end) {
			return r, err
		}
		rest(ctx)
	}
}

func rest(ctx context.Context) {
	select {
	case <-time.After(50 * time.Millisecond):
	case <-ctx.Done():
	}
}

func (c *fleetClient) ContainerCreate(ctx context.Context, o client.ContainerCreateOptions) (client.ContainerCreateResult, error) {
	if create := intercepted(ctx).Create; create != nil {
		return create(ctx, o)
	}
	r, err := again(ctx, func(ctx context.Context) (client.ContainerCreateResult, error) {
		return c.APIClient.ContainerCreate(ctx, o)
	})
	if err == nil {
		c.remember(r.ID, o.Config != nil && o.Config.Tty)
	}
	return r, err
}

func (c *fleetClient) ContainerStart(ctx context.Context, id string, o client.ContainerStartOptions) (client.ContainerStartResult, error) {
	return again(ctx, func(ctx context.Context) (client.ContainerStartResult, error) {
		return c.APIClient.ContainerStart(ctx, id, o)
	})
}

func (c *fleetClient) ContainerStop(ctx context.Context, id string, o client.ContainerStopOptions) (client.ContainerStopResult, error) {
	return again(ctx, func(ctx context.Context) (client.ContainerStopResult, error) {
		return c.APIClient.ContainerStop(ctx, id, o)
	})
}

func (c *fleetClient) ContainerRestart(ctx context.Context, id string, o client.ContainerRestartOptions) (client.ContainerRestartResult, error) {
	return again(ctx, func(ctx context.Context) (client.ContainerRestartResult, error) {
		return c.APIClient.ContainerRestart(ctx, id, o)
	})
}

func (c *fleetClient) ContainerRemove(ctx context.Context, id string, o client.ContainerRemoveOptions) (client.ContainerRemoveResult, error) {
	return again(ctx, func(ctx context.Context) (client.ContainerRemoveResult, error) {
		return c.APIClient.ContainerRemove(ctx, id, o)
	})
}

func (c *fleetClient) ContainerRename(ctx context.Context, id string, o client.ContainerRenameOptions) (client.ContainerRenameResult, error) {
	return again(ctx, func(ctx context.Context) (client.ContainerRenameResult, error) {
		return c.APIClient.ContainerRename(ctx, id, o)
	})
}

func (c *fleetClient) ContainerKill(ctx context.Context, id string, o client.ContainerKillOptions) (client.ContainerKillResult, error) {
	return again(ctx, func(ctx context.Context) (client.ContainerKillResult, error) {
		return c.APIClient.ContainerKill(ctx, id, o)
	})
}

func (c *fleetClient) ContainerList(ctx context.Context, o client.ContainerListOptions) (client.ContainerListResult, error) {
	return again(ctx, func(ctx context.Context) (client.ContainerListResult, error) {
		return c.APIClient.ContainerList(ctx, o)
	})
}

func (c *fleetClient) ContainerInspect(ctx context.Context, id string, o client.ContainerInspectOptions) (client.ContainerInspectResult, error) {
	if ctx.Value(assumedKey{}) != nil {
		return client.ContainerInspectResult{}, nil
	}
	return again(ctx, func(ctx context.Context) (client.ContainerInspectResult, error) {
		return c.APIClient.ContainerInspect(ctx, id, o)
	})
}

func (c *fleetClient) ImageList(ctx context.Context, o client.ImageListOptions) (client.ImageListResult, error) {
	return again(ctx, func(ctx context.Context) (client.ImageListResult, error) { return c.APIClient.ImageList(ctx, o) })
}

func (c *fleetClient) ImageRemove(ctx context.Context, id string, o client.ImageRemoveOptions) (client.ImageRemoveResult, error) {
	return again(ctx, func(ctx context.Context) (client.ImageRemoveResult, error) {
		return c.APIClient.ImageRemove(ctx, id, o)
	})
}

func (c *fleetClient) Info(ctx context.Context, o client.InfoOptions) (client.SystemInfoResult, error) {
	return again(ctx, func(ctx context.Context) (client.SystemInfoResult, error) { return c.APIClient.Info(ctx, o) })
}

// underway is the context's key of an *atomic.Bool: whether the fleet accepted a wait.
type underway struct{}

// ContainerWait resumes the wait each time that it breaks. For a container that this
// command created, it does not block until the fleet has accepted the wait.
func (c *fleetClient) ContainerWait(ctx context.Context, id string, o client.ContainerWaitOptions) client.ContainerWaitResult {
	var taken atomic.Bool
	ctx = context.WithValue(ctx, underway{}, &taken)
	m, own := c.own(id)
	var first client.ContainerWaitResult
	if !own {
		first = c.APIClient.ContainerWait(ctx, id, o)
		m.index = c.s.seen.Load()
	}
	results, errs := make(chan container.WaitResponse, 1), make(chan error, 1)
	go func() {
		w := first
		ctx := context.WithValue(ctx, afterKey{}, m.index)
		if own {
			w = c.APIClient.ContainerWait(ctx, id, o)
		}
		var end time.Time // of the search for a controller that accepts the wait
		for {
			select {
			case r := <-w.Result:
				results <- r
				return
			case err := <-w.Error:
				if taken.Swap(false) || end.IsZero() {
					end = time.Now().Add(goOn)
				}
				if ctx.Err() != nil || errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) || errdefs.IsPermissionDenied(err) || time.Now().After(end) {
					errs <- err
					return
				}
				rest(ctx)
				w = c.APIClient.ContainerWait(ctx, id, o)
			}
		}
	}()
	return client.ContainerWaitResult{Result: results, Error: errs}
}
