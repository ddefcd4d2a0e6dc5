package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"
)

var at = time.Unix(1_700_000_000, 42)

func all(t *testing.T, r *Reader) (out []byte) {
	t.Helper()
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, rec.Data...)
	}
}

func TestWhatWasWrittenIsReadInOrderFromAnyOffset(t *testing.T) {
	dir := t.TempDir()
	w, err := OpenWriter(dir, Limits{SegmentBytes: 1000, Segments: 1000})
	if err != nil {
		t.Fatal(err)
	}
	var want []byte
	for i := range 500 {
		line := fmt.Appendf(nil, "line %d\n", i)
		want = append(want, line...)
		if err := w.Write(Stdout+byte(i%2), at.Add(time.Duration(i)), line); err != nil {
			t.Fatal(err)
		}
	}
	big := bytes.Repeat([]byte("x"), 3*MaxPayload+7)
	if err := w.Write(Stdout, at, big); err != nil {
		t.Fatal(err)
	}
	if got := all(t, NewReader(dir, 0)); !bytes.Equal(got, append(want, big...)) {
		t.Fatalf("read %d bytes, wrote %d", len(got), len(want)+len(big))
	}
	r := NewReader(dir, 0)
	for range 123 {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	rec, err := NewReader(dir, r.Offset()).Next()
	if err != nil || string(rec.Data) != "line 123\n" || rec.Stream != Stderr || !rec.Time.Equal(at.Add(123)) {
		t.Fatalf("from offset %d: %q %d %v, %v", r.Offset(), rec.Data, rec.Stream, rec.Time, err)
	}
	if end, err := End(dir); err != nil || end != w.End() {
		t.Fatalf("end %d, the writer says %d (%v)", end, w.End(), err)
	}
}

func TestATornTailIsIgnoredAndCutOffByTheNextWriter(t *testing.T) {
	for cut := int64(1); cut < headerSize+6; cut += 5 {
		dir := t.TempDir()
		w, err := OpenWriter(dir, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		_ = w.Write(Stdout, at, []byte("whole\n"))
		end := w.End()
		_ = w.Write(Stdout, at, []byte("torn!\n"))
		_ = w.Close()
		if err := os.Truncate(segmentFile(dir, 0), int64(w.End())-cut); err != nil {
			t.Fatal(err)
		}
		r := NewReader(dir, 0)
		if got := all(t, r); string(got) != "whole\n" {
			t.Fatalf("cut by %d: read %q", cut, got)
		}
		w, err = OpenWriter(dir, Limits{})
		if err != nil || w.End() != end {
			t.Fatalf("cut by %d: the writer goes on at %d, want %d (%v)", cut, w.End(), end, err)
		}
		_ = w.Write(Stdout, at, []byte("again\n"))
		if got := all(t, r); string(got) != "again\n" { // the same reader goes on
			t.Fatalf("cut by %d: read %q after the new writer", cut, got)
		}
	}
}

func TestRotationKeepsTheNewestAndReadersGoOn(t *testing.T) {
	dir := t.TempDir()
	w, err := OpenWriter(dir, Limits{SegmentBytes: 200, Segments: 3})
	if err != nil {
		t.Fatal(err)
	}
	slow := NewReader(dir, 0)
	for i := range 100 {
		_ = w.Write(Stdout, at, fmt.Appendf(nil, "%03d\n", i))
		if i == 2 {
			if _, err := slow.Next(); err != nil {
				t.Fatal(err)
			}
		}
	}
	segs, err := Segments(dir)
	if err != nil || len(segs) != 3 {
		t.Fatalf("segments %v %v", segs, err)
	}
	got := all(t, NewReader(dir, 0))
	if !bytes.HasSuffix(got, []byte("098\n099\n")) || len(got)%4 != 0 {
		t.Fatalf("read %q", got)
	}
	if rest := all(t, slow); !bytes.HasSuffix(rest, []byte("099\n")) {
		t.Fatalf("the slow reader got %q", rest)
	}
}

func TestAReaderThatFollowsAWriterLosesAndDoublesNothing(t *testing.T) {
	dir := t.TempDir()
	w, err := OpenWriter(dir, Limits{SegmentBytes: 4000, Segments: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	const n = 20_000
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range n {
			if err := w.Write(Stdout, at, fmt.Appendf(nil, "%06d\n", i)); err != nil {
				t.Error(err)
			}
		}
	})
	r, next := NewReader(dir, 0), 0
	for next < n {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("%06d\n", next); string(rec.Data) != want {
			t.Fatalf("read %q, want %q", rec.Data, want)
		}
		next++
	}
	wg.Wait()
}

func TestALogGoesOnAfterARotationThatFailed(t *testing.T) {
	dir := t.TempDir()
	w, err := OpenWriter(dir, Limits{SegmentBytes: 2 * (headerSize + 4), Segments: 2})
	if err != nil {
		t.Fatal(err)
	}
	put := func(n int) error { return w.Write(Stdout, at, fmt.Appendf(nil, "%03d\n", n)) }
	if err := errors.Join(put(0), put(1)); err != nil {
		t.Fatal(err)
	}
	full := segmentFile(dir, w.End()) // the next segment can't be made
	if err := os.Mkdir(full, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if put(2) == nil {
			t.Fatal("a record went into a folder")
		}
	}
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(put(3), put(4)); err != nil {
		t.Fatal(err)
	}
	if got := all(t, NewReader(dir, 0)); string(got) != "000\n001\n003\n004\n" {
		t.Fatalf("read %q", got)
	}
	// An old segment that can't be removed costs no record.
	if err := os.Remove(segmentFile(dir, 0)); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(segmentFile(dir, 0)+"/in the way", 0o700); err != nil {
		t.Fatal(err)
	}
	if put(5) == nil {
		t.Fatal("nobody is told that an old segment stays")
	}
	if err := put(6); err != nil {
		t.Fatal(err)
	}
	if got := all(t, NewReader(dir, 2*(headerSize+4))); string(got) != "003\n004\n005\n006\n" {
		t.Fatalf("read %q", got)
	}
}

func TestReadingTakesOneBuffer(t *testing.T) {
	dir := t.TempDir()
	w, err := OpenWriter(dir, Limits{SegmentBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	r := NewReader(dir, 0)
	read := func() {
		if err := w.Write(Stdout, at, []byte("a line of output\n")); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	read()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const n = 1000
	for range n {
		read()
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / n; each > 1<<12 {
		t.Fatalf("%d bytes for each record of a log that is followed", each)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(appendRecord(nil, Stdout, at, []byte("hello")))
	f.Add([]byte{1, 1, 0, 0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, err := decode(b, 7)
		if err != nil {
			return
		}
		if again := appendRecord(nil, rec.Stream, rec.Time, rec.Data); len(again) != int(rec.Next-rec.Offset) || !bytes.Equal(rec.Data, again[headerSize:]) {
			t.Fatalf("%x was read as %+v", b, rec)
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	w, err := OpenWriter(b.TempDir(), Limits{})
	if err != nil {
		b.Fatal(err)
	}
	chunk := bytes.Repeat([]byte("0123456789012345678901234567890123456789012345678901234567890123456789\n"), 450)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		if err := w.Write(Stdout, at, chunk); err != nil {
			b.Fatal(err)
		}
	}
}
