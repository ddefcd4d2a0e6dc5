package controller

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/drover/drover/controller/consensus"
)

// Times of comparing clocks.
const (
	compareEvery = time.Minute
	maxSkew      = consensus.MaxAhead / 2 // that clocks which agree may have
)

// clock compares this leader's clock with the other controllers', where it is so far
// ahead of the state's time that the state would not just take it: after an hour
// without any change, or because the clock is wrong.
func (m *members) clock(ctx context.Context) error {
	now, last := time.Now(), time.Unix(0, m.node.Snapshot().Time())
	if now.Sub(last) < maxSkew || time.Since(m.compared) < compareEvery {
		return nil
	}
	m.compared = now
	var mu sync.Mutex
	var others []time.Time
	var asked sync.WaitGroup
	for c := range m.node.Snapshot().Controllers() {
		if c.Id == m.c.files.Principal.ID {
			continue
		}
		asked.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			if t, err := m.way.Clock(ctx, c.Id, c.Addr); err == nil {
				mu.Lock()
				defer mu.Unlock()
				others = append(others, t)
			}
		})
	}
	asked.Wait()
	ok := believed(now, last, others)
	if !ok {
		m.c.Logger.Error("the clock of this host is far ahead of the other controllers': what is recorded gets the time of the last change instead; set the clock", "clock", now, "others", others)
	}
	m.c.believe.Store(ok)
	return nil
}

// believed says whether a clock is right, by the others'. Those that are behind what
// the state has reached already are wrong themselves. A controller that has nobody to
// ask has its own clock only.
func believed(now, last time.Time, others []time.Time) bool {
	others = slices.DeleteFunc(slices.Clone(others), func(t time.Time) bool { return t.Before(last.Add(-maxSkew)) })
	agree := 1 // itself
	for _, t := range others {
		if t.Sub(now).Abs() <= maxSkew {
			agree++
		}
	}
	return 2*agree > 1+len(others)
}
