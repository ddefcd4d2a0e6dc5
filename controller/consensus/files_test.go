package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

var silent = &logAdapter{l: slog.New(slog.DiscardHandler)}

func openLog(t *testing.T, dir string) *files {
	t.Helper()
	f, err := openFiles(dir, 4<<10, silent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // twice is once
	return f
}

// put stores entries that say their number and life.
func put(t *testing.T, f *files, life string, from, to uint64) {
	t.Helper()
	for i := from; i <= to; i++ {
		if err := f.StoreLog(&raft.Log{Index: i, Term: 1, Data: fmt.Appendf(nil, "%s-%d", life, i)}); err != nil {
			t.Fatalf("storing %d: %v", i, err)
		}
	}
}

func want(t *testing.T, f *files, life string, from, to uint64) {
	t.Helper()
	for i := from; i <= to; i++ {
		var l raft.Log
		if err := f.GetLog(i, &l); err != nil || string(l.Data) != fmt.Sprintf("%s-%d", life, i) {
			t.Fatalf("entry %d: %q, %v", i, l.Data, err)
		}
	}
}

// meta changes what the log knows of its segments.
func meta(t *testing.T, dir string, how func(*types.PersistentState)) {
	t.Helper()
	db := &metadb.BoltMetaDB{}
	st, err := db.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	how(&st)
	if err := errors.Join(db.CommitState(st), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestALogIsReadableAfterItsEndWasReplaced(t *testing.T) {
	dir := t.TempDir()
	f := openLog(t, dir)
	put(t, f, "a", 1, 10)
	if err := f.DeleteRange(8, 10); err != nil {
		t.Fatal(err)
	}
	put(t, f, "b", 8, 8)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = openLog(t, dir)
	want(t, f, "a", 1, 7)
	want(t, f, "b", 8, 8)
	put(t, f, "b", 9, 200) // over several segments
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = openLog(t, dir)
	want(t, f, "a", 1, 7)
	want(t, f, "b", 8, 200)
}

// broken040 is a log whose end raft-wal 0.4.0 replaced: the first segment is
// sealed at 7, and has neither an index nor its place.
func broken040(t *testing.T, damage func(segment string)) string {
	t.Helper()
	dir := t.TempDir()
	f := openLog(t, dir)
	put(t, f, "a", 1, 10)
	if err := f.DeleteRange(8, 10); err != nil {
		t.Fatal(err)
	}
	put(t, f, "b", 8, 9)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	meta(t, dir, func(st *types.PersistentState) {
		si := &st.Segments[0]
		file := filepath.Join(dir, segment.FileName(*si))
		if err := zero(file, int64(si.IndexStart)-frameHeader); err != nil {
			t.Fatal(err)
		}
		si.IndexStart = 0
		damage(file)
	})
	return dir
}

func TestALogThatRaftWAL040BrokeIsMended(t *testing.T) {
	dir := broken040(t, func(string) {})
	for range 2 { // the second finds nothing to do
		f := openLog(t, dir)
		want(t, f, "a", 1, 7)
		want(t, f, "b", 8, 9)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	f := openLog(t, dir)
	put(t, f, "b", 10, 10)
	want(t, f, "b", 8, 10)
}

func TestADamagedLogIsRefusedWithAWayOut(t *testing.T) {
	flip := func(at int64) func(string) {
		return func(file string) {
			err := change(file, func(f *os.File) error {
				b := make([]byte, 1)
				if _, err := f.ReadAt(b, at); err != nil {
					return err
				}
				_, err := f.WriteAt([]byte{b[0] ^ 1}, at)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for what, damage := range map[string]func(string){
		"an entry":     flip(segmentHeader + frameHeader + 4),
		"a frame":      flip(segmentHeader),
		"the header":   flip(9),
		"cut off":      func(file string) { _ = os.Truncate(file, 100) },
		"gone":         func(file string) { _ = os.Remove(file) },
		"an empty one": func(file string) { _ = os.Truncate(file, 0) },
	} {
		t.Run(what, func(t *testing.T) {
			dir := broken040(t, damage)
			before := sizes(t, dir)
			_, err := openFiles(dir, 4<<10, silent)
			var damaged *DamagedError
			if !errors.As(err, &damaged) {
				t.Fatalf("opened, or: %v", err)
			}
			for _, s := range []string{dir, "00000000000000000001-0000000000000000.wal", "drover controller rm", "drover join"} {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
			if after := sizes(t, dir); after != before {
				t.Errorf("it was changed: %s, before %s", after, before)
			}
		})
	}
	t.Run("no database", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, metadb.FileName), []byte(strings.Repeat("x", 1<<15)), 0o600); err != nil {
			t.Fatal(err)
		}
		var damaged *DamagedError
		if _, err := openFiles(dir, 4<<10, silent); !errors.As(err, &damaged) {
			t.Errorf("opened, or: %v", err)
		}
	})
}

func sizes(t *testing.T, dir string) (out string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(e.Name(), ".wal") {
			out += fmt.Sprintf("%s %x\n", e.Name(), len(b))
		}
	}
	return out
}

// A process may end between a segment's seal and its successor, in an orderly
// way too: raft-wal alone then refuses every write.
func TestASealedLastSegmentGetsASuccessor(t *testing.T) {
	dir := t.TempDir()
	f := openLog(t, dir)
	put(t, f, "a", 1, 200)
	last := uint64(0)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	meta(t, dir, func(st *types.PersistentState) {
		n := len(st.Segments)
		if n < 2 {
			t.Fatal("one segment only")
		}
		si := &st.Segments[n-2]
		last = si.MaxIndex
		si.SealTime, si.IndexStart, si.MaxIndex = time.Time{}, 0, 0
		if err := os.Remove(filepath.Join(dir, segment.FileName(st.Segments[n-1]))); err != nil {
			t.Fatal(err)
		}
		st.NextSegmentID--
		st.Segments = st.Segments[:n-1]
	})
	f = openLog(t, dir)
	want(t, f, "a", 1, last)
	put(t, f, "b", last+1, last+1)
	want(t, f, "b", last+1, last+1)
}

// What is left of a write that was cut off may look like a seal.
func TestARestOfAWriteIsNoSeal(t *testing.T) {
	dir := t.TempDir()
	f := openLog(t, dir)
	put(t, f, "a", 1, 5)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	meta(t, dir, func(st *types.PersistentState) {
		file := filepath.Join(dir, segment.FileName(st.Segments[0]))
		s, err := scan(file, st.Segments[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := s.seal(file); err != nil {
			t.Fatal(err)
		}
		// All of the index but its commit.
		if err := zero(file, s.end+frameHeader+int64(len(indexPayload(s.offsets)))); err != nil {
			t.Fatal(err)
		}
	})
	f = openLog(t, dir)
	want(t, f, "a", 1, 5)
	put(t, f, "a", 6, 6)
	want(t, f, "a", 1, 6)
}

func TestOpenNamesADamagedLog(t *testing.T) {
	dir := t.TempDir()
	m := single(t, dir)
	m.prepare(t)
	m.kill(t)
	all, err := filepath.Glob(filepath.Join(dir, "wal", "*.wal"))
	if err != nil || len(all) == 0 {
		t.Fatal(all, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "wal", metadb.FileName), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, tr := raft.NewInmemTransport("a")
	n, err := Open(Options{ID: "c1", Dir: dir, Transport: tr})
	var damaged *DamagedError
	if err == nil {
		n.Close()
	}
	if !errors.As(err, &damaged) || !strings.Contains(err.Error(), filepath.Dir(dir)) {
		t.Errorf("%v", err)
	}
}

// A deposed leader's entries are replaced by what the others decided, and its
// log can be opened again after that.
func TestAMemberStartsAfterItsEndWasReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour) // virtual
		defer cancel()
		s := simulate(ctx, t, 1, t.TempDir())
		var old string
		for _, id := range s.ids {
			if s.members[id].IsLeader() {
				old = id
			}
		}
		m := s.members[old]
		s.split(map[string]bool{old: true})
		// Stored here, never committed.
		f := m.Raft().Apply([]byte("lost"), time.Second)
		lost, _ := m.log.LastIndex()
		if err := f.Error(); err == nil {
			t.Fatal("committed alone")
		}
		if at, err := m.log.LastIndex(); err != nil || at < lost {
			t.Fatal(at, lost, err)
		}
		c := createRun("web")
		c.Key = "web"
		made := s.ask(ctx, c)
		s.split(nil)
		if _, err := m.WaitIndex(ctx, made.Index); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			s.crash(old)
			s.boot(old)
			snap, err := s.members[old].WaitIndex(ctx, made.Index)
			if err != nil {
				t.Fatal(err)
			}
			if snap.TaskByName("web") == nil {
				t.Error("the state lacks what was committed")
			}
		}
		if n := segments(t, filepath.Join(s.dir, old, "wal")); n < 2 {
			t.Errorf("%d segments: nothing was replaced", n)
		}
		for _, id := range s.ids {
			s.crash(id)
		}
	})
}

func segments(t *testing.T, dir string) int {
	all, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

var _ io.Closer = (*files)(nil)
