package fleetapi

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"strconv"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
)

// state returns a state at least as new as the caller has seen.
func (s *server) state(ctx context.Context, header http.Header) (*state.Snapshot, error) {
	var least uint64
	if v := header.Get(wire.HeaderIndex); v != "" {
		var err error
		if least, err = strconv.ParseUint(v, 10, 64); err != nil {
			return nil, refuse(dv1.Error_INVALID, "header %s: %q is not a raft index", wire.HeaderIndex, v)
		}
	}
	snap, err := s.Fleet.State(ctx, least)
	if err != nil {
		return nil, failed(err)
	}
	return snap, nil
}

// reply returns a response that was read from a state.
func reply[T any](snap *state.Snapshot, m *T) *connect.Response[T] {
	resp := connect.NewResponse(m)
	resp.Header().Set(wire.HeaderIndex, strconv.FormatUint(snap.Index(), 10))
	return resp
}

// done returns the response to a command that was decided.
func done[T any](res *dv1.CommandResult, m *T) *connect.Response[T] {
	resp := connect.NewResponse(m)
	resp.Header().Set(wire.HeaderIndex, strconv.FormatUint(res.GetIndex(), 10))
	return resp
}

// propose has a command decided in the caller's name, under its key. A key is valid
// for this request of this caller only.
func (s *server) propose(ctx context.Context, r connect.AnyRequest, c *dv1.Command) (*dv1.CommandResult, error) {
	p, _ := pki.PrincipalFrom(ctx)
	c.Principal = p.URI
	c.Traceparent = traceparent(ctx)
	if key := r.Header().Get(wire.HeaderKey); key != "" && c.Key == "" {
		c.Key = "fleet-" + key
	}
	if c.Key != "" {
		m, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.Any().(proto.Message))
		if err != nil {
			return nil, fmt.Errorf("encoding the request: %w", err)
		}
		sum := sha256.Sum256(fmt.Appendf(nil, "%q %s\n%s", pki.Account(p.URI), r.Spec().Procedure, m))
		c.Hash = sum[:]
	}
	res, err := s.Fleet.Propose(ctx, c)
	if err != nil {
		return nil, failed(err)
	}
	if res.Error != nil {
		return nil, decided(res.Error)
	}
	return res, nil
}

// traceparent is the request's span, "" for none.
func traceparent(ctx context.Context) string {
	out := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, out)
	return out["traceparent"]
}
