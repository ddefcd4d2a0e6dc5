package trace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

func id(n, length int) []byte { return fmt.Appendf(nil, "%0*d", length, n) }

func hexID(n int) string { return fmt.Sprintf("%x", id(n, 16)) }

// spanOf is span number n of a trace.
func spanOf(trace, n int, change func(*tracepb.Span)) *tracepb.Span {
	s := &tracepb.Span{TraceId: id(trace, 16), SpanId: id(n, 8), Name: fmt.Sprint("step ", n), StartTimeUnixNano: uint64(n), EndTimeUnixNano: uint64(n + 1)}
	if change != nil {
		change(s)
	}
	return s
}

func add(t *testing.T, s *Store, spans ...*tracepb.Span) {
	t.Helper()
	if err := s.Add(t.Context(), []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: spans}}}}); err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsNoSpanIsLeftOut(t *testing.T) {
	s := &Store{}
	for _, r := range [][]*tracepb.ResourceSpans{nil, {nil}, {{}}, {{ScopeSpans: []*tracepb.ScopeSpans{nil, {Spans: []*tracepb.Span{nil, {}}}}}}} {
		if err := s.Add(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []func(*tracepb.Span){
		func(s *tracepb.Span) { s.TraceId = nil }, func(s *tracepb.Span) { s.TraceId = id(1, 15) }, func(s *tracepb.Span) { s.TraceId = id(1, 17) },
		func(s *tracepb.Span) { s.TraceId = make([]byte, 16) }, func(s *tracepb.Span) { s.SpanId = nil }, func(s *tracepb.Span) { s.SpanId = id(1, 16) },
		func(s *tracepb.Span) { s.SpanId = make([]byte, 8) },
	} {
		add(t, s, spanOf(1, 1, bad))
	}
	if l := s.List(10, false); len(l) > 0 {
		t.Errorf("traces of no spans: %+v", l)
	}
}

func TestASpanIsShownAsItWasSent(t *testing.T) {
	s := &Store{}
	val := func(v *commonpb.AnyValue) *commonpb.KeyValue {
		return &commonpb.KeyValue{Key: fmt.Sprintf("%T", v.GetValue()), Value: v}
	}
	p := spanOf(1, 2, func(s *tracepb.Span) {
		s.ParentSpanId = id(1, 8)
		s.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR}
		s.Attributes = []*commonpb.KeyValue{
			{Key: "none"},
			val(&commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: " a\n"}}),
			val(&commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: -7}}),
			val(&commonpb.AnyValue{Value: &commonpb.AnyValue_BoolValue{BoolValue: true}}),
			val(&commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: 0.5}}),
		}
	})
	err := s.Add(t.Context(), []*tracepb.ResourceSpans{{
		Resource: &resourcepb.Resource{Attributes: []*commonpb.KeyValue{
			{Key: "service.name", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: "agent"}}},
			{Key: "host.name", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: "web-1"}}}}},
		ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{p}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := &Trace{ID: hexID(1), Spans: []Span{{ID: fmt.Sprintf("%x", id(2, 8)), Parent: fmt.Sprintf("%x", id(1, 8)), Name: "step 2", Service: "agent", Host: "web-1", Start: 2, End: 3, Error: "failed",
		Attributes: map[string]string{"none": "", "*v1.AnyValue_StringValue": " a\n", "*v1.AnyValue_IntValue": "-7", "*v1.AnyValue_BoolValue": "true", "*v1.AnyValue_DoubleValue": "0.5"}}}}
	got := s.Get(hexID(1))
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nnot\n%+v", got, want)
	}
	if again := FromProto(got.Proto()); !reflect.DeepEqual(again, want) {
		t.Errorf("as a message: %+v", again)
	}
	sum := s.List(1, false)[0]
	if again := SummaryFromProto(sum.Proto()); again != sum || sum != (Summary{ID: hexID(1), Name: "step 2", Start: 2, Duration: 1, Spans: 1, Error: "failed"}) {
		t.Errorf("%+v, as a message %+v", sum, again)
	}
}

// Times come from anybody's clock: whatever they are, spans are in order and durations
// are none that never were.
func TestAnyTimesAreInOrder(t *testing.T) {
	times := []uint64{0, 1, 5, math.MaxInt64, math.MaxInt64 + 1, math.MaxUint64, 5, 1 << 62}
	s := &Store{}
	for i, at := range times {
		add(t, s, spanOf(1, i+1, func(s *tracepb.Span) { s.StartTimeUnixNano, s.EndTimeUnixNano = at, times[len(times)-1-i] }),
			spanOf(i+2, 1, func(s *tracepb.Span) { s.StartTimeUnixNano, s.EndTimeUnixNano = at, 0 }))
	}
	if got := s.Get(hexID(1)).Spans; !slices.IsSortedFunc(got, func(a, b Span) int {
		if a.Start < b.Start || a.Start == b.Start && a.End >= b.End {
			return -1
		}
		return 1
	}) {
		t.Errorf("spans are out of order: %+v", got)
	}
	all := s.List(100, false)
	for i, sum := range all {
		if sum.ID != hexID(1) && sum.Duration < 0 || i > 0 && all[i-1].Start < sum.Start {
			t.Errorf("summary %d is of %d, lasting %d", i, sum.Start, sum.Duration)
		}
	}
	early := spanOf(99, 1, func(s *tracepb.Span) { s.StartTimeUnixNano, s.EndTimeUnixNano = 0, 3 }) // a clock at 1970
	add(t, s, early, spanOf(99, 2, func(s *tracepb.Span) { s.StartTimeUnixNano, s.EndTimeUnixNano = 10, 20 }))
	for _, sum := range s.List(100, false) {
		if sum.ID == hexID(99) && (sum.Start != 0 || sum.Duration != 20) {
			t.Errorf("from the epoch on: %+v", sum)
		}
	}
}

func TestGetTakesAPrefixOfOneTrace(t *testing.T) {
	s := &Store{}
	for _, n := range []int{1, 12, 900} {
		add(t, s, spanOf(n, 1, nil))
	}
	one := hexID(900)
	for prefix, want := range map[string]string{
		hexID(1): hexID(1), one: one, one[:28]: one, one[:27]: "", one[:26]: "", one[:4]: "", one[:3]: "", "": "",
		hexID(12)[:31]: hexID(12), one + "0": "", strings.Repeat("f", 32): "", "last": "", "%": "",
	} {
		got := s.Get(prefix)
		if got == nil && want != "" || got != nil && got.ID != want {
			t.Errorf("%q is of %+v, want %q", prefix, got, want)
		}
	}
	s = &Store{}
	add(t, s, spanOf(1, 1, nil))
	if s.Get(hexID(1)[:4]) == nil || s.Get(hexID(1)[:3]) != nil || s.Get("") != nil {
		t.Error("the only trace is found by less than four digits, or not by four")
	}
	if (&Store{}).Get("last") != nil || len((&Store{}).List(5, true)) > 0 {
		t.Error("an empty store has a trace")
	}
}

func TestListLeavesOutWhatOnlyReads(t *testing.T) {
	s := &Store{}
	names := []string{"drover run", "engineapi POST /containers/create", "engineapi DELETE /containers/web", "engineapi GET /containers/json", "engineapi HEAD /_ping", "raft propose", "droverrun"}
	for i, name := range names {
		add(t, s, spanOf(i+1, i+1, func(s *tracepb.Span) { s.Name = name }))
	}
	listed := func(n int, operations bool) (out []string) {
		for _, sum := range s.List(n, operations) {
			out = append(out, sum.Name)
		}
		return out
	}
	slices.Reverse(names) // newest first
	if got := listed(100, false); !slices.Equal(got, names) {
		t.Errorf("all are %q", got)
	}
	if got := listed(100, true); !slices.Equal(got, names[4:]) {
		t.Errorf("operations are %q", got)
	}
	if got := listed(2, true); !slices.Equal(got, names[4:6]) || len(listed(0, true)) > 0 || len(listed(-1, true)) > 0 {
		t.Errorf("two operations are %q", got)
	}
}

// Whoever may send spans may send any number, of any size.
func TestAStoreIsBoundedInTracesSpansAndBytes(t *testing.T) {
	s := &Store{}
	for n := range MaxTraces + 5 {
		add(t, s, spanOf(n+1, 1, nil))
	}
	if s.Get(hexID(5)) != nil || s.Get(hexID(6)) == nil || len(s.traces) != MaxTraces || len(s.order) != MaxTraces {
		t.Errorf("%d traces, %d in order", len(s.traces), len(s.order))
	}
	for n := range MaxSpans + 5 {
		add(t, s, spanOf(6, n+1, nil))
	}
	add(t, s, spanOf(6, 1, func(s *tracepb.Span) { s.Name = "again" }))
	if got := s.Get(hexID(6)).Spans; len(got) != MaxSpans || got[0].Name != "again" {
		t.Errorf("%d spans, from %q", len(got), got[0].Name)
	}

	long := strings.Repeat("x", 1<<20)
	for name, grow := range map[string]func(*tracepb.Span){
		"name": func(s *tracepb.Span) { s.Name = long },
		"message": func(s *tracepb.Span) {
			s.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: long}
		},
		"value": func(s *tracepb.Span) {
			s.Attributes = []*commonpb.KeyValue{{Key: "k", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: long}}}}
		},
		"key": func(s *tracepb.Span) { s.Attributes = []*commonpb.KeyValue{{Key: long}} },
	} {
		s = &Store{}
		for n := range 30 {
			for i := range 5 {
				add(t, s, spanOf(n+1, i+1, grow), spanOf(n+1, i+1, grow)) // the same one again takes no more
			}
		}
		sum := 0
		for id, k := range s.traces {
			if len(k.spans) != maxTraceBytes>>20-1 {
				t.Errorf("%s: %d long spans of one trace", name, len(k.spans))
			}
			for _, sp := range s.trace(id).Spans {
				sum += sp.size()
			}
		}
		if s.Get(hexID(30)) == nil || s.Get(hexID(1)) != nil || len(s.order) != len(s.traces) || sum != s.bytes || sum > maxBytes || sum < maxBytes*3/4 {
			t.Errorf("%s: %d traces of %d bytes, counted %d", name, len(s.traces), sum, s.bytes)
		}
	}
	add(t, s, spanOf(99, 1, func(s *tracepb.Span) { s.Name = strings.Repeat("x", maxTraceBytes) }))
	if s.Get(hexID(99)) != nil {
		t.Error("a span that is too long is a trace")
	}
}

func TestMergeAndNewest(t *testing.T) {
	a := &Trace{ID: "t", Spans: []Span{{ID: "1", Start: 1, End: 9}, {ID: "3", Start: 3, End: 4}}}
	a.Merge(&Trace{ID: "t", Spans: []Span{{ID: "2", Start: 1, End: 10}, {ID: "3", Start: 0, Name: "another's"}, {ID: "0", Start: 2}}})
	var ids string
	for _, s := range a.Spans {
		ids += s.ID
	}
	if ids != "2103" {
		t.Errorf("merged, spans are %s", ids)
	}
	for name, c := range map[string]struct {
		n     int
		lists [][]Summary
		want  []Summary
	}{
		"none":                {5, nil, nil},
		"newest first":        {2, [][]Summary{{{ID: "a", Start: 1}, {ID: "b", Start: 3}}, {{ID: "c", Start: 2}}}, []Summary{{ID: "b", Start: 3}, {ID: "c", Start: 2}}},
		"the fullest":         {5, [][]Summary{{{ID: "a", Spans: 1}}, {{ID: "a", Spans: 3}}, {{ID: "a", Spans: 2}}}, []Summary{{ID: "a", Spans: 3}}},
		"but the command's":   {5, [][]Summary{{{ID: "a", Name: "drover run", Spans: 1}}, {{ID: "a", Spans: 3}}}, []Summary{{ID: "a", Name: "drover run", Spans: 1}}},
		"whichever was first": {5, [][]Summary{{{ID: "a", Spans: 3}}, {{ID: "a", Name: "drover run", Spans: 1}}}, []Summary{{ID: "a", Name: "drover run", Spans: 1}}},
		"far apart":           {5, [][]Summary{{{ID: "a", Start: math.MinInt64}, {ID: "b", Start: math.MaxInt64}}}, []Summary{{ID: "b", Start: math.MaxInt64}, {ID: "a", Start: math.MinInt64}}},
		"less than none":      {-1, [][]Summary{{{ID: "a"}}}, nil},
	} {
		if got := Newest(c.n, c.lists...); !slices.Equal(got, c.want) {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// What a provider's tracers measure reaches the sink when it shuts down, at the latest.
func TestSpansOfAProviderReachItsSink(t *testing.T) {
	s := &Store{}
	p := Provider("agent", "web-1", s)
	ctx, parent := p.Tracer("x").Start(t.Context(), "start")
	_, child := p.Tracer("x").Start(ctx, "pull")
	child.SetAttributes(attribute.Int("bytes", 5))
	child.SetStatus(codes.Error, "no such image")
	child.End()
	parent.End()
	if err := p.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := s.Get(parent.SpanContext().TraceID().String())
	if got == nil || len(got.Spans) != 2 {
		t.Fatalf("%+v", got)
	}
	for _, sp := range got.Spans {
		want := Span{ID: parent.SpanContext().SpanID().String(), Name: "start", Attributes: map[string]string{}}
		if sp.Name == "pull" {
			want = Span{ID: child.SpanContext().SpanID().String(), Parent: want.ID, Name: "pull", Error: "no such image", Attributes: map[string]string{"bytes": "5"}}
		}
		want.Service, want.Host, want.Start, want.End = "agent", "web-1", sp.Start, sp.End
		if !reflect.DeepEqual(sp, want) || sp.End < sp.Start || time.Since(time.Unix(0, sp.Start)) > time.Minute {
			t.Errorf("%+v\nnot\n%+v", sp, want)
		}
	}
}

func TestARemoteSinkSaysWhatFailed(t *testing.T) {
	sent := []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{spanOf(1, 1, nil)}}}}}
	for code, want := range map[int]string{200: "", 202: "", 400: "sending spans: 400", 413: "sending spans: 413", 503: "sending spans: 503"} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			got := &collector.ExportTraceServiceRequest{}
			if err := proto.Unmarshal(b, got); err != nil || len(got.ResourceSpans) != 1 || !proto.Equal(got.ResourceSpans[0], sent[0]) ||
				r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
				t.Errorf("%s %s %v: %v, %v", r.Method, r.URL, r.Header, got, err)
			}
			w.WriteHeader(code)
		}))
		r := &Remote{HTTP: srv.Client(), URL: func() string { return srv.URL }}
		if err := r.Add(t.Context(), sent); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%d: %v", code, err)
		}
		srv.Close()
		if err := r.Add(t.Context(), sent); err == nil || !strings.Contains(err.Error(), "sending spans") {
			t.Errorf("to nobody: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (&Remote{HTTP: http.DefaultClient, URL: func() string { return "http://127.0.0.1:1" }}).Add(ctx, sent); !errors.Is(err, context.Canceled) {
		t.Errorf("after its end: %v", err)
	}
	if err := (&Remote{HTTP: http.DefaultClient, URL: func() string { return "\x00" }}).Add(t.Context(), sent); err == nil {
		t.Error("to no address")
	}
}
