package client

import (
	"context"

	"github.com/moby/moby/client"
)

// Calls are taken over from docker's commands, once these know what they would ask.
type Calls struct {
	Create func(context.Context, client.ContainerCreateOptions) (client.ContainerCreateResult, error)
	Exec   func(context.Context, string, client.ExecCreateOptions) (client.ExecCreateResult, error)
	Pull   func(context.Context, string, client.ImagePullOptions) (client.ImagePullResponse, error)
}

type callsKey struct{}

// Intercept has the calls of docker's client under the context go to those of calls
// that are not nil. These must use a context of before, to reach the fleet.
func Intercept(ctx context.Context, calls Calls) context.Context {
	return context.WithValue(ctx, callsKey{}, calls)
}

func intercepted(ctx context.Context) Calls {
	calls, _ := ctx.Value(callsKey{}).(Calls)
	return calls
}

// ExecCreate can't be asked again: a command may run then.
func (c *fleetClient) ExecCreate(ctx context.Context, id string, o client.ExecCreateOptions) (client.ExecCreateResult, error) {
	if exec := intercepted(ctx).Exec; exec != nil {
		return exec(ctx, id, o)
	}
	return c.APIClient.ExecCreate(ctx, id, o)
}

// ImagePull is docker's, if nobody takes it over.
func (c *fleetClient) ImagePull(ctx context.Context, ref string, o client.ImagePullOptions) (client.ImagePullResponse, error) {
	if pull := intercepted(ctx).Pull; pull != nil {
		return pull(ctx, ref, o)
	}
	return c.APIClient.ImagePull(ctx, ref, o)
}

type onKey struct{}

// WithOn has requests under the context go to these nodes, whatever the session says.
func WithOn(ctx context.Context, on ...string) context.Context {
	return context.WithValue(ctx, onKey{}, on)
}

func (s *Session) on(ctx context.Context) []string {
	if on, ok := ctx.Value(onKey{}).([]string); ok {
		return on
	}
	return s.On
}
