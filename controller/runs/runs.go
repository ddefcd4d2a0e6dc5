// Package runs makes the tasks that a run wants and one entry of the log did not hold.
// What they are is decided by command; only the leader asks for it.
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

// Filler goes on with runs that are filling, entry by entry: between two of them the
// log takes others' commands. How far a run is shows in the state, so that a leader
// that ends leaves the rest to the next one.
type Filler struct {
	log    Log
	self   string // URI of this controller
	logger *slog.Logger
	due    chan struct{} // poked when an entry left a run filling
}

// New returns a Filler whose Run is the leader's.
func New(log Log, self string, logger *slog.Logger) *Filler {
	return &Filler{log: log, self: self, logger: logger, due: make(chan struct{}, 1)}
}

// retryAfter is how long a run waits that could not be gone on with.
const retryAfter = time.Second

// Committed is called with each entry's effects, once the state shows them. It never
// blocks.
func (f *Filler) Committed(effects []*dv1.Effect) {
	if slices.ContainsFunc(effects, func(e *dv1.Effect) bool { return e.GetRun().GetFilling() }) {
		select {
		case f.due <- struct{}{}:
		default:
		}
	}
}

// Run is one term of this controller's leadership, which ends with ctx.
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
			f.logger.Warn("tasks of a run are not made yet, trying again", "after", retryAfter, "err", err)
			wake.Reset(retryAfter)
		}
	}
}

// fill makes the next part of each run that is filling: all of them go on alike. Each
// part's entry makes the next one due.
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
