package controller

import (
	"context"
	"fmt"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/drover/drover/controller/peer"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// tracedLog records a span for each proposal.
type tracedLog struct {
	peer.Log
	tracer trace.Tracer
}

// Propose implements peer.Log.
func (l *tracedLog) Propose(ctx context.Context, cmd *dv1.Command) (*dv1.CommandResult, error) {
	if !trace.SpanContextFromContext(ctx).IsValid() { // never starts a trace: heartbeats propose too
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
