package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/drover/drover/controller/consensus"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// patience is how long a proposal waits for a leader, which a stalled disk can
// cost a cluster for a moment.
const patience = 5 * time.Second

// patientLog proposes again while that can do nothing twice: there was no
// leader, so nothing was proposed, or the command has a key.
type patientLog struct {
	*consensus.Node
	tracer trace.Tracer
}

// Propose implements dispatch.Log and core.Log.
func (l *patientLog) Propose(ctx context.Context, cmd *dv1.Command) (*dv1.CommandResult, error) {
	if trace.SpanContextFromContext(ctx).IsValid() { // never a trace of its own: heartbeats propose too
		kind := strings.TrimPrefix(fmt.Sprintf("%T", cmd.GetOf()), "*dv1.Command_")
		var span trace.Span
		ctx, span = l.tracer.Start(ctx, "raft propose", trace.WithAttributes(attribute.String("command", kind)))
		defer span.End()
		r, err := l.propose(ctx, cmd)
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.SetAttributes(attribute.Int64("index", int64(r.GetIndex())))
		return r, err
	}
	return l.propose(ctx, cmd)
}

func (l *patientLog) propose(ctx context.Context, cmd *dv1.Command) (*dv1.CommandResult, error) {
	enough := time.NewTimer(patience)
	defer enough.Stop()
	for {
		changed := l.Changed() // before proposing: an election in between is not missed
		r, err := l.Node.Propose(ctx, cmd)
		again := errors.Is(err, consensus.ErrNotLeader) || errors.Is(err, consensus.ErrRetry) && cmd.GetKey() != ""
		if !again {
			return r, err
		}
		select {
		case <-changed:
		case <-enough.C:
			return nil, err
		case <-ctx.Done():
			return nil, err
		}
	}
}

// gate keeps back the commits of former lives, which raft replays.
type gate struct {
	mu sync.Mutex // guards to
	to func([]*dv1.Effect, uint64)
}

func (g *gate) committed(effects []*dv1.Effect, index uint64) {
	g.mu.Lock()
	to := g.to
	g.mu.Unlock()
	if to != nil {
		to(effects, index)
	}
}

// open runs seed between the last commit that was kept back and the first that
// passes.
func (g *gate) open(seed func(), to func([]*dv1.Effect, uint64)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	seed()
	g.to = to
}
