package engine

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/agent/task"
)

var testID = strings.Repeat("a", 64)

// bare is an engine without a containerd, with one task.
func bare(t *testing.T) *Engine {
	t.Helper()
	f, err := newFollower()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	e := &Engine{o: Options{DataDir: t.TempDir(), RunDir: t.TempDir(), Event: func(string, string, map[string]string) {}}, follow: f, boot: bootID(), recordWithin: time.Minute, execs: map[string]*execution{}}
	if err := os.MkdirAll(e.o.logDir(testID), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := e.writeSpec(prepared{Spec: task.Spec{ID: testID}}); err != nil {
		t.Fatal(err)
	}
	return e
}

// begin makes attempt 1 one whose process may have run.
func begin(t *testing.T, e *Engine) attempt {
	t.Helper()
	a := attempt{Number: 1, Try: "TRY", At: time.Now(), Boot: e.boot}
	if err := e.writeAttempt(testID, a); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(e.begunFile(testID, a), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAStoppedProcessEndedWithItsStatusAndItsShimRecordsThat(t *testing.T) {
	for _, status := range []uint32{0, 3} {
		e := bare(t)
		e.recordWithin = 0
		a := begin(t, e)
		p := &tasktypes.Process{Status: tasktypes.Status_STOPPED, ExitStatus: status, ExitedAt: timestamppb.Now()}
		x, err := e.settle(t.Context(), testID, a, p)
		if err != nil || x.GetCode() != int32(status) || x.GetAt() != p.ExitedAt.AsTime().UnixNano() {
			t.Errorf("status %d became %v (%v)", status, x, err)
		}
		if _, err := os.Stat(e.o.recordFile(testID, a)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the record is the shim's to write: %v", err)
		}
		if !e.unrecorded(testID) {
			t.Error("the shim might be deleted before it recorded the exit")
		}
	}
}

func TestTheRecordOfAStoppedProcessIsWaitedFor(t *testing.T) {
	e := bare(t)
	a := begin(t, e)
	var written error
	late := time.AfterFunc(10*time.Millisecond, func() {
		written = shimapi.WriteExit(e.o.recordFile(testID, a), shimapi.Exit{Attempt: 1, Code: 0, OOM: true, At: time.Now()})
	})
	defer late.Stop()
	x, err := e.settle(t.Context(), testID, a, &tasktypes.Process{Status: tasktypes.Status_STOPPED})
	if err != nil || x.GetCode() != 0 || !x.GetOom() {
		t.Fatalf("got %v (%v), written: %v", x, err, written)
	}
	if e.unrecorded(testID) {
		t.Error("what was recorded is not seen")
	}
}

func TestWhoseShimIsGoneWasKilledUnlessItNeverBegan(t *testing.T) {
	e := bare(t)
	a := begin(t, e)
	if err := os.Remove(e.begunFile(testID, a)); err != nil {
		t.Fatal(err)
	}
	if x, err := e.settle(t.Context(), testID, a, nil); x != nil || err != nil {
		t.Fatalf("one that never began ended with %v (%v)", x, err)
	}
	begin(t, e)
	x, err := e.settle(t.Context(), testID, a, nil)
	if err != nil || x.GetCode() != killedCode {
		t.Fatalf("got %v (%v)", x, err)
	}
	if again, err := e.readExit(testID, 1); err != nil || again.GetCode() != killedCode {
		t.Fatalf("recorded: %v (%v)", again, err)
	}
}

// What the shim of an earlier try records, however late, or an agent that did not
// tell tries apart left, is not the exit of this one.
func TestTheRecordOfAnotherTryIsNotTaken(t *testing.T) {
	e := bare(t)
	killed := shimapi.Exit{Attempt: 1, Code: killedCode, At: time.Now()}
	if err := shimapi.WriteExit(e.o.exitFile(testID, 1), killed); err != nil {
		t.Fatal(err)
	}
	first := attempt{Number: 1, Try: "FIRST", Boot: e.boot}
	second := attempt{Number: 1, Try: "SECOND", Boot: e.boot}
	for _, a := range []attempt{first, second} {
		if err := e.writeAttempt(testID, a); err != nil {
			t.Fatal(err)
		}
		if x, err := e.readExit(testID, 1); x != nil || err != nil {
			t.Fatalf("try %s began with %v (%v)", a.Try, x, err)
		}
	}
	if err := shimapi.WriteExit(e.o.recordFile(testID, first), killed); err != nil {
		t.Fatal(err)
	}
	if x, err := e.readExit(testID, 1); x != nil || err != nil {
		t.Fatalf("the second try ended with %v (%v)", x, err)
	}
	if err := shimapi.WriteExit(e.o.recordFile(testID, second), shimapi.Exit{Attempt: 1, Code: 7, At: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if x, err := e.Wait(t.Context(), testID, 1); err != nil || x.Code != 7 {
		t.Fatalf("it ended with %v (%v), want 7", x, err)
	}
}
