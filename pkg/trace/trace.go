// Package trace collects the spans of operations: a bounded store in each
// controller, and providers whose spans reach one, in this process or over HTTP.
// What is worth a span is the callers'.
package trace

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Path is where a controller receives spans; it is OTLP's own.
const Path = "/v1/traces"

// every is how long spans are batched before they are sent.
const every = 200 * time.Millisecond

// Sink receives spans. Store and Remote implement it.
type Sink interface {
	Add(ctx context.Context, spans []*tracepb.ResourceSpans) error
}

// Provider returns a tracer provider for service on host that exports to sink in
// the background. Shutdown flushes it.
func Provider(service, host string, sink Sink) *sdk.TracerProvider {
	exp := otlptrace.NewUnstarted(client{sink}) // client has nothing to start
	return sdk.NewTracerProvider(sdk.WithBatcher(exp, sdk.WithBatchTimeout(every)),
		sdk.WithResource(resource.NewSchemaless(attribute.String("service.name", service), attribute.String("host.name", host))))
}

// client implements otlptrace.Client over a Sink.
type client struct{ sink Sink }

func (client) Start(context.Context) error { return nil }
func (client) Stop(context.Context) error  { return nil }

func (c client) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	return c.sink.Add(ctx, spans)
}

// Remote posts spans to a controller. URL returns its address, without a path.
type Remote struct {
	HTTP *http.Client
	URL  func() string
}

// Add implements Sink.
func (r *Remote) Add(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	b, err := proto.Marshal(&collector.ExportTraceServiceRequest{ResourceSpans: spans})
	if err != nil {
		return fmt.Errorf("encoding spans: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.URL()+Path, bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("sending spans: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	resp, err := r.HTTP.Do(req)
	if err != nil {
		return fmt.Errorf("sending spans: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode >= 300 {
		return fmt.Errorf("sending spans: %s", resp.Status)
	}
	return nil
}
