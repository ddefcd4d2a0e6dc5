package root

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/cli/cli"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/drover/drover/pkg/trace"
)

func (a *app) traceCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "trace [last|ID]", Short: "Show where the time of an operation went", Args: cli.RequiresMaxArgs(1),
		Long: "Show where the time of an operation went, from the command to the container's process.\nWithout an argument it lists the latest operations."}
	raw := cmd.Flags().Bool("json", false, "Print the spans as JSON")
	limit := cmd.Flags().IntP("limit", "n", 20, "How many operations to list")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			var l []trace.Summary
			if err := a.get(cmd, fmt.Sprintf("traces?limit=%d", *limit), &l); err != nil {
				return err
			}
			return printList(cmd.OutOrStdout(), l)
		}
		var t trace.Trace
		if err := a.get(cmd, "traces/"+url.PathEscape(args[0]), &t); err != nil {
			return err
		}
		if late := settled - time.Since(lastEnd(t)); late > 0 { // spans still come
			time.Sleep(late)
			if err := a.get(cmd, "traces/"+t.ID, &t); err != nil {
				return err
			}
		}
		if *raw {
			e := json.NewEncoder(cmd.OutOrStdout())
			e.SetIndent("", "  ")
			return e.Encode(t)
		}
		return waterfall(cmd.OutOrStdout(), t)
	}
	return cmd
}

// settled is how long after an operation all of its spans have come.
const settled = 600 * time.Millisecond

func lastEnd(t trace.Trace) time.Time {
	var end int64
	for _, s := range t.Spans {
		end = max(end, s.End)
	}
	return time.Unix(0, end)
}

func (a *app) get(cmd *cobra.Command, path string, to any) error {
	h, err := a.target.HTTP()
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, "http://drover/drover/v1/"+path, nil)
	if err != nil {
		return fmt.Errorf("asking for traces: %w", err)
	}
	resp, err := h.Do(req)
	if err != nil {
		return fmt.Errorf("nothing answers at %s: start it there (drover up), or name another host with -H: %w", a.target.Host, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		var m struct {
			Message string `json:"message"`
		}
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		if json.Unmarshal(b, &m) != nil || m.Message == "" {
			m.Message = resp.Status
		}
		return fmt.Errorf("%s", m.Message)
	}
	if err := json.NewDecoder(resp.Body).Decode(to); err != nil {
		return fmt.Errorf("reading traces: %w", err)
	}
	return nil
}

func printList(out io.Writer, l []trace.Summary) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(w, "TRACE\tOPERATION\tSTARTED\tTOOK\tSPANS\tERROR")
	for _, s := range l {
		_, _ = fmt.Fprintf(w, "%.12s\t%s\t%s ago\t%s\t%d\t%s\n", s.ID, s.Name, units.HumanDuration(time.Since(time.Unix(0, s.Start))), ms(s.Duration), s.Spans, firstLine(s.Error))
	}
	return w.Flush()
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if len(s) > 60 {
		s = s[:57] + "..."
	}
	return s
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1fms", float64(d)/1e6) }

const barWidth = 40

// waterfall draws spans under their parents, with bars on one axis of time.
func waterfall(out io.Writer, t trace.Trace) error {
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
	_, _ = fmt.Fprintf(out, "trace %s, %s, %d spans\n\n", t.ID, ms(total), len(t.Spans))
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
