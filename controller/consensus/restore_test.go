package consensus

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// A follower that was away for longer than the others' logs go back gets a snapshot:
// what the state was and is then is told, since no entry tells it.
func TestASnapshotInPlaceOfEntriesIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour) // virtual
		defer cancel()
		type change struct{ from, to *state.Snapshot }
		var mu sync.Mutex
		restored, last := map[string][]change{}, map[string]uint64{}
		s := simulate(ctx, t, 1, "", func(o *Options) {
			o.OnCommit = func(_ []*dv1.Effect, index uint64) {
				mu.Lock()
				defer mu.Unlock()
				last[o.ID] = index
			}
			o.OnRestore = func(before, after *state.Snapshot) {
				mu.Lock()
				defer mu.Unlock()
				restored[o.ID] = append(restored[o.ID], change{before, after})
			}
		})
		first := s.ask(ctx, createRun("gone"))
		away := ""
		for id, m := range s.members {
			if !m.Ready() {
				away = id
			}
		}
		if _, err := s.members[away].WaitIndex(ctx, first.Index); err != nil {
			t.Fatal(err)
		}
		s.split(map[string]bool{away: true})
		s.ask(ctx, &dv1.Command{Key: "rm", Of: &dv1.Command_Remove{Remove: &dv1.Remove{TaskId: id("gone")}}})
		s.ask(ctx, createRun("new"))
		for _, m := range s.members {
			r := m.Raft().ReloadableConfig()
			r.TrailingLogs = 1
			if err := m.Raft().ReloadConfig(r); err != nil {
				t.Fatal(err)
			}
			if m == s.members[away] {
				continue
			}
			if err := m.Raft().Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
		s.split(nil)
		r := s.ask(ctx, createRun("after"))
		if _, err := s.members[away].WaitIndex(ctx, r.Index); err != nil {
			t.Fatal(err)
		}
		for _, id := range s.ids {
			s.crash(id) // so that nobody calls any more
		}
		if len(restored) != 1 || len(restored[away]) != 1 {
			t.Fatalf("told of snapshots: %v, want one at %s", restored, away)
		}
		c := restored[away][0]
		if c.from.TaskByName("gone") == nil || c.to.TaskByName("gone") != nil || c.from.TaskByName("new") != nil || c.to.TaskByName("new") == nil {
			t.Error("what it was and is are other states")
		}
		if last[away] < r.Index {
			t.Errorf("entries behind the snapshot are not told: the last is %d of %d", last[away], r.Index)
		}
	})
}
