package controller

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// leadership is what a member knows of its own.
type leadership interface {
	Ready() bool // it leads, and has all that was committed before its term
	Term() uint64
	LeadershipChanged() <-chan struct{} // closed when one of these may have changed
}

// lead runs what only the leader does: all of it for each term under one context
// that ends with the term, and all of it has ended before it runs for another. It
// returns when ctx ends, or with the first error of a part while its term lasts.
//
// Its parts are listed in one place, where it is called. What every controller does,
// whoever leads, is not among them: its own address (the leader dials the old one, and
// so can't know), whether it was removed (asked where there is no leader), the admin's
// files of its own host, its connections. Those propose through whoever leads.
func lead(ctx context.Context, l leadership, parts ...func(context.Context) error) error {
	for ctx.Err() == nil {
		changed, term := l.LeadershipChanged(), l.Term()
		if l.Ready() {
			if err := leadOnce(ctx, l, term, parts); err != nil {
				return fmt.Errorf("leading term %d: %w", term, err)
			}
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	return nil
}

func leadOnce(ctx context.Context, l leadership, term uint64, parts []func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for _, part := range parts {
		g.Go(func() error {
			if err := part(ctx); ctx.Err() == nil {
				return err
			}
			return nil // a term that ends is no failure of what it ended
		})
	}
	for ctx.Err() == nil {
		changed := l.LeadershipChanged()
		if !l.Ready() || l.Term() != term {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	cancel()
	return g.Wait()
}
