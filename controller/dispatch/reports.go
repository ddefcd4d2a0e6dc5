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

// Pauses before what the log did not take is proposed again.
const (
	retryAfter = 200 * time.Millisecond
	retryMax   = 5 * time.Second
)

// report has at most one proposal in flight; what arrives meanwhile goes into
// the next. What fails stays pending and is retried, and after the session the
// agent's next inventory brings it again.
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
				poke(s.report)
			}
			continue
		}
		if ctx.Err() != nil {
			return
		}
		t.o.Logger.Warn("what a node reported was not recorded, trying again", "node", s.node, "after", wait, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
			wait = min(2*wait, retryMax)
			poke(s.report)
		}
	}
}

// record proposes what is pending; more says that there is more than one entry of it.
func (t *term) record(ctx context.Context, s *session) (more bool, err error) {
	pending, removed := s.takePending()
	tasks, tombs := slices.Sorted(maps.Keys(pending)), slices.Sorted(maps.Keys(removed))
	r, a := &dv1.Report{NodeId: s.node}, &dv1.AckTombstones{NodeId: s.node}
	for _, id := range tasks {
		r.Tasks = append(r.Tasks, pending[id])
	}
	for _, id := range tombs {
		a.TaskIds = append(a.TaskIds, []byte(id))
	}
	by := nodeURI(t.o.Log, s.node)
	tasksLeft, rerr := t.propose(ctx, &dv1.Command{Principal: by, Of: &dv1.Command_Report{Report: r}}, tasks)
	tombsLeft, aerr := t.propose(ctx, &dv1.Command{Principal: by, Of: &dv1.Command_AckTombstones{AckTombstones: a}}, tombs)
	if done := tombs[:len(tombs)-len(tombsLeft)]; len(done) > 0 {
		t.forget(s.of, done) // the agent is done with these tasks: so is what was seen of them
	}
	s.putBack(pending, tasksLeft, tombsLeft)
	return len(tasksLeft)+len(tombsLeft) > 0, errors.Join(rerr, aerr)
}

// propose has the log take what c says of ids, and returns those that it did not take.
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

// nodeURI is in whose name a session's node reports: its certificate was of that node.
func nodeURI(log Log, node string) string {
	return pki.URI(log.Snapshot().Cluster().GetId(), pki.KindNode, node)
}
