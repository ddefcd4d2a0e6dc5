// Command drover-sim measures what a fleet costs as it grows: real controllers as
// processes, with raft's log on disk, and thousands of agents with real sessions, stores
// and reconcilers over engines in memory. It prints one table. It does not measure what
// containers cost.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	if runPart() {
		return
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "drover-sim:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, talk io.Writer) error {
	flags := flag.NewFlagSet("drover-sim", flag.ContinueOnError)
	flags.SetOutput(talk)
	only := flags.String("rows", "", "comma-separated rows to measure: idle, list, commit, churn, place, hello; all by default")
	over := size{}
	flags.IntVar(&over.controllers, "controllers", 0, "controllers, instead of each row's own")
	flags.IntVar(&over.nodes, "nodes", 0, "nodes, instead of each row's own")
	flags.IntVar(&over.tasks, "tasks", 0, "tasks, instead of each row's own")
	dir := flags.String("dir", os.TempDir(), "folder for the controllers' data, on the disk to measure with; the path must be short")
	s := settings{}
	flags.DurationVar(&s.span, "for", 8*time.Second, "how long to measure a row")
	flags.IntVar(&s.callers, "callers", 64, "how many create at once")
	flags.StringVar(&s.profile, "profile", "", "folder for CPU profiles of the leader")
	if err := flags.Parse(args); err != nil {
		return err
	}
	plan, err := planned(*only, over)
	if err != nil {
		return err
	}
	var results []result
	for _, p := range plan {
		_, _ = fmt.Fprintf(talk, "%d controllers, %d nodes, %d tasks: %s\n", p.size.controllers, p.size.nodes, p.size.tasks, strings.Join(p.names(), ", "))
		got, err := p.run(ctx, *dir, s)
		results = append(results, got...)
		if err != nil {
			return errors.Join(err, table(out, results))
		}
	}
	return table(out, results)
}

// step is a measurement on one fleet.
type step struct {
	size size
	rows []row
}

func (p step) names() (out []string) {
	for _, r := range p.rows {
		out = append(out, r.name)
	}
	return out
}

// planned groups the measurements by the size of the fleet.
func planned(only string, over size) ([]step, error) {
	var names []string
	if only != "" {
		names = strings.Split(only, ",")
	}
	for _, n := range names {
		if !slices.ContainsFunc(rows, func(r row) bool { return r.name == n }) {
			return nil, fmt.Errorf("there is no row %q", n)
		}
	}
	steps := map[size]*step{}
	for _, r := range rows {
		if names != nil && !slices.Contains(names, r.name) {
			continue
		}
		for _, s := range r.sizes {
			s = size{cmp.Or(over.controllers, s.controllers), cmp.Or(over.nodes, s.nodes), cmp.Or(over.tasks, s.tasks)}
			if steps[s] == nil {
				steps[s] = &step{size: s}
			}
			if last := len(steps[s].rows); last == 0 || steps[s].rows[last-1].name != r.name {
				steps[s].rows = append(steps[s].rows, r)
			}
		}
	}
	var out []step
	for _, p := range steps {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b step) int {
		return cmp.Or(cmp.Compare(a.size.nodes, b.size.nodes), cmp.Compare(a.size.tasks, b.size.tasks), cmp.Compare(a.size.controllers, b.size.controllers))
	})
	return out, nil
}

func (p step) run(ctx context.Context, dir string, s settings) (out []result, err error) {
	f, err := newFleet(ctx, dir, p.size)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	for _, r := range p.rows {
		got, err := r.run(ctx, f, s)
		out = append(out, got...)
		if err != nil {
			return out, fmt.Errorf("measuring %s: %w", r.name, err)
		}
	}
	return out, nil
}

func table(w io.Writer, results []result) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "WHAT\tCONTROLLERS\tNODES\tTASKS\tMEASURED\tGOAL")
	for _, r := range results {
		_, _ = fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%s\t%s\n", r.what, r.size.controllers, r.size.nodes, r.size.tasks, r.measured, r.goal)
	}
	return t.Flush()
}
