package consensus

import (
	"context"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/timing"
)

func setTiming(t timing.Timing) *dv1.Command {
	return &dv1.Command{Principal: admin, Of: &dv1.Command_SetTiming{SetTiming: &dv1.SetTiming{Timing: t.Proto()}}}
}

// deposed says whether the leader loses its place when the others don't hear it for
// so long.
func (s *simulated) deposed(ctx context.Context, silence time.Duration) bool {
	s.t.Helper()
	s.ask(ctx, createRun("x"))
	lead := ""
	term := func() (highest uint64) {
		for id, m := range s.members {
			highest = max(highest, m.Term())
			if m.Ready() {
				lead = id
			}
		}
		return highest
	}
	before := term()
	s.split(map[string]bool{lead: true})
	time.Sleep(silence)
	s.split(nil)
	if r := s.ask(ctx, &dv1.Command{Key: "after", Of: &dv1.Command_Remove{Remove: &dv1.Remove{TaskId: id("x")}}}); r.GetError() != nil {
		s.t.Fatal(r.Error)
	}
	return term() != before
}

// The timing is one for all members, from the log; a member that starts has it
// before it has read its log.
func TestTheTimingIsTheFleets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour) // virtual
		defer cancel()
		s := simulate(ctx, t, 1, t.TempDir())
		same := func(want timing.Timing) {
			t.Helper()
			for _, id := range s.ids {
				for s.members[id].Timing() != want && ctx.Err() == nil {
					time.Sleep(time.Millisecond)
				}
				if got, err := timing.Load(filepath.Join(s.dir, id, "timing"), timing.Timing{}); err != nil || got != want {
					t.Errorf("%s keeps %v (%v), want %v", id, got, err, want)
				}
			}
		}
		same(timing.LAN)
		if !s.deposed(ctx, 30*time.Second) {
			t.Error("half a minute without the leader made no election")
		}
		kept := s.ask(ctx, createRun("kept"))
		for _, want := range []timing.Timing{timing.WAN, timing.LAN, timing.WAN} {
			if r := s.ask(ctx, setTiming(want)); r.GetError() != nil {
				t.Fatal(r.Error)
			}
			same(want)
		}
		if s.deposed(ctx, time.Second) {
			t.Error("a second without the leader made an election")
		}
		for _, id := range s.ids {
			s.crash(id)
		}
		for _, id := range s.ids {
			s.boot(id)
			if m := s.members[id]; m.Timing() != timing.WAN {
				t.Errorf("%s starts with %v", id, m.Timing())
			}
		}
		last := s.ask(ctx, setTiming(timing.Timing{Heartbeat: time.Second, Election: time.Second, Lease: time.Second}))
		same(timing.Timing{Heartbeat: time.Second, Election: time.Second, Lease: time.Second})
		var hash [32]byte
		for i, id := range s.ids {
			snap, err := s.members[id].WaitIndex(ctx, last.Index)
			if err != nil {
				t.Fatal(err)
			}
			if snap.TaskByName("kept").GetRevision() != kept.Index {
				t.Errorf("%s lost a task, or has another", id)
			}
			if h := snap.Hash(); i > 0 && h != hash {
				t.Errorf("the state of %s differs", id)
			} else {
				hash = h
			}
		}
		for _, id := range s.ids {
			s.crash(id)
		}
	})
}

// What raft's start would refuse never gets into the log.
func TestATimingThatRaftRefusesIsRefused(t *testing.T) {
	m := single(t, t.TempDir())
	m.prepare(t)
	r, err := m.Propose(t.Context(), setTiming(timing.Timing{Heartbeat: time.Second, Election: time.Second, Lease: 2 * time.Second}))
	if err != nil || r.GetError().GetKind() != dv1.Error_INVALID {
		t.Errorf("answered %v, %v", r, err)
	}
}
