package fleetapi

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"connectrpc.com/connect"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/trace"
)

// listedTraces is how many traces are listed by default.
const listedTraces = 20

// traces implements dv1connect.TracesHandler. Each controller keeps the spans that
// were sent to it.
type traces struct{ *server }

func (s traces) List(ctx context.Context, r *connect.Request[dv1.ListTracesRequest]) (*connect.Response[dv1.ListTracesResponse], error) {
	n := int(min(r.Msg.PageSize, maxPage))
	if n == 0 {
		n = listedTraces
	}
	out := &dv1.ListTracesResponse{}
	for _, t := range s.newest(ctx, n, !r.Msg.Reads) {
		out.Traces = append(out.Traces, t.Proto())
	}
	return connect.NewResponse(out), nil
}

func (s traces) newest(ctx context.Context, n int, operations bool) []trace.Summary {
	lists := [][]trace.Summary{s.Traces.List(n, operations)}
	if s.Gather != nil {
		path := "traces?limit=" + strconv.Itoa(n)
		if !operations {
			path += "&all=1"
		}
		for _, b := range s.Gather(ctx, path) {
			var l []trace.Summary
			if json.Unmarshal(b, &l) == nil {
				lists = append(lists, l)
			}
		}
	}
	return trace.Newest(n, lists...)
}

func (s traces) Get(ctx context.Context, r *connect.Request[dv1.GetTraceRequest]) (*connect.Response[dv1.GetTraceResponse], error) {
	id := r.Msg.Id
	if id == "last" {
		l := s.newest(ctx, 1, true)
		if len(l) == 0 {
			return nil, refuse(dv1.Error_NOT_FOUND, "no operation was traced yet")
		}
		id = l[0].ID
	}
	t := s.whole(ctx, id)
	if t == nil {
		return nil, refuse(dv1.Error_NOT_FOUND, "no such trace: %s (controllers keep the last %d)", id, trace.MaxTraces)
	}
	return connect.NewResponse(&dv1.GetTraceResponse{Trace: t.Proto()}), nil
}

// whole merges what all controllers have of a trace, nil if none has any.
func (s traces) whole(ctx context.Context, id string) *trace.Trace {
	t := s.Traces.Get(id)
	if s.Gather == nil {
		return t
	}
	for _, b := range s.Gather(ctx, "traces/"+url.PathEscape(id)) {
		o := &trace.Trace{}
		if json.Unmarshal(b, o) != nil || o.ID == "" {
			continue
		}
		if t == nil {
			t = o
		} else if t.ID == o.ID {
			t.Merge(o)
		}
	}
	return t
}

// export accepts spans in OTLP's own format, at its own path.
func (s *server) export(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		answerError(w, http.StatusRequestEntityTooLarge, connect.CodeResourceExhausted, "reading spans: "+err.Error())
		return
	}
	req := &collector.ExportTraceServiceRequest{}
	if r.Header.Get("Content-Type") == "application/json" {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, req)
	} else {
		err = proto.Unmarshal(b, req)
	}
	if err != nil {
		answerError(w, http.StatusBadRequest, connect.CodeInvalidArgument, "reading spans: "+err.Error())
		return
	}
	_ = s.Traces.Add(r.Context(), req.ResourceSpans) // an in-memory store accepts everything
	w.Header().Set("Content-Type", "application/x-protobuf")
	w.WriteHeader(http.StatusOK)
}
