package dispatch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Pauses before what the log did not take is proposed again.
const (
	retryAfter = 200 * time.Millisecond
	retryMax   = 5 * time.Second
)

// reports has at most one proposal in flight; what arrives meanwhile goes into
// the next. What fails stays pending and is retried, and after the session the
// agent's next inventory brings it again.
func (h *Hub) reports(ctx context.Context, s *session) {
	wait := retryAfter
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.report:
		}
		more, err := h.record(ctx, s)
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
		h.o.Logger.Warn("what a node reported was not recorded, trying again", "node", s.node, "after", wait, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
			wait = min(2*wait, retryMax)
			poke(s.report)
		}
	}
}

// record proposes what is pending; more says that there is more than one entry of it.
func (h *Hub) record(ctx context.Context, s *session) (more bool, err error) {
	h.mu.Lock()
	pending, removed := s.pending, s.removed
	s.pending, s.removed = map[string]*dv1.TaskReport{}, map[string]bool{}
	h.mu.Unlock()
	tasks, tombs := slices.Sorted(maps.Keys(pending)), slices.Sorted(maps.Keys(removed))
	r, a := &dv1.Report{NodeId: s.node}, &dv1.AckTombstones{NodeId: s.node}
	for _, id := range tasks {
		r.Tasks = append(r.Tasks, pending[id])
	}
	for _, id := range tombs {
		a.TaskIds = append(a.TaskIds, []byte(id))
	}
	tasks, rerr := h.propose(ctx, &dv1.Command{Principal: h.uri(s.node), Of: &dv1.Command_Report{Report: r}}, tasks)
	tombs, aerr := h.propose(ctx, &dv1.Command{Principal: h.uri(s.node), Of: &dv1.Command_AckTombstones{AckTombstones: a}}, tombs)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range tasks {
		if s.pending[id] == nil { // what came meanwhile is newer
			s.pending[id] = pending[id]
		}
	}
	for _, id := range tombs {
		s.removed[id] = true
	}
	return len(tasks)+len(tombs) > 0, errors.Join(rerr, aerr)
}

// propose has the log take what c says of ids, and gives those that it did not take.
func (h *Hub) propose(ctx context.Context, c *dv1.Command, ids []string) ([]string, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	res, err := h.o.Log.Propose(ctx, c)
	if err == nil && res.GetError() != nil {
		err = errors.New(res.Error.Message)
	}
	if err != nil {
		return ids, fmt.Errorf("%d tasks: %w", len(ids), err)
	}
	return ids[len(ids)-min(int(res.Left), len(ids)):], nil
}
