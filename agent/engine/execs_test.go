package engine

import (
	"errors"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/task"
)

// As docker does, an exec that ended is kept for a while to be asked for, and
// those that came after it don't add up.
func TestExecsThatEndedAreForgottenAfterAWhile(t *testing.T) {
	e := bare(t)
	begin(t, e)
	made := func(id string, ended time.Duration) {
		t.Helper()
		if err := e.ExecCreate(t.Context(), testID, id, container.ExecCreateRequest{Cmd: []string{"true"}}); err != nil {
			t.Fatal(err)
		}
		if ended > 0 {
			e.execs[id].ended.Store(time.Now().Add(-ended).UnixNano())
		}
	}
	made("old", keepExecs+time.Second)
	if _, err := e.ExecInspect(t.Context(), testID, "old"); !errors.Is(err, task.ErrNotFound) {
		t.Errorf("inspecting one that ended long ago: %v", err)
	}
	made("recent", keepExecs-time.Minute)
	made("new", 0)
	for _, id := range []string{"recent", "new"} {
		if _, err := e.ExecInspect(t.Context(), testID, id); err != nil {
			t.Errorf("inspecting the %s one: %v", id, err)
		}
	}
	if len(e.execs) != 2 {
		t.Errorf("%d execs are kept", len(e.execs))
	}
}
