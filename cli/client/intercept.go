package client

import (
	"context"

	"github.com/moby/moby/client"
)

// Calls replace calls of docker's client, once docker's commands have built their
// requests.
type Calls struct {
	Create func(context.Context, client.ContainerCreateOptions) (client.ContainerCreateResult, error)
	Exec   func(context.Context, string, client.ExecCreateOptions) (client.ExecCreateResult, error)
	Pull   func(context.Context, string, client.ImagePullOptions) (client.ImagePullResponse, error)
}

type callsKey struct{}

// Intercept redirects calls of docker's client under the context to the non-nil
// functions of calls. To reach the fleet, these must use a context from before.
func Intercept(ctx context.Context, calls Calls) context.Context {
	return context.WithValue(ctx, callsKey{}, calls)
}

func intercepted(ctx context.Context) Calls {
	calls, _ := ctx.Value(callsKey{}).(Calls)
	return calls
}

// ExecCreate is not retried: a command may already run.
func (c *fleetClient) ExecCreate(ctx context.Context, id string, o client.ExecCreateOptions) (client.ExecCreateResult, error) {
	if exec := intercepted(ctx).Exec; exec != nil {
		return exec(ctx, id, o)
	}
	return c.APIClient.ExecCreate(ctx, id, o)
}

// ImagePull is docker's, unless intercepted.
func (c *fleetClient) ImagePull(ctx context.Context, ref string, o client.ImagePullOptions) (client.ImagePullResponse, error) {
	if pull := intercepted(ctx).Pull; pull != nil {
		return pull(ctx, ref, o)
	}
	return c.APIClient.ImagePull(ctx, ref, o)
}

type assumedKey struct{}

// Assume makes ContainerInspect under the context return an empty result without asking:
// for commands that only want to know whether a container exists, and are told so by their
// next request.
func Assume(ctx context.Context) context.Context {
	return context.WithValue(ctx, assumedKey{}, true)
}

type onKey struct{}

// WithOn sends requests under the context to these nodes, whatever the session says.
func WithOn(ctx context.Context, on ...string) context.Context {
	return context.WithValue(ctx, onKey{}, on)
}

func (s *Session) on(ctx context.Context) []string {
	if on, ok := ctx.Value(onKey{}).([]string); ok {
		return on
	}
	return s.On
}
