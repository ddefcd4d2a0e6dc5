package membership

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/state"
)

// Timing of clock comparisons.
const (
	lookEvery    = 500 * time.Millisecond
	compareEvery = time.Minute
	maxSkew      = consensus.MaxAhead / 2 // between clocks that agree
)

// ClockOptions configures NewClock.
type ClockOptions struct {
	Self     string // this controller's id
	Snapshot func() *state.Snapshot
	// Ask returns the time of another controller's clock.
	Ask func(ctx context.Context, id, addr string) (time.Time, error)
	// Believe is called with whether to trust this clock when it is far ahead of the
	// state's time.
	Believe func(bool)
	Logger  *slog.Logger
}

// Clock compares the leader's clock with the other controllers' when it is so far
// ahead of the state's time that the state doesn't accept it as is: after an hour
// without any change, or because the clock is wrong.
type Clock struct {
	o        ClockOptions
	compared time.Time // last time that this leader did
}

// NewClock returns a Clock whose Run is the leader's.
func NewClock(o ClockOptions) *Clock { return &Clock{o: o} }

// Run serves one term of this controller's leadership, until ctx is done. It polls,
// since a clock that goes wrong causes no event.
func (c *Clock) Run(ctx context.Context) error {
	c.compared = time.Time{}
	c.o.Believe(false)
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		c.compare(ctx, time.Now())
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (c *Clock) compare(ctx context.Context, now time.Time) {
	s := c.o.Snapshot()
	last := time.Unix(0, s.Time())
	if now.Sub(last) < maxSkew || time.Since(c.compared) < compareEvery {
		return
	}
	c.compared = now
	var mu sync.Mutex
	var others []time.Time
	var asked sync.WaitGroup
	for m := range s.Controllers() {
		if m.Id == c.o.Self {
			continue
		}
		asked.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askWait)
			defer cancel()
			if t, err := c.o.Ask(ctx, m.Id, m.Addr); err == nil {
				mu.Lock()
				defer mu.Unlock()
				others = append(others, t)
			}
		})
	}
	asked.Wait()
	ok := believed(now, last, others)
	if !ok {
		c.o.Logger.Error("the clock of this host is far ahead of the other controllers': changes are stamped with the time of the last change instead; set the clock", "clock", now, "others", others)
	}
	c.o.Believe(ok)
}

// believed reports whether a clock is right, judging by the others. Clocks behind
// the state's time are wrong themselves. A controller with nobody to ask has only
// its own clock.
func believed(now, last time.Time, others []time.Time) bool {
	others = slices.DeleteFunc(slices.Clone(others), func(t time.Time) bool { return t.Before(last.Add(-maxSkew)) })
	agree := 1 // it agrees with itself
	for _, t := range others {
		if t.Sub(now).Abs() <= maxSkew {
			agree++
		}
	}
	return 2*agree > 1+len(others)
}
