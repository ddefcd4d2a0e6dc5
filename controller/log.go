package controller

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/drover/drover/controller/relay"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// tracedLog makes a proposal a span.
type tracedLog struct {
	relay.Log
	tracer trace.Tracer
}

// Propose implements relay.Log.
func (l *tracedLog) Propose(ctx context.Context, cmd *dv1.Command) (*dv1.CommandResult, error) {
	if !trace.SpanContextFromContext(ctx).IsValid() { // never a trace of its own: heartbeats propose too
		return l.Log.Propose(ctx, cmd)
	}
	kind := strings.TrimPrefix(fmt.Sprintf("%T", cmd.GetOf()), "*dv1.Command_")
	ctx, span := l.tracer.Start(ctx, "raft propose", trace.WithAttributes(attribute.String("command", kind)))
	defer span.End()
	r, err := l.Log.Propose(ctx, cmd)
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.SetAttributes(attribute.Int64("index", int64(r.GetIndex())))
	return r, err
}

// gate keeps back the commits of former lives, which raft replays.
type gate struct {
	mu       sync.Mutex // guards to and restored
	to       func([]*dv1.Effect, uint64)
	restored func(before, after *state.Snapshot)
}

func (g *gate) committed(effects []*dv1.Effect, index uint64) {
	g.mu.Lock()
	to := g.to
	g.mu.Unlock()
	if to != nil {
		to(effects, index)
	}
}

func (g *gate) restore(before, after *state.Snapshot) {
	g.mu.Lock()
	restored := g.restored
	g.mu.Unlock()
	if restored != nil {
		restored(before, after)
	}
}

// open runs seed between the last commit that was kept back and the first that
// passes.
func (g *gate) open(seed func(), to func([]*dv1.Effect, uint64), restored func(before, after *state.Snapshot)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	seed()
	g.to, g.restored = to, restored
}

// between is what those who cut connections and end controllers must hear of where a
// snapshot took the place of the entries that did it.
func between(before, after *state.Snapshot) (out []*dv1.Effect) {
	for i := range after.Identities() {
		if i.Revoked && !before.Identity(i.Uri).GetRevoked() {
			out = append(out, &dv1.Effect{Of: &dv1.Effect_Identity{Identity: i}})
		}
	}
	for n := range after.Nodes() {
		if !maps.Equal(before.Node(n.Id).GetRoles(), n.Roles) {
			out = append(out, &dv1.Effect{Of: &dv1.Effect_Node{Node: n}})
		}
	}
	for m := range before.Controllers() {
		if after.Controller(m.Id) == nil {
			out = append(out, &dv1.Effect{Of: &dv1.Effect_DeleteController{DeleteController: m.Id}})
		}
	}
	return out
}
