package trace

import (
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Proto is the trace as the fleet API has it.
func (t *Trace) Proto() *dv1.Trace {
	out := &dv1.Trace{Id: t.ID}
	for _, s := range t.Spans {
		out.Spans = append(out.Spans, &dv1.Span{Id: s.ID, Parent: s.Parent, Name: s.Name, Service: s.Service, Host: s.Host,
			Start: s.Start, End: s.End, Error: s.Error, Attributes: s.Attributes})
	}
	return out
}

// FromProto is the trace that the fleet API has as m.
func FromProto(m *dv1.Trace) *Trace {
	t := &Trace{ID: m.GetId()}
	for _, s := range m.GetSpans() {
		t.Spans = append(t.Spans, Span{ID: s.Id, Parent: s.Parent, Name: s.Name, Service: s.Service, Host: s.Host,
			Start: s.Start, End: s.End, Error: s.Error, Attributes: s.Attributes})
	}
	return t
}

// Proto is the summary as the fleet API has it.
func (s Summary) Proto() *dv1.TraceSummary {
	return &dv1.TraceSummary{Id: s.ID, Name: s.Name, Start: s.Start, Duration: int64(s.Duration), Spans: uint32(s.Spans), Error: s.Error}
}

// SummaryFromProto is the summary that the fleet API has as m.
func SummaryFromProto(m *dv1.TraceSummary) Summary {
	return Summary{ID: m.GetId(), Name: m.GetName(), Start: m.GetStart(), Duration: time.Duration(m.GetDuration()), Spans: int(m.GetSpans()), Error: m.GetError()}
}
