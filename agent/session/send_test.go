package session

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// sent records what is sent, and after how long.
type sent struct {
	began time.Time
	beats []time.Duration
	all   []time.Duration
}

func (s *sent) Send(m *dv1.FromAgent) error {
	at := time.Since(s.began)
	s.all = append(s.all, at)
	if m.GetBeat() != nil {
		s.beats = append(s.beats, at)
	}
	return nil
}

// A session that has something to send needs no beat: one goes BeatEvery after the last
// message.
func TestABeatGoesWhenNothingElseDid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		o, to, open := Options{Outbox: &Outbox{}}, &sent{began: time.Now()}, make(chan struct{})
		close(open)
		done := make(chan error, 1)
		go func() { done <- o.send(ctx, to, open, nil) }()
		for range 10 {
			time.Sleep(BeatEvery / 5)
			o.Outbox.Status(&dv1.TaskStatus{Id: []byte("a")})
		}
		time.Sleep(2*BeatEvery + BeatEvery/10)
		cancel()
		<-done
		if want := []time.Duration{3 * BeatEvery, 4 * BeatEvery}; !slices.Equal(to.beats, want) || len(to.all) != 12 {
			t.Errorf("beats after %v of %d messages, want %v of 12", to.beats, len(to.all), want)
		}
	})
}
