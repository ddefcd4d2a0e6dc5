package controller

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// leadership is what a member knows of its own leadership.
type leadership interface {
	Ready() bool // it leads, and has everything that was committed before its term
	Term() uint64
	LeadershipChanged() <-chan struct{} // closed when any of these may have changed
}

// lead runs the leader's parts, for each term under a context that ends with the
// term, and waits for all of them before the next term. It returns when ctx is done,
// or with the first error of a part during its term.
//
// Its parts are listed in one place, the call. What every controller does, leader or
// not, is not among them: announcing its own address (the leader dials the old one,
// so it can't know), finding out that it was removed (asked when there is no
// leader), its host's admin files, its connections. These propose through the
// leader.
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
			return nil // errors after the end of the term don't count
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
