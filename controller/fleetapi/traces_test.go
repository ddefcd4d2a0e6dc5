package fleetapi

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/trace"
)

func spans(id byte, parent []byte, name string, start, end uint64) []*tracepb.ResourceSpans {
	return []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{{
		TraceId: bytes.Repeat([]byte{1}, 16), SpanId: bytes.Repeat([]byte{id}, 8), ParentSpanId: parent, Name: name, StartTimeUnixNano: start, EndTimeUnixNano: end}}}}}}
}

// What all controllers have of a trace is one trace.
func TestTracesAreJoined(t *testing.T) {
	var asked []string
	other := &trace.Store{}
	f := serve(t, func(o *Options) {
		o.Gather = func(_ context.Context, path string) [][]byte {
			asked = append(asked, path)
			what, id, one := strings.Cut(path, "/")
			if !one {
				b, _ := json.Marshal(other.List(20, !strings.Contains(what, "all=1")))
				return [][]byte{b, []byte("no JSON")}
			}
			b, _ := json.Marshal(other.Get(id))
			return [][]byte{b, []byte("no JSON")}
		}
	})
	if _, err := f.traces().Get(t.Context(), req(&dv1.GetTraceRequest{Id: "last"})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("the last of none: %v", err)
	}
	body, err := proto.Marshal(&collector.ExportTraceServiceRequest{ResourceSpans: spans(1, nil, "drover run", 10, 40)})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		body, kind string
		want       int
	}{{string(body), "application/x-protobuf", 200}, {`{"resourceSpans":[]}`, "application/json", 200}, {"{", "application/json", 400}, {strings.Repeat("x", maxSpans+1), "application/x-protobuf", 413}} {
		r, err := http.Post(f.url+trace.Path, c.kind, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Body.Close()
		if r.StatusCode != c.want {
			t.Errorf("%d bytes of spans as %s: %s", len(c.body), c.kind, r.Status)
		}
	}
	_ = other.Add(t.Context(), spans(2, bytes.Repeat([]byte{1}, 8), "raft propose", 20, 30))
	for _, id := range []string{"last", strings.Repeat("01", 16)} {
		resp, err := f.traces().Get(t.Context(), req(&dv1.GetTraceRequest{Id: id}))
		if err != nil || len(resp.Msg.Trace.Spans) != 2 || resp.Msg.Trace.Spans[1].Name != "raft propose" {
			t.Errorf("the trace %s: %v, %v", id, resp, err)
		}
	}
	l, err := f.traces().List(t.Context(), req(&dv1.ListTracesRequest{}))
	if err != nil || len(l.Msg.Traces) != 1 || l.Msg.Traces[0].Name != "drover run" || l.Msg.Traces[0].Duration != 30 {
		t.Errorf("the list: %v, %v", l, err)
	}
	if _, err := f.traces().List(t.Context(), req(&dv1.ListTracesRequest{Reads: true, PageSize: 3})); err != nil || asked[len(asked)-1] != "traces?limit=3&all=1" {
		t.Errorf("reads too: asked for %q, %v", asked[len(asked)-1], err)
	}
	if _, err := f.traces().Get(t.Context(), req(&dv1.GetTraceRequest{Id: "ffff"})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("one that is not there: %v", err)
	}
}
