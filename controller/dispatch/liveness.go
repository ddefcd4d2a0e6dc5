package dispatch

import (
	"context"
	"errors"
	"sync"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// frozenAfter is how late a tick may come before this process, and not its nodes,
// counts as what was away.
const frozenAfter = SuspectAfter / 2

// clocks say since when nodes could have been heard.
type clocks struct {
	began  time.Time // of the term, or of the last time that this process was frozen
	ticked time.Time // last time that this process was seen to run
}

// now is what all verdicts are made at, with mu held. Who was frozen has heard
// nobody, and calls nobody silent for it: all clocks begin anew.
func (h *Hub) now() time.Time {
	now := h.o.Now()
	if now.Sub(h.clocks.ticked) > frozenAfter {
		h.clocks.began = now
	}
	h.clocks.ticked = now
	return now
}

// since is when a node was heard last, as its silence counts, with mu held.
func (h *Hub) since(id string) time.Time {
	at := h.clocks.began
	if n := h.nodes[id]; n != nil {
		for _, t := range []time.Time{n.heard, n.spared} {
			if t.After(at) {
				at = t
			}
		}
	}
	return at
}

// Silent gives the nodes that are not heard, and since when (Unix ns).
func (h *Hub) Silent() map[string]int64 {
	out := map[string]int64{}
	snap := h.o.Log.Snapshot()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.leads {
		return out // who does not lead hears nobody
	}
	now := h.now()
	for n := range snap.Nodes() {
		if at := h.since(n.Id); now.Sub(at) > SuspectAfter {
			out[n.Id] = at.UnixNano()
		}
	}
	return out
}

// verdict is what a node's liveness should be. A node that was not heard since the
// clocks began stays what it is until it is silent for long enough.
func (h *Hub) verdict(n *dv1.Node, probed, answers bool) dv1.Node_Liveness {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	switch {
	case now.Sub(h.since(n.Id)) > SuspectAfter:
		if probed && !answers {
			return dv1.Node_DOWN
		}
		if probed || n.Liveness != dv1.Node_DOWN { // down is what a probe said, in a former term
			return dv1.Node_SUSPECT
		}
	case h.nodes[n.Id] != nil && h.nodes[n.Id].heard.After(h.clocks.began):
		return dv1.Node_READY
	}
	return n.Liveness
}

// probes are what suspects were asked, and what they said last.
type probes struct {
	of  func(ctx context.Context, nodeID string) bool
	all sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	asking  map[string]bool
	answers map[string]bool
}

func (p *probes) ask(ctx context.Context, id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asking[id] {
		return
	}
	p.asking[id] = true
	p.all.Go(func() {
		ok := p.of(ctx, id)
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.asking, id)
		p.answers[id] = ok
	})
}

func (p *probes) said(id string) (answers, probed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	answers, probed = p.answers[id]
	return answers, probed
}

func (p *probes) forget(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.answers, id)
}

// judge has the log keep which nodes are silent, until ctx ends. A silent node is
// suspect; one that answers no probe either is down.
func (h *Hub) judge(ctx context.Context) {
	p := &probes{of: h.o.Probe, asking: map[string]bool{}, answers: map[string]bool{}}
	defer p.all.Wait()
	var ticking sync.WaitGroup
	defer ticking.Wait()
	ticking.Go(func() { h.tick(ctx) }) // a proposal may take longer than a tick
	t := time.NewTicker(BeatEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		silent := h.Silent()
		for n := range h.o.Log.Snapshot().Nodes() {
			if ctx.Err() != nil {
				return
			}
			if n.Availability == dv1.Node_REMOVING { // who began that may be gone
				h.decide(ctx, n, &dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: n.Id}}})
				continue
			}
			answers, probed := p.said(n.Id)
			if want := h.verdict(n, probed, answers); want != n.Liveness {
				h.decide(ctx, n, &dv1.Command{Of: &dv1.Command_SetLiveness{SetLiveness: &dv1.SetLiveness{NodeId: n.Id, Liveness: want}}})
			}
			if _, is := silent[n.Id]; is {
				p.ask(ctx, n.Id)
			} else {
				p.forget(n.Id)
			}
		}
	}
}

// tick keeps the clocks from restarting while this process runs.
func (h *Hub) tick(ctx context.Context) {
	t := time.NewTicker(BeatEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		h.mu.Lock()
		h.now()
		h.mu.Unlock()
	}
}

// decide proposes what was found out about a node.
func (h *Hub) decide(ctx context.Context, n *dv1.Node, c *dv1.Command) {
	pctx, cancel := context.WithTimeout(ctx, SuspectAfter)
	defer cancel()
	c.Principal = h.o.Self
	res, err := h.o.Log.Propose(pctx, c)
	if err == nil && res.GetError() != nil && res.Error.Kind != dv1.Error_NOT_FOUND { // it was removed meanwhile
		err = errors.New(res.Error.Message)
	}
	if err != nil && ctx.Err() == nil {
		h.o.Logger.Warn("what was found out about a node was not recorded", "node", n.Name, "command", c, "err", err)
	}
}
