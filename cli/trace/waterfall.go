package trace

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/drover/drover/pkg/plural"
	"github.com/drover/drover/pkg/trace"
)

// barWidth is the width of the time axis, in characters.
const barWidth = 40

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if len(s) > 60 {
		s = s[:57] + "..."
	}
	return s
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1fms", float64(d)/1e6) }

// waterfall draws spans below their parents, with bars on one time axis.
func waterfall(out io.Writer, t *trace.Trace) error {
	if len(t.Spans) == 0 {
		return fmt.Errorf("trace %s has no spans", t.ID)
	}
	known := map[string]bool{}
	first, last := t.Spans[0].Start, t.Spans[0].End
	for _, s := range t.Spans {
		known[s.ID] = true
		first, last = min(first, s.Start), max(last, s.End)
	}
	children := map[string][]trace.Span{}
	for _, s := range t.Spans {
		parent := s.Parent
		if !known[parent] {
			parent = ""
		}
		children[parent] = append(children[parent], s)
	}
	total := time.Duration(last - first)
	_, _ = fmt.Fprintf(out, "trace %s, %s, %s\n\n", t.ID, ms(total), plural.Of(len(t.Spans), "span"))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	var draw func(parent string, depth int)
	draw = func(parent string, depth int) {
		for _, s := range children[parent] {
			name := strings.Repeat("  ", depth) + s.Name
			if s.Error != "" {
				name += " !"
			}
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t|%s|\n", name, s.Service+"@"+s.Host, ms(time.Duration(s.Start-first)), ms(time.Duration(s.End-s.Start)), bar(s, first, total))
			draw(s.ID, depth+1)
		}
	}
	_, _ = fmt.Fprintln(w, "STEP\tWHERE\tAT\tTOOK\t")
	draw("", 0)
	if err := w.Flush(); err != nil {
		return err
	}
	for _, s := range t.Spans {
		if s.Error != "" {
			_, _ = fmt.Fprintf(out, "\n! %s: %s\n", s.Name, s.Error)
		}
	}
	return nil
}

func bar(s trace.Span, first int64, total time.Duration) string {
	if total <= 0 {
		total = 1
	}
	from := int(int64(barWidth) * (s.Start - first) / int64(total))
	to := int(int64(barWidth) * (s.End - first) / int64(total))
	from = min(max(from, 0), barWidth-1)
	to = min(max(to, from+1), barWidth)
	return strings.Repeat(" ", from) + strings.Repeat("█", to-from) + strings.Repeat(" ", barWidth-to)
}
