package dispatch

import (
	"context"
	"errors"
	"sync"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// frozenAfter is how late a tick may be before this process, rather than its nodes,
// is taken to have been frozen.
const frozenAfter = SuspectAfter / 2

// judge records in the log which nodes are silent, until ctx is done. A silent node
// is suspect, or down if it doesn't answer a probe either.
func (t *term) judge(ctx context.Context) {
	w := &watch{term: t, began: t.started, ticked: t.started, probes: newProbes(t.o.Probe), silent: map[string]time.Time{}}
	defer w.probes.all.Wait()
	found := make(chan []*dv1.Command, 1)
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() { w.run(ctx, found) }) // in its own goroutine: a proposal may take longer than a tick
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

// conclude proposes what was found out about nodes, in as many entries as it takes.
// What is refused is found again at the next tick.
func (t *term) conclude(ctx context.Context, c *dv1.Command) {
	c.Principal = t.o.Self
	for ctx.Err() == nil {
		left, err := t.tryConclude(ctx, c)
		if err != nil && ctx.Err() == nil {
			t.o.Logger.Warn("recording the liveness of nodes failed", "command", c, "err", err)
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
	case res.GetError() != nil && res.Error.Kind != dv1.Error_NOT_FOUND: // the node was removed meanwhile
		return 0, errors.New(res.Error.Message)
	}
	return int(res.GetLeft()), nil
}

// watch is one goroutine's record of which nodes are silent, and of their probes.
type watch struct {
	*term
	probes *probes
	began  time.Time            // start of all clocks: the term's, or the end of the last freeze
	ticked time.Time            // last time this process is known to have run
	silent map[string]time.Time // since when, for nodes that the view shows as silent
}

// run inspects all nodes at every tick until ctx is done. found holds only the
// latest result.
func (w *watch) run(ctx context.Context, found chan []*dv1.Command) {
	tick := time.NewTicker(BeatEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		commands := w.inspect(ctx)
		select {
		case <-found: // drop the previous result, which nobody has taken
		default:
		}
		if len(commands) > 0 {
			found <- commands
		}
	}
}

// inspect checks all nodes and returns the commands to propose.
func (w *watch) inspect(ctx context.Context) (found []*dv1.Command) {
	now, verdicts := w.now(), &dv1.SetLiveness{}
	silent := make(map[string]time.Time, len(w.silent))
	for n := range w.o.Log.Snapshot().Nodes() {
		at, heard := w.since(w.node(n.Id))
		isSilent := now.Sub(at) > SuspectAfter
		if isSilent {
			silent[n.Id] = at
		}
		if n.Availability == dv1.Node_REMOVING { // whoever began the removal may have crashed
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
	w.publish(silent)
	w.probes.ask(ctx, now, silent)
	return found
}

// now is the time that all verdicts are made at. A process that was frozen has heard
// from nobody, which is not the nodes' fault: all clocks restart.
func (w *watch) now() time.Time {
	now := w.o.Now()
	if now.Sub(w.ticked) > frozenAfter {
		w.began = now
	}
	w.ticked = now
	return now
}

// since returns from when a node's silence counts, and whether it was heard from at
// all since the clocks started. A nil node had no session in this term.
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

// verdict returns what a node's liveness should be. A node that was not heard from
// since the clocks started keeps its liveness until it has been silent for long
// enough.
func (w *watch) verdict(n *dv1.Node, silent, heard bool) dv1.Node_Liveness {
	answers, probed := w.probes.result(n.Id)
	switch {
	case silent && probed && !answers:
		return dv1.Node_DOWN
	case silent && (probed || n.Liveness != dv1.Node_DOWN): // down was a probe's verdict in an earlier term
		return dv1.Node_SUSPECT
	case !silent && heard:
		return dv1.Node_READY
	}
	return n.Liveness
}

// publish updates the silent nodes of the view.
func (w *watch) publish(silent map[string]time.Time) {
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
		n := w.node(id) // a node that enters after this starts as silent, and clears it
		if n == nil {
			continue
		}
		n.silent.Store(true)
		if again, _ := w.since(n); again.After(at) && n.silent.Swap(false) { // it was heard from meanwhile
			w.reported.clearSilent(id)
		}
	}
	w.silent = silent
}

// Each probe dials up to four nodes: those of a large fleet that is silent as a whole
// would take its leader's processors, also from the hellos that end the silence.
const (
	maxProbes  = 128              // at once
	probeAgain = time.Second      // from one probe of a node to its next, twice as long after each without an answer
	probeMost  = 30 * time.Second // between two probes: what comes back says hello
)

// probes tracks the probes of suspect nodes and their latest results.
type probes struct {
	of    func(ctx context.Context, nodeID string) bool
	slots chan struct{} // holds one for each probe in progress
	all   sync.WaitGroup

	mu    sync.Mutex // guards the field below and what it holds
	nodes map[string]*probed
}

// probed is the record of a silent node's probes.
type probed struct {
	asking  bool // one is in progress, or in line for its turn
	done    bool // one has ended
	answers bool // the last one that ended did
	pause   time.Duration
	next    time.Time
}

func newProbes(of func(ctx context.Context, nodeID string) bool) *probes {
	return &probes{of: of, slots: make(chan struct{}, maxProbes), nodes: map[string]*probed{}}
}

// ask starts a probe of each node whose next one is due, and forgets all others.
func (p *probes) ask(ctx context.Context, now time.Time, silent map[string]time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.nodes {
		if _, still := silent[id]; !still {
			delete(p.nodes, id)
		}
	}
	for id := range silent {
		n := p.nodes[id]
		if n == nil {
			n = &probed{}
			p.nodes[id] = n
		}
		if n.asking || now.Before(n.next) {
			continue
		}
		n.asking = true
		p.all.Go(func() {
			select {
			case p.slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			ok := p.of(ctx, id)
			<-p.slots
			p.mu.Lock()
			defer p.mu.Unlock()
			n.ended(now, ok)
		})
	}
}

// ended records the result of a probe that was begun at the given time.
func (n *probed) ended(began time.Time, answers bool) {
	n.asking, n.done, n.answers = false, true, answers
	n.pause = min(max(probeAgain, 2*n.pause), probeMost)
	if answers {
		n.pause = probeAgain
	}
	n.next = began.Add(n.pause)
}

func (p *probes) result(id string) (answers, done bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := p.nodes[id]; n != nil {
		return n.answers, n.done
	}
	return false, false
}
