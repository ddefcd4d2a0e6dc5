package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// settings control the length and load of the measurements.
type settings struct {
	span    time.Duration // how long a row is measured
	callers int           // concurrent creates
	profile string        // directory for CPU profiles of leaders; "" for none
}

// result is a row of the table.
type result struct {
	what     string
	size     size
	measured string
	goal     string
}

// row is one measurement of a fleet.
type row struct {
	name  string
	sizes []size
	run   func(ctx context.Context, f *fleet, s settings) ([]result, error)
}

// rows are ordered by how much they change the fleet: the most disruptive are last.
var rows = []row{
	{"idle", []size{{3, 3, 0}}, idle},
	{"list", []size{{1, 1000, 100_000}, {3, 5000, 100_000}}, list},
	{"commit", []size{{3, 10, 0}, {3, 10_000, 0}}, commit},
	{"churn", []size{{1, 1000, 10_000}}, churn},
	{"place", []size{{1, 1000, 1000}, {1, 1000, 10_000}, {1, 1000, 100_000}, {3, 1000, 1000}, {3, 1000, 10_000}, {3, 1000, 100_000}}, place},
	{"hello", []size{{3, 5000, 100_000}}, hello},
}

// usage is the CPU time used by the processes of a fleet, by name; all agents are one.
type usage map[string]time.Duration

func (f *fleet) usage() (usage, error) {
	u := usage{}
	for _, m := range f.members {
		if m.proc == nil {
			continue
		}
		d, err := m.proc.cpu()
		if err != nil {
			return nil, err
		}
		u[m.name] = d
	}
	var err error
	u["agents"], err = f.agents.cpu()
	return u, err
}

// rate is what an idle fleet uses per second.
func (f *fleet) rate(ctx context.Context, d time.Duration) (usage, error) {
	u, _, err := f.measure(nil, func() error { return pause(ctx, d) })
	for k := range u {
		u[k] = time.Duration(float64(u[k]) / d.Seconds())
	}
	return u, err
}

// measure returns what do uses beyond the idle rate, and how long it takes.
func (f *fleet) measure(rate usage, do func() error) (usage, time.Duration, error) {
	before, err := f.usage()
	if err != nil {
		return nil, 0, err
	}
	began := time.Now()
	if err := do(); err != nil {
		return nil, 0, err
	}
	took := time.Since(began)
	after, err := f.usage()
	for k := range after {
		after[k] -= before[k] + time.Duration(float64(rate[k])*took.Seconds())
	}
	return after, took, err
}

func (u usage) sum() (d time.Duration) {
	for _, v := range u {
		d += v
	}
	return d
}

// each returns the share of one of n.
func (u usage) each(n int) usage {
	out := usage{}
	for k, v := range u {
		out[k] = v / time.Duration(max(n, 1))
	}
	return out
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// idle measures a fleet without requests.
func idle(ctx context.Context, f *fleet, s settings) ([]result, error) {
	leader, err := f.leader(ctx)
	if err != nil {
		return nil, err
	}
	if err := pause(ctx, 2*time.Second); err != nil { // let the load of the start settle
		return nil, err
	}
	done := profile(ctx, leader, s, "idle")
	u, err := f.rate(ctx, 2*s.span)
	if err = joined(done, err); err != nil {
		return nil, err
	}
	percent := func(d time.Duration, n int) string {
		return fmt.Sprintf("%.2f %% of a core", d.Seconds()*100/float64(max(n, 1)))
	}
	followers := u.sum() - u["agents"] - u[leader.name]
	return []result{
		{"idle leader", f.size, percent(u[leader.name], 1), "< 1 %"},
		{"idle follower", f.size, percent(followers, len(f.members)-1), "< 0.5 %"},
		{"idle agent (its session)", f.size, percent(u["agents"], f.nodes), "< 0.5 %"},
	}, nil
}

// list measures what lists and sums of a large fleet cost the leader.
func list(ctx context.Context, f *fleet, s settings) (out []result, err error) {
	leader, err := f.leader(ctx)
	if err != nil {
		return nil, err
	}
	filter := url.QueryEscape(`{"label":["app=app-7"]}`)
	for _, call := range []struct{ what, path string }{
		{"list, limit=200", "/containers/json?limit=200"},
		{"list, a label", "/containers/json?filters=" + filter},
		{"list, status=exited", "/containers/json?all=1&filters=" + url.QueryEscape(`{"status":["exited"]}`)},
		{"images", "/images/json"},
		{"info", "/info"},
	} {
		rate, err := f.rate(ctx, s.span/4)
		if err != nil {
			return out, err
		}
		n, done := 0, profile(ctx, leader, s, call.what)
		used, took, err := f.measure(rate, func() error {
			for end := time.Now().Add(s.span / 2); n < 100 && (n == 0 || time.Now().Before(end)); n++ {
				if err := ask(ctx, leader.api, http.MethodGet, call.path, nil, nil); err != nil {
					return err
				}
			}
			return nil
		})
		if err = joined(done, err); err != nil {
			return out, err
		}
		out = append(out, result{call.what, f.size, fmt.Sprintf("cpu %s, took %s", short(used.each(n)[leader.name]), short(took/time.Duration(n))), "cpu < 20 ms"})
	}
	return out, nil
}

// commit measures what the leader pays for an entry that concerns no session.
func commit(ctx context.Context, f *fleet, s settings) ([]result, error) {
	leader, err := f.leader(ctx)
	if err != nil {
		return nil, err
	}
	rate, err := f.rate(ctx, s.span/2)
	if err != nil {
		return nil, err
	}
	n, done := 0, profile(ctx, leader, s, "commit")
	used, _, err := f.measure(rate, func() error {
		for end := time.Now().Add(s.span / 2); n == 0 || time.Now().Before(end); n++ {
			if err := ask(ctx, leader.api, http.MethodPost, fmt.Sprintf("/images/alpine/tag?repo=sim&tag=t%d", n), nil, nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err = joined(done, err); err != nil {
		return nil, err
	}
	each := used.each(n)
	return []result{{fmt.Sprintf("commit with %d sessions", f.nodes), f.size,
		fmt.Sprintf("cpu %s of the leader, %s of all", short(each[leader.name]), short(each.sum())), "the same with 10 and 10,000"}}, nil
}

// place measures single creates by concurrent callers.
func place(ctx context.Context, f *fleet, s settings) ([]result, error) {
	leader, err := f.leader(ctx)
	if err != nil {
		return nil, err
	}
	if err := pause(ctx, s.span/4); err != nil { // let the load of the start settle
		return nil, err
	}
	rate, err := f.rate(ctx, s.span/4)
	if err != nil {
		return nil, err
	}
	body := request("new", "sleep", "1000000")
	var mu sync.Mutex // guards took
	var took []time.Duration
	done := profile(ctx, leader, s, "place")
	used, wall, err := f.measure(rate, func() error {
		g, ctx := errgroup.WithContext(ctx)
		end := time.Now().Add(s.span)
		for range s.callers {
			g.Go(func() error {
				for time.Now().Before(end) {
					began := time.Now()
					if err := ask(ctx, leader.api, http.MethodPost, "/containers/create", body, nil); err != nil {
						return err
					}
					mu.Lock()
					took = append(took, time.Since(began))
					mu.Unlock()
				}
				return nil
			})
		}
		return g.Wait()
	})
	if err = joined(done, err); err != nil {
		return nil, err
	}
	slices.Sort(took)
	n := len(took)
	each := used.each(n)
	return []result{{"creates, " + fmt.Sprint(s.callers) + " callers", f.size, fmt.Sprintf("%.0f/s; cpu %s each (leader %s, agents %s); p50 %s, p99 %s", float64(n)/wall.Seconds(),
		short(each.sum()), short(each[leader.name]), short(each["agents"]), short(took[n/2]), short(took[n*99/100])), "3,000/s, then 10,000/s; 1.3x between sizes"}}, nil
}

// profile records a CPU profile of the leader until the returned function is called.
func profile(ctx context.Context, m *member, s settings, what string) (done func() error) {
	if s.profile == "" {
		return func() error { return nil }
	}
	file := filepath.Join(s.profile, fmt.Sprintf("%s-%d.pprof", url.PathEscape(what), time.Now().Unix()))
	g := &errgroup.Group{}
	g.Go(func() error {
		return fetch(ctx, m.dbg, fmt.Sprintf("/debug/pprof/profile?seconds=%d", max(1, int(s.span.Seconds()))), file)
	})
	return g.Wait
}

// fetch writes a response to a file.
func fetch(ctx context.Context, c *http.Client, path, file string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://sim"+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o600)
}

func joined(done func() error, err error) error {
	if e := done(); err == nil {
		return e
	}
	return err
}

// short formats a duration with three digits.
func short(d time.Duration) string {
	if d < 0 {
		return "-" + short(-d)
	}
	for unit := time.Second; unit > 1; unit /= 1000 {
		switch {
		case d >= 100*unit:
			return d.Round(unit).String()
		case d >= 10*unit:
			return d.Round(unit / 10).String()
		case d >= unit:
			return d.Round(unit / 100).String()
		}
	}
	return d.String()
}
