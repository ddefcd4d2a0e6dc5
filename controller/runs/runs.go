// Package runs creates the tasks of runs that don't fit into one entry of the log.
// What they are is decided by command; this package makes the leader propose it.
package runs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Log is a controller's own log.
type Log interface {
	Snapshot() *state.Snapshot
	Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error)
}

// Filler continues runs that are filling, entry by entry, so that others' commands
// are decided in between. A run's progress is in the state, so another leader can
// resume it.
type Filler struct {
	log    Log
	self   string // URI of this controller
	logger *slog.Logger
	due    chan struct{} // signalled when an entry left a run filling
}

// New returns a Filler whose Run is the leader's.
func New(log Log, self string, logger *slog.Logger) *Filler {
	return &Filler{log: log, self: self, logger: logger, due: make(chan struct{}, 1)}
}

// retryAfter is the delay before a failed run is retried.
const retryAfter = time.Second

// Committed is called with each entry's effects, once they are in the state. It
// never blocks.
func (f *Filler) Committed(effects []*dv1.Effect) {
	if slices.ContainsFunc(effects, func(e *dv1.Effect) bool { return e.GetRun().GetFilling() }) {
		select {
		case f.due <- struct{}{}:
		default:
		}
	}
}

// Run serves one term of this controller's leadership, until ctx is done.
func (f *Filler) Run(ctx context.Context) error {
	wake := time.NewTimer(0)
	defer wake.Stop()
	for {
		select {
		case <-f.due:
		case <-wake.C:
		case <-ctx.Done():
			return nil
		}
		if err := f.fill(ctx); err != nil && ctx.Err() == nil {
			f.logger.Warn("creating the tasks of a run failed, retrying", "after", retryAfter, "err", err)
			wake.Reset(retryAfter)
		}
	}
}

// fill creates the next part of every run that is filling, taking turns. Each part's
// entry makes the next one due.
func (f *Filler) fill(ctx context.Context) error {
	var failed error
	for _, r := range slices.Collect(f.log.Snapshot().RunsFilling()) {
		res, err := f.log.Propose(ctx, &dv1.Command{Principal: f.self, Of: &dv1.Command_FillRun{FillRun: &dv1.FillRun{RunId: r.Id}}})
		if err == nil && res.GetError() != nil {
			err = errors.New(res.Error.Message)
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("run %s: %w", r.Name, err))
		}
	}
	return failed
}
