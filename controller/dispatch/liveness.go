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

// judge has the log keep which nodes are silent, until ctx ends. A silent node is
// suspect; one that answers no probe either is down.
func (t *term) judge(ctx context.Context) {
	w := &watch{term: t, began: t.started, ticked: t.started, probes: probes{of: t.o.Probe, asking: map[string]bool{}, answers: map[string]bool{}}, silent: map[string]time.Time{}}
	defer w.probes.all.Wait()
	found := make(chan []*dv1.Command, 1)
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() { w.run(ctx, found) }) // by itself: a proposal may take longer than a tick
	for {
		select {
		case <-ctx.Done():
			return
		case commands := <-found:
			for _, c := range commands {
				t.conclude(ctx, c)
			}
		}
	}
}

// conclude has the log take what was found out about nodes, in as many entries as that
// needs. What it refuses is found again at the next look.
func (t *term) conclude(ctx context.Context, c *dv1.Command) {
	c.Principal = t.o.Self
	for ctx.Err() == nil {
		left, err := t.tryConclude(ctx, c)
		if err != nil && ctx.Err() == nil {
			t.o.Logger.Warn("what was found out about nodes was not recorded", "command", c, "err", err)
		}
		verdicts := c.GetSetLiveness().GetNodes()
		if err != nil || left == 0 || left >= len(verdicts) {
			return
		}
		c = &dv1.Command{Principal: t.o.Self, Of: &dv1.Command_SetLiveness{SetLiveness: &dv1.SetLiveness{Nodes: verdicts[len(verdicts)-left:]}}}
	}
}

func (t *term) tryConclude(ctx context.Context, c *dv1.Command) (left int, err error) {
	ctx, cancel := context.WithTimeout(ctx, SuspectAfter)
	defer cancel()
	res, err := t.o.Log.Propose(ctx, c)
	switch {
	case err != nil:
		return 0, err
	case res.GetError() != nil && res.Error.Kind != dv1.Error_NOT_FOUND: // that one was removed meanwhile
		return 0, errors.New(res.Error.Message)
	}
	return int(res.GetLeft()), nil
}

// watch is what one goroutine knows of all nodes' silence, and what suspects answered.
type watch struct {
	*term
	probes probes
	began  time.Time            // of the clocks: with the term, or when this process was last frozen
	ticked time.Time            // last time that this process was seen to run
	silent map[string]time.Time // since when, of those that the view has as silent
}

// run looks at all nodes until ctx ends, and leaves in found what it found last.
func (w *watch) run(ctx context.Context, found chan []*dv1.Command) {
	tick := time.NewTicker(BeatEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		commands := w.look(ctx)
		select {
		case <-found: // of the last look, and not taken yet
		default:
		}
		if len(commands) > 0 {
			found <- commands
		}
	}
}

// look goes over all nodes and returns what the log must take of what it finds.
func (w *watch) look(ctx context.Context) (found []*dv1.Command) {
	now, verdicts := w.now(), &dv1.SetLiveness{}
	silent := make(map[string]time.Time, len(w.silent))
	for n := range w.o.Log.Snapshot().Nodes() {
		at, heard := w.since(w.node(n.Id))
		isSilent := now.Sub(at) > SuspectAfter
		if isSilent {
			silent[n.Id] = at
		}
		if n.Availability == dv1.Node_REMOVING { // who began that may be gone
			found = append(found, &dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: n.Id}}})
			continue
		}
		if want := w.verdict(n, isSilent, heard); want != n.Liveness {
			verdicts.Nodes = append(verdicts.Nodes, &dv1.Verdict{NodeId: n.Id, Liveness: want})
		}
	}
	if len(verdicts.Nodes) > 0 {
		found = append(found, &dv1.Command{Of: &dv1.Command_SetLiveness{SetLiveness: verdicts}})
	}
	w.show(silent)
	w.probes.ask(ctx, silent)
	return found
}

// now is what all verdicts are made at. Who was frozen has heard nobody, and calls
// nobody silent for it: all clocks begin anew.
func (w *watch) now() time.Time {
	now := w.o.Now()
	if now.Sub(w.ticked) > frozenAfter {
		w.began = now
	}
	w.ticked = now
	return now
}

// since is when a node was heard last, as its silence counts, and whether it was heard
// at all since the clocks began. Nil is a node that had no session in this term.
func (w *watch) since(n *node) (at time.Time, heard bool) {
	if n == nil {
		return w.began, false
	}
	last := w.started.Add(time.Duration(n.heard.Load()))
	spared := w.started.Add(time.Duration(n.spared.Load()))
	return latest(w.began, last, spared), last.After(w.began)
}

func latest(at time.Time, others ...time.Time) time.Time {
	for _, t := range others {
		if t.After(at) {
			at = t
		}
	}
	return at
}

// verdict is what a node's liveness should be. A node that was not heard since the
// clocks began stays what it is until it is silent for long enough.
func (w *watch) verdict(n *dv1.Node, silent, heard bool) dv1.Node_Liveness {
	answers, probed := w.probes.result(n.Id)
	switch {
	case silent && probed && !answers:
		return dv1.Node_DOWN
	case silent && (probed || n.Liveness != dv1.Node_DOWN): // down is what a probe said, in a former term
		return dv1.Node_SUSPECT
	case !silent && heard:
		return dv1.Node_READY
	}
	return n.Liveness
}

// show brings the view's silent nodes up to date.
func (w *watch) show(silent map[string]time.Time) {
	for id := range w.silent {
		if _, still := silent[id]; !still {
			w.reported.clearSilent(id)
		}
	}
	for id, at := range silent {
		if was, ok := w.silent[id]; ok && was.Equal(at) {
			continue
		}
		w.reported.markSilent(id, at.UnixNano())
		n := w.node(id) // who enters after this is taken for silent, and clears it
		if n == nil {
			continue
		}
		n.silent.Store(true)
		if again, _ := w.since(n); again.After(at) && n.silent.Swap(false) { // it was heard meanwhile
			w.reported.clearSilent(id)
		}
	}
	w.silent = silent
}

// probes are what suspects were asked, and what they answered last.
type probes struct {
	of  func(ctx context.Context, nodeID string) bool
	all sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	asking  map[string]bool
	answers map[string]bool
}

// ask probes each of nodes that is not being probed, and forgets what others answered.
func (p *probes) ask(ctx context.Context, nodes map[string]time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.answers {
		if _, ok := nodes[id]; !ok {
			delete(p.answers, id)
		}
	}
	for id := range nodes {
		if p.asking[id] {
			continue
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
}

func (p *probes) result(id string) (answers, probed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	answers, probed = p.answers[id]
	return answers, probed
}
