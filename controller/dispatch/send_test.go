package dispatch

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// sent records after how long syncs and beats are sent.
type sent struct {
	began time.Time
	beats []time.Duration
	syncs int
}

func (s *sent) Send(m *dv1.ToAgent) error {
	switch m.Of.(type) {
	case *dv1.ToAgent_Beat:
		s.beats = append(s.beats, time.Since(s.began))
	case *dv1.ToAgent_Sync:
		s.syncs++
	}
	return nil
}

// A session that has something to send needs no beat: one goes BeatEvery after the last
// message.
func TestABeatGoesWhenNothingElseDid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeLog()
		f.put(aNode("n1"))
		term := f.hub.begin()
		ctx, cancel := context.WithCancel(t.Context())
		s, to := newSession("n1", func(error) {}), &sent{began: time.Now()}
		if err := term.enter(s, 1); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- term.send(ctx, s, to) }()
		for i := range 10 {
			time.Sleep(BeatEvery / 5)
			f.put(&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: tid(i), Name: fmt.Sprint(i), NodeId: "n1"}}})
		}
		time.Sleep(2*BeatEvery + BeatEvery/10)
		cancel()
		<-done
		if want := []time.Duration{3 * BeatEvery, 4 * BeatEvery}; !slices.Equal(to.beats, want) || to.syncs != 11 {
			t.Errorf("beats after %v and %d syncs, want %v and 11", to.beats, to.syncs, want)
		}
	})
}
