package dispatch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

// Backoff before a failed proposal is retried.
const (
	retryAfter = 200 * time.Millisecond
	retryMax   = 5 * time.Second
)

// report has at most one proposal in flight; whatever arrives meanwhile goes into
// the next one. What fails stays pending and is retried; if the session ends first,
// the agent's next inventory reports it again.
func (t *term) report(ctx context.Context, s *session) {
	wait := retryAfter
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.report:
		}
		more, err := t.record(ctx, s)
		if err == nil {
			wait = retryAfter
			if more {
				notify(s.report)
			}
			continue
		}
		if ctx.Err() != nil {
			return
		}
		t.o.Logger.Warn("recording a node's reports failed, retrying", "node", s.node, "after", wait, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
			wait = min(2*wait, retryMax)
			notify(s.report)
		}
	}
}

// record proposes what is pending; more reports that it didn't fit into one entry.
func (t *term) record(ctx context.Context, s *session) (more bool, err error) {
	pending, removed, left := s.takePending()
	tasks, tombs, ends := slices.Sorted(maps.Keys(pending)), slices.Sorted(maps.Keys(removed)), slices.Sorted(maps.Keys(left))
	r, a, l := &dv1.Report{NodeId: s.node}, &dv1.AckTombstones{NodeId: s.node}, &dv1.LeftNetworks{NodeId: s.node}
	for _, id := range tasks {
		r.Tasks = append(r.Tasks, pending[id])
	}
	for _, id := range tombs {
		a.TaskIds = append(a.TaskIds, []byte(id))
	}
	for _, key := range ends {
		task, network := split([]byte(key))
		l.TaskIds, l.NetworkIds = append(l.TaskIds, task), append(l.NetworkIds, network)
	}
	by := nodeURI(t.o.Log, s.node)
	tasksLeft, rerr := t.propose(ctx, &dv1.Command{Principal: by, Of: &dv1.Command_Report{Report: r}}, tasks)
	tombsLeft, aerr := t.propose(ctx, &dv1.Command{Principal: by, Of: &dv1.Command_AckTombstones{AckTombstones: a}}, tombs)
	endsLeft, lerr := t.propose(ctx, &dv1.Command{Principal: by, Of: &dv1.Command_LeftNetworks{LeftNetworks: l}}, ends)
	if done := tombs[:len(tombs)-len(tombsLeft)]; len(done) > 0 {
		t.forget(s.of, done) // the agent is done with these tasks: drop their statuses
	}
	s.putBack(pending, tasksLeft, tombsLeft, endsLeft)
	return len(tasksLeft)+len(tombsLeft)+len(endsLeft) > 0, errors.Join(rerr, aerr, lerr)
}

// propose proposes c, which concerns ids, and returns the ids that were not
// accepted.
func (t *term) propose(ctx context.Context, c *dv1.Command, ids []string) ([]string, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	res, err := t.o.Log.Propose(ctx, c)
	if err == nil && res.GetError() != nil {
		err = errors.New(res.Error.Message)
	}
	if err != nil {
		return ids, fmt.Errorf("%d tasks: %w", len(ids), err)
	}
	return ids[len(ids)-min(int(res.Left), len(ids)):], nil
}

// nodeURI returns the principal of a node's reports. The session's certificate has
// proved it.
func nodeURI(log Log, node string) string {
	return pki.URI(log.Snapshot().Cluster().GetId(), pki.KindNode, node)
}
