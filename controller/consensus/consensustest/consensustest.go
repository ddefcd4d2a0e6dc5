// Package consensustest has a log of one member that always leads, without raft, for
// tests of proposers.
package consensustest

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Log decides and applies commands as consensus does. It is safe for concurrent use.
type Log struct {
	store *state.Store

	mu     sync.Mutex // guards the fields below; one command is decided at a time
	index  uint64
	before func(*dv1.Command) error
	after  func([]*dv1.Effect)
}

// NewLog returns an empty log, which expects an Init first.
func NewLog() *Log { return &Log{store: state.NewStore()} }

// Before sets f to be called before each command is decided; Propose returns its
// error.
func (l *Log) Before(f func(*dv1.Command) error) { l.mu.Lock(); defer l.mu.Unlock(); l.before = f }

// OnCommit sets f to be called with the effects of each entry, once they are in the
// state.
func (l *Log) OnCommit(f func([]*dv1.Effect)) { l.mu.Lock(); defer l.mu.Unlock(); l.after = f }

// Snapshot returns the newest state.
func (l *Log) Snapshot() *state.Snapshot { return l.store.Snapshot() }

// Propose decides a command and applies its effects.
func (l *Log) Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if l.before != nil {
		if err := l.before(c); err != nil {
			return nil, err
		}
	}
	s := l.store.Snapshot()
	if r := s.Result(c.Key); r != nil {
		if !bytes.Equal(r.Hash, c.Hash) {
			return nil, consensus.ErrKeyReused
		}
		return r.Result, nil
	}
	now := max(s.Time(), int64(l.index)+1)
	effects, res := command.Decide(state.NewTxn(s), c, now)
	if res.Error != nil {
		return res, nil
	}
	e := &dv1.Entry{Format: state.Format, Type: state.EntryEffects, Base: s.Index(), Time: now, Effects: effects}
	if c.Key != "" {
		e.Results = []*dv1.KeyResult{{Key: c.Key, Hash: c.Hash, Result: res, At: now}}
	}
	b, err := proto.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encoding an entry: %w", err)
	}
	l.index++
	if _, err := l.store.Apply(l.index, b); err != nil {
		return nil, fmt.Errorf("applying %T: %w", c.Of, err)
	}
	if l.after != nil {
		l.after(effects)
	}
	return res, nil
}
