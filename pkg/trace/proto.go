package trace

import (
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Proto returns the trace as a message of the fleet API.
func (t *Trace) Proto() *dv1.Trace {
	out := &dv1.Trace{Id: t.ID}
	for _, s := range t.Spans {
		out.Spans = append(out.Spans, &dv1.Span{Id: s.ID, Parent: s.Parent, Name: s.Name, Service: s.Service, Host: s.Host,
			Start: s.Start, End: s.End, Error: s.Error, Attributes: s.Attributes})
	}
	return out
}

// FromProto returns the trace in a message of the fleet API.
func FromProto(m *dv1.Trace) *Trace {
	t := &Trace{ID: m.GetId()}
	for _, s := range m.GetSpans() {
		t.Spans = append(t.Spans, Span{ID: s.Id, Parent: s.Parent, Name: s.Name, Service: s.Service, Host: s.Host,
			Start: s.Start, End: s.End, Error: s.Error, Attributes: s.Attributes})
	}
	return t
}

// Proto returns the summary as a message of the fleet API.
func (s Summary) Proto() *dv1.TraceSummary {
	return &dv1.TraceSummary{Id: s.ID, Name: s.Name, Start: s.Start, Duration: int64(s.Duration), Spans: uint32(s.Spans), Error: s.Error}
}

// SummaryFromProto returns the summary in a message of the fleet API.
func SummaryFromProto(m *dv1.TraceSummary) Summary {
	return Summary{ID: m.GetId(), Name: m.GetName(), Start: m.GetStart(), Duration: time.Duration(m.GetDuration()), Spans: int(m.GetSpans()), Error: m.GetError()}
}
