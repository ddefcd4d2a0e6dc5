package trace

import (
	"cmp"
	"context"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// Bounds of a store.
const (
	MaxTraces     = 2000
	MaxSpans      = 1000     // of one trace
	maxTraceBytes = 4 << 20  // of one trace
	maxBytes      = 64 << 20 // of all
)

// Span is one step of an operation, as clients receive it. Times are Unix ns.
type Span struct {
	ID         string            `json:"id"`
	Parent     string            `json:"parent,omitempty"`
	Name       string            `json:"name"`
	Service    string            `json:"service"`
	Host       string            `json:"host"`
	Start      int64             `json:"start"`
	End        int64             `json:"end"`
	Error      string            `json:"error,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
}

// Trace is an operation.
type Trace struct {
	ID    string `json:"id"`
	Spans []Span `json:"spans"` // by start
}

// Summary is a trace in a listing.
type Summary struct {
	ID       string        `json:"id"`
	Name     string        `json:"name"`
	Start    int64         `json:"start"`
	Duration time.Duration `json:"duration"`
	Spans    int           `json:"spans"`
	Error    string        `json:"error,omitempty"`
}

// Store keeps the newest traces in memory. The zero value is ready. Safe for
// concurrent use.
type Store struct {
	mu     sync.Mutex // guards the fields below
	traces map[string]*kept
	order  []string // oldest first
	bytes  int      // of all traces
}

type kept struct {
	spans map[string]Span
	bytes int
}

// Add implements Sink.
func (s *Store) Add(_ context.Context, rs []*tracepb.ResourceSpans) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.traces == nil {
		s.traces = map[string]*kept{}
	}
	for _, r := range rs {
		service := find(r.GetResource().GetAttributes(), "service.name")
		host := find(r.GetResource().GetAttributes(), "host.name")
		for _, sc := range r.GetScopeSpans() {
			for _, p := range sc.GetSpans() {
				if valid(p.GetTraceId(), 16) && valid(p.GetSpanId(), 8) {
					s.put(hex.EncodeToString(p.TraceId), span(p, service, host))
				}
			}
		}
	}
	return nil
}

// valid reports whether an id is one: of this length, and not all zeros.
func valid(id []byte, length int) bool {
	return len(id) == length && slices.ContainsFunc(id, func(b byte) bool { return b != 0 })
}

// put must be called with mu held. What doesn't fit its trace is dropped, and so are the
// oldest traces if all don't fit.
func (s *Store) put(id string, sp Span) {
	k := s.traces[id]
	if k == nil {
		k = &kept{spans: map[string]Span{}}
	}
	old, again := k.spans[sp.ID]
	more := sp.size()
	if again {
		more -= old.size()
	}
	if !again && len(k.spans) == MaxSpans || k.bytes+more > maxTraceBytes {
		return
	}
	if s.traces[id] == nil {
		s.traces[id] = k
		s.order = append(s.order, id)
	}
	k.spans[sp.ID] = sp
	k.bytes += more
	s.bytes += more
	for len(s.order) > MaxTraces || s.bytes > maxBytes {
		s.bytes -= s.traces[s.order[0]].bytes
		delete(s.traces, s.order[0])
		s.order = s.order[1:]
	}
}

// spanOverhead is about what a span takes besides its texts, and an attribute besides its
// own.
const (
	spanOverhead      = 256
	attributeOverhead = 48
)

func (s *Span) size() int {
	n := spanOverhead + len(s.ID) + len(s.Parent) + len(s.Name) + len(s.Service) + len(s.Host) + len(s.Error)
	for k, v := range s.Attributes {
		n += attributeOverhead + len(k) + len(v)
	}
	return n
}

func span(p *tracepb.Span, service, host string) Span {
	sp := Span{ID: hex.EncodeToString(p.SpanId), Parent: hex.EncodeToString(p.ParentSpanId), Name: p.Name, Service: service, Host: host,
		Start: int64(p.StartTimeUnixNano), End: int64(p.EndTimeUnixNano), Attributes: map[string]string{}}
	if p.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
		sp.Error = p.Status.Message
		if sp.Error == "" {
			sp.Error = "failed"
		}
	}
	for _, a := range p.GetAttributes() {
		sp.Attributes[a.Key] = text(a.Value)
	}
	return sp
}

func find(as []*commonpb.KeyValue, key string) string {
	for _, a := range as {
		if a.Key == key {
			return text(a.Value)
		}
	}
	return ""
}

func text(v *commonpb.AnyValue) string {
	switch of := v.GetValue().(type) {
	case nil:
		return ""
	case *commonpb.AnyValue_StringValue:
		return of.StringValue
	case *commonpb.AnyValue_IntValue:
		return strconv.FormatInt(of.IntValue, 10)
	case *commonpb.AnyValue_BoolValue:
		return strconv.FormatBool(of.BoolValue)
	case *commonpb.AnyValue_DoubleValue:
		return strconv.FormatFloat(of.DoubleValue, 'g', -1, 64)
	}
	return strings.TrimSpace(v.String())
}

// Get returns the trace with this id or unique prefix of an id, nil if there is none.
func (s *Store) Get(id string) *Trace {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.traces[id] == nil {
		var found []string
		for k := range s.traces {
			if len(id) >= 4 && strings.HasPrefix(k, id) {
				found = append(found, k)
			}
		}
		if len(found) != 1 {
			return nil
		}
		id = found[0]
	}
	return s.trace(id)
}

// trace must be called with mu held.
func (s *Store) trace(id string) *Trace {
	t := &Trace{ID: id}
	for _, sp := range s.traces[id].spans {
		t.Spans = append(t.Spans, sp)
	}
	slices.SortFunc(t.Spans, byStart)
	return t
}

// List returns up to n traces, newest first. With operations, requests that only read
// are left out.
func (s *Store) List(n int, operations bool) []Summary {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []Summary{}
	for _, id := range s.order {
		t := s.trace(id)
		if !operations || operation(t) {
			out = append(out, summarize(t))
		}
	}
	slices.SortFunc(out, newestFirst)
	return out[:max(0, min(n, len(out)))]
}

func summarize(t *Trace) Summary {
	sum := Summary{ID: t.ID, Spans: len(t.Spans)}
	end := t.Spans[0].End
	sum.Start = t.Spans[0].Start // the earliest
	for i, sp := range t.Spans {
		if i == 0 || sp.Parent == "" {
			sum.Name = sp.Name
		}
		end = max(end, sp.End)
		if sp.Error != "" && sum.Error == "" {
			sum.Error = sp.Error
		}
	}
	sum.Duration = time.Duration(max(0, end-sum.Start))
	return sum
}

// operation reports whether a trace is of a command, or of a request that changes
// something.
func operation(t *Trace) bool {
	for _, sp := range t.Spans {
		if strings.HasPrefix(sp.Name, "drover ") {
			return true
		}
		if request, ok := strings.CutPrefix(sp.Name, "engineapi "); ok && !strings.HasPrefix(request, "GET ") && !strings.HasPrefix(request, "HEAD ") {
			return true
		}
	}
	return false
}

// Merge adds the spans that another store has of the same trace.
func (t *Trace) Merge(o *Trace) {
	have := map[string]bool{}
	for _, sp := range t.Spans {
		have[sp.ID] = true
	}
	for _, sp := range o.Spans {
		if !have[sp.ID] {
			t.Spans = append(t.Spans, sp)
		}
	}
	slices.SortFunc(t.Spans, byStart)
}

func byStart(a, b Span) int {
	return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(b.End, a.End), cmp.Compare(a.ID, b.ID))
}

func newestFirst(a, b Summary) int {
	return cmp.Or(cmp.Compare(b.Start, a.Start), cmp.Compare(a.ID, b.ID))
}

// Newest merges lists of several stores, keeping the fullest summary of each trace.
func Newest(n int, lists ...[]Summary) []Summary {
	best := map[string]Summary{}
	for _, l := range lists {
		for _, s := range l {
			if old, ok := best[s.ID]; !ok || strings.HasPrefix(s.Name, "drover ") || s.Spans > old.Spans && !strings.HasPrefix(old.Name, "drover ") {
				best[s.ID] = s
			}
		}
	}
	out := slices.Collect(maps.Values(best))
	slices.SortFunc(out, newestFirst)
	return out[:max(0, min(n, len(out)))]
}
