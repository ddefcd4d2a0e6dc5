package engine

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/drover/drover/agent/network"
	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/agent/volume"
	"github.com/drover/drover/pkg/life"
)

var testID = strings.Repeat("a", 64)

// alive are tasks whose shims run, and are not called.
type alive struct{ tasks }

func (alive) Has(string) bool { return true }
func (alive) Close() error    { return nil }

// bare is an engine without a containerd, with one task.
func bare(t *testing.T) *Engine {
	t.Helper()
	f, err := newFollower()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	e := &Engine{o: Options{DataDir: t.TempDir(), RunDir: t.TempDir(), Volumes: new(volume.Store), Event: func(string, string, map[string]string) {}}, follow: f, tasks: alive{}, boot: bootID(), recordWithin: time.Minute, execs: map[string]*execution{}}
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
	if again, err := e.readExit(testID, life.First(1)); err != nil || again.GetCode() != killedCode {
		t.Fatalf("recorded: %v (%v)", again, err)
	}
}

// What the shim of an earlier try records, however late, is not the exit of this one.
// Nor is what was left by an agent that did not distinguish tries.
func TestTheRecordOfAnotherTryIsNotTaken(t *testing.T) {
	e := bare(t)
	killed := shimapi.Exit{Attempt: 1, Code: killedCode, At: time.Now()}
	if err := shimapi.WriteExit(e.o.exitFile(testID, life.First(1)), killed); err != nil {
		t.Fatal(err)
	}
	first := attempt{Number: 1, Try: "FIRST", Boot: e.boot}
	second := attempt{Number: 1, Try: "SECOND", Boot: e.boot}
	for _, a := range []attempt{first, second} {
		if err := e.writeAttempt(testID, a); err != nil {
			t.Fatal(err)
		}
		if x, err := e.readExit(testID, life.First(1)); x != nil || err != nil {
			t.Fatalf("try %s began with %v (%v)", a.Try, x, err)
		}
	}
	if err := shimapi.WriteExit(e.o.recordFile(testID, first), killed); err != nil {
		t.Fatal(err)
	}
	if x, err := e.readExit(testID, life.First(1)); x != nil || err != nil {
		t.Fatalf("the second try ended with %v (%v)", x, err)
	}
	if err := shimapi.WriteExit(e.o.recordFile(testID, second), shimapi.Exit{Attempt: 1, Code: 7, At: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if x, err := e.Wait(t.Context(), testID, life.First(1)); err != nil || x.Code != 7 {
		t.Fatalf("it ended with %v (%v), want 7", x, err)
	}
}

// Agents of earlier builds counted no restarts: what they recorded is of first lives.
func TestRecordsWithoutACountAreOfFirstLives(t *testing.T) {
	e := bare(t)
	e.o.Network = &network.Network{}
	for file, content := range map[string]string{
		"attempt.json": `{"version":1,"number":3,"try":"TRY","logStart":0,"at":"2026-05-01T12:00:00Z","boot":"b"}`,
		"exit.3.TRY":   `{"version":1,"attempt":3,"code":7,"at":"2026-05-01T12:00:00Z","started":"2026-05-01T11:59:59Z","logEnd":9}`,
	} {
		if err := os.WriteFile(filepath.Join(e.o.dir(testID), file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("exit.3.TRY", filepath.Join(e.o.dir(testID), "exit.3")); err != nil {
		t.Fatal(err)
	}
	a, err := e.readAttempt(testID)
	if err != nil {
		t.Fatal(err)
	}
	f, err := e.found(t.Context(), prepared{Spec: task.Spec{ID: testID}, ImageConfig: &ocispec.ImageConfig{}}, a, nil)
	if err != nil || f.Attempt.Life != life.First(3) || life.Of(f.Attempt.Exit) != life.First(3) || f.Attempt.Exit.GetCode() != 7 {
		t.Errorf("found %+v (%v)", f.Attempt, err)
	}
	if x, err := e.Wait(t.Context(), testID, life.First(3)); err != nil || life.Of(x) != life.First(3) || x.Code != 7 {
		t.Errorf("it ended with %v (%v)", x, err)
	}
}

// Each life has its own exit, in whatever order they are recorded: a wait is ended by
// that of its life only, and what never began leaves the last life that ended.
func TestAWaitIsEndedByItsOwnLifeOnly(t *testing.T) {
	lives := []life.Life{{Attempt: 2}, {Attempt: 2, Restarts: 1}, {Attempt: 2, Restarts: 10}, {Attempt: 10}, {Attempt: 10, Restarts: 1}}
	last := lives[len(lives)-1]
	for range 10 {
		e := bare(t)
		try := func(l life.Life) attempt {
			return attempt{Number: l.Attempt, Restarts: l.Restarts, Try: "TRY", Boot: e.boot}
		}
		for _, l := range lives {
			if err := e.writeAttempt(testID, try(l)); err != nil {
				t.Fatal(err)
			}
		}
		now, cancel := context.WithCancel(t.Context())
		cancel()
		recorded := map[life.Life]int32{}
		var newest life.Life // that ended before the last one
		for _, i := range rand.Perm(len(lives)) {
			l := lives[i]
			if err := shimapi.WriteExit(e.o.recordFile(testID, try(l)), shimapi.Exit{Attempt: l.Attempt, Restarts: l.Restarts, Code: int32(i), At: time.Now()}); err != nil {
				t.Fatal(err)
			}
			recorded[l] = int32(i)
			for _, l := range lives {
				code, ended := recorded[l]
				x, err := e.Wait(now, testID, l)
				switch {
				case ended && (err != nil || life.Of(x) != l || x.Code != code),
					!ended && l == last && !errors.Is(err, context.Canceled),
					!ended && l != last && !errors.Is(err, task.ErrNotFound):
					t.Fatalf("with the exits of %v, a wait for attempt %s returned %v (%v)", recorded, l, x, err)
				}
			}
			if l != last && newest.Before(l) {
				newest = l
			}
			f, err := e.neverBegan(task.Found{Spec: task.Spec{ID: testID}, Attempt: task.Attempt{Life: last}})
			if err != nil || f.Attempt.Life != newest || life.Of(f.Attempt.Exit) != newest {
				t.Fatalf("before attempt %s, %s ended last; found %+v (%v)", last, newest, f.Attempt, err)
			}
		}
	}
}
