package consensus

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/failpoint"
	"github.com/drover/drover/pkg/pki"
)

const (
	// maxEntry bounds the size of an entry, so that it doesn't delay a follower's
	// heartbeats.
	maxEntry = 256 << 10
	// decideFor bounds how long further commands are added to an entry, so that the
	// first one doesn't wait for slow ones.
	decideFor = 10 * time.Millisecond
	// raftTimeout bounds how long an entry may wait to enter raft's queue.
	raftTimeout = 5 * time.Second
	// MaxKey bounds the bytes of an idempotency key: each one is kept for a while.
	MaxKey = 256
)

type answer struct {
	result *dv1.CommandResult
	err    error
}

type pending struct {
	cmd  *dv1.Command
	hash []byte
	out  chan answer // buffered: the proposer never waits for a caller
}

func (p *pending) answer(r *dv1.CommandResult, err error) { p.out <- answer{r, err} }

// Propose has c decided and returns once its entry is applied here. A refusal is
// Result.Error. ErrNotLeader means that nothing happened, ErrRetry that the outcome
// is unknown: retry with the same key.
func (n *Node) Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	if !n.IsLeader() {
		return nil, ErrNotLeader
	}
	p := &pending{cmd: c, hash: c.Hash, out: make(chan answer, 1)}
	if len(c.Key) > MaxKey {
		return &dv1.CommandResult{Error: &dv1.Error{Kind: dv1.Error_INVALID, Message: fmt.Sprintf("the idempotency key has %d bytes, more than the %d allowed", len(c.Key), MaxKey)}}, nil
	}
	if c.Key != "" && len(p.hash) == 0 {
		same := proto.CloneOf(c)
		same.Principal, same.Traceparent = pki.Account(c.Principal), ""
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(same)
		if err != nil {
			return nil, fmt.Errorf("hashing a command: %w", err)
		}
		h := sha256.Sum256(b)
		p.hash = h[:]
	}
	queue := n.requests
	if reported(c) {
		queue = n.reports
	}
	select {
	case queue <- p:
	case <-n.ended:
		return nil, n.stopErr()
	case <-n.stopped:
		return nil, raft.ErrRaftShutdown
	case <-ctx.Done():
		return nil, fmt.Errorf("queueing a command: %w", ctx.Err())
	}
	select {
	case a := <-p.out:
		return a.result, a.err
	case <-n.ended:
		select {
		case a := <-p.out: // Run answers what it took before it returns
			return a.result, a.err
		default:
			return nil, n.stopErr()
		}
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for a command's commit: %w", ctx.Err())
	}
}

// reported reports whether a command is what the fleet found out about itself. These
// have a queue of their own, so that exits and liveness don't wait for user
// requests.
func reported(c *dv1.Command) bool {
	switch c.GetOf().(type) {
	case *dv1.Command_Report, *dv1.Command_AckTombstones, *dv1.Command_SetLiveness, *dv1.Command_RegisterNode:
		return true
	}
	return false
}

// next returns the next command to decide, alternating between the queues, or nil.
func (n *Node) next() *pending {
	n.turn = !n.turn
	first, second := n.requests, n.reports
	if n.turn {
		first, second = second, first
	}
	for _, q := range []chan *pending{first, second} {
		select {
		case p := <-q:
			return p
		default:
		}
	}
	return nil
}

// stopErr returns why a member whose proposer has returned does nothing.
func (n *Node) stopErr() error {
	if err := n.fsm.store.Fatal(); err != nil {
		return err
	}
	return ErrNotLeader
}

// Run is the proposer: it decides commands while this member leads, and refuses
// queued ones while it does not. It returns when ctx is done, or with the error of
// the entry that halted this member. Call it once.
func (n *Node) Run(ctx context.Context) error {
	defer close(n.ended)
	defer n.ready.Store(0)
	leader := n.IsLeader()
	notify(n.fsm.timing) // what the file said may be outdated
	for {
		if leader {
			if err := n.leadOnce(ctx, &leader); err != nil {
				return err
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.fsm.halted:
			return n.fsm.store.Fatal()
		case <-n.stopped:
			return nil
		case leader = <-n.lead:
		case <-n.fsm.timing:
			if err := n.retime(); err != nil {
				return err
			}
		case p := <-n.requests:
			p.answer(nil, ErrNotLeader)
		case p := <-n.reports:
			p.answer(nil, ErrNotLeader)
		}
	}
}

// leadOnce decides batches from one Barrier to the first failure, after which it must be
// called again, for another Barrier. It clears leader when raft does.
func (n *Node) leadOnce(ctx context.Context, leader *bool) error {
	n.ready.Store(0)
	term := n.Term() // before the barrier, which is for this term or a later one
	if err := n.Raft().Barrier(raftTimeout).Error(); err != nil {
		n.o.Logger.Info("not leading: the barrier failed", "err", err)
		*leader = false
		if errors.Is(err, raft.ErrEnqueueTimeout) || n.IsLeader() {
			*leader = n.IsLeader() // still elected: retry
		}
		return nil
	}
	// The barrier is not an entry of the state's. Until the term ends, only this member
	// moves its commit index.
	if commit := n.Raft().CommitIndex(); n.Term() == term {
		n.pipelines.committed(commit, term)
	}
	n.ready.Store(term)
	n.stamped = time.Now()
	n.announce() // Ready has changed
	defer func() {
		n.ready.Store(0)
		n.announce()
	}()
	var last decided
	for {
		var p *pending
		select {
		case <-ctx.Done():
			*leader = false // Run sees why itself
			return nil
		case <-n.fsm.halted:
			return n.fsm.store.Fatal()
		case <-n.stopped:
			*leader = false
			return nil
		case *leader = <-n.lead:
			// Start over even if true: a false in between may have been missed.
			return nil
		case <-n.fsm.timing:
			if err := n.retime(); err != nil {
				return err
			}
			if !n.IsLeader() {
				*leader = false
				return nil
			}
		case p = <-n.reports:
		case p = <-n.requests:
		}
		if p != nil && !n.propose(n.fsm.store.Snapshot(), p, &last) {
			*leader = n.IsLeader()
			return nil
		}
	}
}

// decided is what an entry leaves for the next one, which is decided on top of it.
type decided struct {
	index uint64         // of the state that it made; 0 if none
	batch *command.Batch // its view is equal to that state
}

// batch is the content of one entry, and those who wait for it.
type batch struct {
	base    *state.Snapshot
	view    *state.Txn
	decider *command.Batch // on view
	entry   *dv1.Entry
	size    int
	waiting []waiting
}

type waiting struct {
	p      *pending
	result *dv1.CommandResult
	err    error
}

// MaxAhead is how far a leader's clock may be ahead of the state's time without
// confirmation by others: the state's time is never set back.
const MaxAhead = time.Hour

// stamp returns the time of the next entry. Under a clock that isn't trusted, the
// state's time advances with the time that passes.
func (n *Node) stamp(last int64) int64 {
	now, passed := n.o.Clock().UnixNano(), time.Since(n.stamped)
	n.stamped = time.Now()
	if last != 0 && now-last > int64(MaxAhead) && n.o.Believe != nil && !n.o.Believe() {
		now = last + int64(passed)
	}
	return max(now, last)
}

// propose decides first and whatever else is queued, commits it as one entry and
// answers. It returns false if leadership or the base is in doubt: wait for another
// Barrier.
func (n *Node) propose(s *state.Snapshot, first *pending, last *decided) bool {
	now := n.stamp(s.Time())
	b := &batch{base: s, entry: &dv1.Entry{
		Format: state.Format, Type: state.EntryEffects, MinVersion: s.Level(), Base: s.Index(), Time: now,
	}}
	if b.begin(); last.index != 0 && last.index == s.Index() {
		b.decider = last.batch
		b.decider.On(b.view)
	}
	began := time.Now()
	for p := first; p != nil; {
		b.decide(p, now, n.o.Logger)
		p = nil
		if b.size < maxEntry/2 && len(b.waiting) < 4096 && time.Since(began) < decideFor {
			p = n.next()
		}
	}
	index, err := n.commit(b)
	*last = decided{}
	if err == nil {
		*last = decided{index, b.decider}
	}
	for _, w := range b.waiting {
		switch {
		case err != nil:
			w.p.answer(nil, err)
		case w.err != nil:
			w.p.answer(nil, w.err)
		default:
			w.p.answer(w.result, nil)
		}
	}
	return err == nil
}

// begin creates the view that the batch is decided on.
func (b *batch) begin() {
	b.view = state.NewTxn(b.base)
	b.decider = command.NewBatch(b.view)
}

// decide adds a command to the batch. If deciding it panics, the command is refused
// and the panic logged: it must not crash this leader, and the next one when it is
// retried there.
func (b *batch) decide(p *pending, now int64, log *slog.Logger) {
	defer func() {
		if r := recover(); r != nil {
			log.Error("deciding a command panicked", "command", fmt.Sprintf("%T", p.cmd.GetOf()), "panic", r, "stack", string(debug.Stack()))
			b.waiting = append(b.waiting, waiting{p: p, err: fmt.Errorf("deciding this request hit a bug, see the controllers' log: %v", r)})
			b.rebuild()
		}
	}()
	b.take(p, now)
}

func (b *batch) take(p *pending, now int64) {
	key := p.cmd.Key
	if key != "" {
		if r := b.view.Result(key); r != nil {
			w := waiting{p: p, result: r.Result}
			if !bytes.Equal(r.Hash, p.hash) {
				w = waiting{p: p, err: ErrKeyReused}
			}
			b.waiting = append(b.waiting, w)
			return
		}
	}
	effects, result := b.decider.Decide(p.cmd, now)
	if result.Error != nil {
		b.waiting = append(b.waiting, waiting{p: p, result: result})
		return
	}
	var kept *dv1.KeyResult
	size := 0
	if key != "" {
		kept = &dv1.KeyResult{Key: key, Hash: p.hash, Result: result, At: now}
		effects = append(effects, command.Evict(b.view.View(), now)...)
		size += proto.Size(kept)
	}
	for _, e := range effects {
		size += proto.Size(e) + 8
	}
	if size > maxEntry/2 {
		b.waiting = append(b.waiting, waiting{p: p, result: &dv1.CommandResult{Error: &dv1.Error{
			Kind: dv1.Error_INVALID, Message: fmt.Sprintf("the request needs %d bytes of the replicated log, more than the %d allowed", size, maxEntry/2),
		}}})
		return
	}
	if err := b.decider.Apply(effects...); err != nil {
		// The decision has effects that applying refuses: keep it out of the log, where it
		// would halt every member.
		b.waiting = append(b.waiting, waiting{p: p, err: fmt.Errorf("deciding a command: %w", err)})
		b.rebuild()
		return
	}
	b.entry.Effects = append(b.entry.Effects, effects...)
	if kept != nil {
		b.view.PutResult(kept)
		b.entry.Results = append(b.entry.Results, kept)
	}
	b.size += size
	b.waiting = append(b.waiting, waiting{p: p, result: result})
}

// rebuild creates the view anew, for a failed Apply may have been partial.
func (b *batch) rebuild() {
	b.begin()
	if err := b.view.Apply(b.entry.Effects...); err != nil {
		panic(fmt.Sprintf("effects that were applied once can't be reapplied: %v", err))
	}
	for _, r := range b.entry.Results {
		b.view.PutResult(r)
	}
}

// commit waits until the entry is applied here and sets the index of the answers. It
// returns the index of the state that the batch made.
func (n *Node) commit(b *batch) (uint64, error) {
	if len(b.entry.Effects) == 0 && len(b.entry.Results) == 0 {
		// There is nothing to log, but a deposed leader must not answer from an outdated
		// state.
		if err := n.verifyLeader(); err != nil {
			return 0, fmt.Errorf("%w: %w", ErrNotLeader, err)
		}
		b.number(b.entry.Base)
		return b.entry.Base, nil
	}
	data, err := proto.Marshal(b.entry)
	if err != nil {
		return 0, fmt.Errorf("encoding a log entry: %w", err)
	}
	failpoint.Here("controller.propose.before")
	f := n.Raft().Apply(data, raftTimeout)
	if err := f.Error(); err != nil {
		if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrEnqueueTimeout) {
			return 0, fmt.Errorf("%w: %w", ErrNotLeader, err)
		}
		return 0, fmt.Errorf("%w: %w", ErrRetry, err)
	}
	if err, _ := f.Response().(error); err != nil {
		if errors.Is(err, state.ErrBase) {
			return 0, fmt.Errorf("%w: %w", ErrRetry, err)
		}
		return 0, err
	}
	failpoint.Here("controller.propose.after")
	b.number(f.Index())
	return f.Index(), nil
}

// number sets the index of this batch's answers; those of earlier entries have
// theirs, and other goroutines may be reading them.
func (b *batch) number(index uint64) {
	for _, w := range b.waiting {
		if w.result != nil && w.result.Index == 0 {
			w.result.Index = index
		}
	}
}
