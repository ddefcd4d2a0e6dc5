package main

import (
	"context"
	"fmt"
	"time"
)

// hello measures the leader's death: all nodes say hello to the next one. What sessions
// cost that are open, beats above all, is taken off: as much as at the end, for as long as
// each was open. Handshakes with the nodes of the dead controller are in it.
func hello(ctx context.Context, f *fleet, s settings) ([]result, error) {
	old, err := f.leader(ctx)
	if err != nil {
		return nil, err
	}
	before, err := f.usage()
	if err != nil {
		return nil, err
	}
	died := time.Now()
	old.proc.kill()
	old.proc = nil
	leader, err := f.leader(ctx)
	if err != nil {
		return nil, err
	}
	done := profile(ctx, leader, s, "hello")
	held, err := f.settle(ctx, died)
	if err != nil {
		return nil, joined(done, err)
	}
	took := time.Since(died)
	after, err := f.usage()
	if err = joined(done, err); err != nil {
		return nil, err
	}
	rate, err := f.rate(ctx, s.span/2)
	if err != nil {
		return nil, err
	}
	all := after[leader.name] - before[leader.name]
	open := time.Duration(held.Seconds() / float64(f.nodes) * float64(rate[leader.name]))
	return []result{{fmt.Sprintf("hellos of %d nodes", f.nodes), f.size,
		fmt.Sprintf("cpu %s of the new leader, and %s of open sessions; all back after %s", short(all-open), short(open), short(took)), "cpu < 0.5 s"}}, nil
}
