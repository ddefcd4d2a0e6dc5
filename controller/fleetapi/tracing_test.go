package fleetapi

import (
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
)

// A request is a span of its caller's trace, and what is proposed for it is below that
// span. Without a trace, none is started.
func TestRequestsAreSpansOfTheirCallersTrace(t *testing.T) {
	const trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	spans := tracetest.NewSpanRecorder()
	tp := sdk.NewTracerProvider(sdk.WithSpanProcessor(spans))
	f := serve(t, func(o *Options) { o.Tracer = tp.Tracer("") })
	add := func(parent string) {
		t.Helper()
		r := req(&dv1.AddPoolRequest{Pool: "10.224.0.0/12"})
		if parent != "" {
			r.Header().Set("traceparent", parent)
		}
		if _, err := f.nodes().AddPool(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	add("")
	if n := len(spans.Ended()); n != 0 || f.last().Traceparent != "" {
		t.Errorf("a request without a trace has %d spans, and proposes for %q", n, f.last().Traceparent)
	}
	add("00-" + trace + "-" + caller + "-01")
	if len(spans.Ended()) != 1 {
		t.Fatalf("%d spans", len(spans.Ended()))
	}
	s := spans.Ended()[0]
	if s.Name() != "fleetapi "+dv1connect.NodesAddPoolProcedure[1:] || s.SpanContext().TraceID().String() != trace || s.Parent().SpanID().String() != caller {
		t.Errorf("the span is %s of %s below %s", s.Name(), s.SpanContext().TraceID(), s.Parent().SpanID())
	}
	if want := "00-" + trace + "-" + s.SpanContext().SpanID().String() + "-01"; f.last().Traceparent != want {
		t.Errorf("the command goes with %s, want %s", f.last().Traceparent, want)
	}
}
