package engine

import (
	"errors"
	"os"
	"path/filepath"
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

// An agent that died before it had connected to an exec left its socket, which no other
// agent knows.
func TestSocketsOfExecsGoWithTheirAgent(t *testing.T) {
	e := &Engine{o: Options{DataDir: t.TempDir(), RunDir: t.TempDir()}}
	for _, d := range []string{e.o.tasks(), filepath.Join(e.o.RunDir, "t")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	left, shims := e.o.execSocket("e0"), e.o.stdinSocket(testID)
	for _, f := range []string{left, shims} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
	if _, err := os.Stat(shims); err != nil {
		t.Errorf("a container's: %v", err)
	}
}
