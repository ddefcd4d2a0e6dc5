package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// perSecond is how many creates and removes of churn there are, as many of the one as of
// the other.
const perSecond = 1000

// churn measures how long lists take while containers come and go, beside how long they
// take when nobody else asks: what a list waits for is what it takes longer.
func churn(ctx context.Context, f *fleet, s settings) ([]result, error) {
	leader, err := f.leader(ctx)
	if err != nil {
		return nil, err
	}
	alone, err := lists(ctx, leader, s.span/4)
	if err != nil {
		return nil, err
	}
	done := profile(ctx, leader, s, "churn")
	busy, cancel := context.WithTimeout(ctx, s.span)
	defer cancel()
	g, gctx := errgroup.WithContext(ctx)
	began := time.Now()
	came := 0
	g.Go(func() (err error) {
		came, err = comeAndGo(gctx, busy.Done(), leader, s.callers)
		return err
	})
	var beside []time.Duration
	g.Go(func() (err error) {
		beside, err = lists(gctx, leader, s.span)
		return err
	})
	err = g.Wait()
	wall := time.Since(began)
	if err = joined(done, err); err != nil {
		return nil, err
	}
	return []result{{fmt.Sprintf("list, limit=200, beside %d creates and removes/s", perSecond), f.size,
		fmt.Sprintf("%s; alone %s; %.0f/s done", quantiles(beside), quantiles(alone), 2*float64(came)/wall.Seconds()), "waits < 5 ms"}}, nil
}

// comeAndGo creates and removes containers at a fixed pace until over is closed, and
// returns how many. What callers cannot keep up with is left out.
func comeAndGo(ctx context.Context, over <-chan struct{}, m *member, callers int) (n int, err error) {
	const every = 10 * time.Millisecond
	pace := time.NewTicker(every)
	defer pace.Stop()
	body := request("churn", "sleep", "1000000")
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(callers)
	for {
		select {
		case <-pace.C:
		case <-over:
			return n, g.Wait()
		case <-ctx.Done():
			return n, g.Wait()
		}
		for range int(perSecond / 2 * every / time.Second) {
			if g.TryGo(func() error {
				var made struct{ ID string }
				if err := ask(ctx, m.api, http.MethodPost, "/containers/create", body, &made); err != nil {
					return err
				}
				return ask(ctx, m.api, http.MethodDelete, "/containers/"+made.ID+"?force=1", nil, nil)
			}) {
				n++
			}
		}
	}
}

// lists lists the newest 200 containers, fifty times a second, and returns how long each
// took.
func lists(ctx context.Context, m *member, d time.Duration) (took []time.Duration, err error) {
	pace := time.NewTicker(20 * time.Millisecond)
	defer pace.Stop()
	for end := time.Now().Add(d); len(took) == 0 || time.Now().Before(end); {
		select {
		case <-pace.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		began := time.Now()
		if err := ask(ctx, m.api, http.MethodGet, "/containers/json?limit=200", nil, nil); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}

// quantiles formats the median, the 99th percentile and the maximum.
func quantiles(d []time.Duration) string {
	slices.Sort(d)
	return fmt.Sprintf("p50 %s, p99 %s, max %s", short(d[len(d)/2]), short(d[len(d)*99/100]), short(d[len(d)-1]))
}
