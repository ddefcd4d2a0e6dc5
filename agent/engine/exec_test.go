package engine_test

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/life"
)

// execIn starts sh in a task; with attach its stream is given.
func execIn(t *testing.T, e *node, id, script string, attach bool) (execID string, st task.Stream) {
	t.Helper()
	execID = "e" + rand.Text()
	o := container.ExecCreateRequest{Cmd: []string{"sh", "-c", script}, AttachStdin: attach, AttachStdout: attach, AttachStderr: attach}
	if err := e.ExecCreate(t.Context(), id, execID, o); err != nil {
		t.Fatal(err)
	}
	st, err := e.ExecStart(t.Context(), id, execID, attach, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if attach {
		t.Cleanup(func() { _ = st.Close() })
	}
	return execID, st
}

// rest reads a stream to its end.
func rest(t *testing.T, st io.Reader) (out string, exit *dv1.Exit) {
	t.Helper()
	var said strings.Builder
	for fr := bulk.NewFrameReader(st); ; {
		kind, p, err := fr.Next()
		if errors.Is(err, io.EOF) {
			return said.String(), exit
		}
		if err != nil {
			t.Fatal(err)
		}
		if kind != bulk.FrameExit {
			said.Write(p)
			continue
		}
		exit = &dv1.Exit{}
		if err := protojson.Unmarshal(p, exit); err != nil {
			t.Fatal(err)
		}
	}
}

// world with one task that runs, and who hears of its execs' ends.
func withExecs(t *testing.T) (w *world, e *node, id string, died chan map[string]string) {
	w, died = newWorld(t), make(chan map[string]string, 16)
	w.o.Event = func(_, action string, attributes map[string]string) {
		if action == "exec_die" {
			died <- attributes
		}
	}
	e = w.open(t)
	w.pulled(t, e)
	id = w.prepared(t, e, waits)
	if _, err := e.Start(t.Context(), id, life.First(1), nil); err != nil {
		t.Fatal(err)
	}
	return w, e, id, died
}

func dies(t *testing.T, died chan map[string]string, execID, code string) {
	t.Helper()
	select {
	case a := <-died:
		if a["execID"] != execID || a["exitCode"] != code {
			t.Fatalf("%v, want %s of %s", a, code, execID)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("nobody tells of the exec's end")
	}
}

// Execs outlive a restart of containerd, and report their own exits.
func TestExecsOutliveContainerd(t *testing.T) {
	w, e, id, died := withExecs(t)
	attached, st := execIn(t, e, id, "read x; echo $x; exit 9", true)
	detached, _ := execIn(t, e, id, "while [ ! -e /go ]; do sleep 0.1; done; exit 8", false)
	if w.kill("drover-containerd") == 0 {
		t.Fatal("no containerd to kill")
	}
	w.up()
	if x, err := e.ExecInspect(t.Context(), id, attached); err != nil || !x.Running {
		t.Fatalf("%+v (%v)", x, err)
	}
	if _, err := st.Write([]byte("said\n")); err != nil {
		t.Fatal(err)
	}
	if out, x := rest(t, st); out != "said\n" || x.GetCode() != 9 || x.GetAt() == 0 {
		t.Fatalf("%q, exit %v", out, x)
	}
	dies(t, died, attached, "9")
	if x, err := e.ExecInspect(t.Context(), id, attached); err != nil || x.Running || x.ExitCode == nil || *x.ExitCode != 9 {
		t.Fatalf("%+v (%v)", x, err)
	}
	if _, st := execIn(t, e, id, "touch /go", true); st != nil {
		_, x := rest(t, st)
		if x.GetCode() != 0 {
			t.Fatalf("exit %v", x)
		}
	}
	ends := map[string]string{}
	for range 2 {
		select {
		case a := <-died:
			ends[a["execID"]] = a["exitCode"]
		case <-time.After(30 * time.Second):
			t.Fatalf("nobody tells of the end of the detached exec: %v", ends)
		}
	}
	if ends[detached] != "8" {
		t.Fatalf("the detached exec ended with %q", ends[detached])
	}
}

// A process that an exec leaves in the background may continue to write: as with docker,
// the exec has ended, with all of its own process's output.
func TestAnExecEndsBeforeWhatItLeftBehind(t *testing.T) {
	_, e, id, died := withExecs(t)
	for what, script := range map[string]string{
		"now and then":        "(while sleep 0.2; do echo x; done) & echo own; exit 4",
		"as fast as possible": "(sleep 0.5; yes) & echo own; exit 4",
	} {
		execID, st := execIn(t, e, id, script, true)
		over := time.AfterFunc(60*time.Second, func() { t.Errorf("%s: it does not end", what); _ = st.Close() })
		out, x := rest(t, st)
		over.Stop()
		if x.GetCode() != 4 || !strings.HasPrefix(out, "own\n") && !strings.Contains(out, "\nown\n") {
			t.Errorf("%s: exit %v behind %.20q", what, x, out)
		}
		dies(t, died, execID, "4")
	}
}

// A client that leaves ends its exec's stdin, also while the process does not read it,
// and the exit is still reported.
func TestAnExecWhoseClientLeftSeesTheEndOfItsInput(t *testing.T) {
	_, e, id, died := withExecs(t)
	idle, st := execIn(t, e, id, "cat; exit 6", true)
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	dies(t, died, idle, "6")
	deaf, st := execIn(t, e, id, "while [ ! -e /go ]; do sleep 0.1; done; exit 5", true)
	stuck := make(chan error)
	go func() { // more than pipe and socket hold
		for {
			if _, err := st.Write(make([]byte, 1<<20)); err != nil {
				stuck <- err
				return
			}
		}
	}()
	execIn(t, e, id, "touch /go", false)
	for range 2 {
		select {
		case a := <-died:
			if a["execID"] == deaf && a["exitCode"] != "5" {
				t.Fatalf("%v", a)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("nobody tells of the exec's end")
		}
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	<-stuck
}

// An exec whose start never reached its shim, as when its client left just before, ends
// there: nothing waits for the end of what did not begin.
func TestAnExecThatWasNotStartedIsForgotten(t *testing.T) {
	w := newWorld(t)
	var lost atomic.Bool
	between(t, func(m moment) error {
		if m.call == startTask && !m.after && lost.Load() {
			return errGone
		}
		return nil
	})
	e := w.open(t)
	w.pulled(t, e)
	id := w.prepared(t, e, waits)
	if _, err := e.Start(t.Context(), id, life.First(1), nil); err != nil {
		t.Fatal(err)
	}
	o := container.ExecCreateRequest{Cmd: []string{"true"}, AttachStdout: true}
	if err := e.ExecCreate(t.Context(), id, "lost", o); err != nil {
		t.Fatal(err)
	}
	lost.Store(true)
	refused := make(chan error, 1)
	go func() {
		_, err := e.ExecStart(t.Context(), id, "lost", true, 0, 0)
		refused <- err
	}()
	select {
	case err := <-refused:
		if err == nil {
			t.Error("it began")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it is waited for")
	}
	lost.Store(false)
	if x, err := e.ExecInspect(t.Context(), id, "lost"); err != nil || x.Running || x.ExitCode == nil {
		t.Errorf("it is %+v, %v", x, err)
	}
	ends(t, e, id)
}

// An exec whose client leaves while its shim learns of it leaves nothing behind.
func TestAnExecWhoseClientLeftBeforeItsStart(t *testing.T) {
	w := newWorld(t)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	between(t, func(m moment) error {
		if m.call == execTask {
			leave()
		}
		return nil
	})
	e := w.open(t)
	w.pulled(t, e)
	id := w.prepared(t, e, waits)
	if _, err := e.Start(t.Context(), id, life.First(1), nil); err != nil {
		t.Fatal(err)
	}
	if err := e.ExecCreate(t.Context(), id, "left", container.ExecCreateRequest{Cmd: []string{"true"}, AttachStdout: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.ExecStart(ctx, id, "left", true, 0, 0); err == nil {
		t.Error("it began")
	}
	ends(t, e, id)
	if left, err := filepath.Glob(filepath.Join(w.o.RunDir, "t", "*.ex")); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}
