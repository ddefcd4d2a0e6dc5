package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/drover/drover/agent/logs"
	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/bulk"
)

func logWriter(t *testing.T, e *Engine, segment int64) *logs.Writer {
	t.Helper()
	w, err := logs.OpenWriter(e.o.logDir(testID), logs.Limits{SegmentBytes: segment, Segments: 1000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	return w
}

// The most lines for the fewest bytes, and more asked for than there can be.
func TestTheLastLinesTakeTheMemoryOfABuffer(t *testing.T) {
	e := bare(t)
	w := logWriter(t, e, 1<<20)
	b := bytes.Repeat([]byte("\n"), logs.MaxPayload)
	const size = 16 << 20
	for range size / len(b) {
		if err := w.Write(logs.Stdout, time.Now(), b); err != nil {
			t.Fatal(err)
		}
	}
	for _, tail := range []int{1, size / 2, 1 << 40} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		m, err := e.lastLines(testID, task.LogOptions{Stdout: true, Stderr: true, Tail: tail})
		runtime.ReadMemStats(&after)
		if err != nil || (tail > size) != (m.off == 0) {
			t.Errorf("the last %d lines begin at %+v (%v)", tail, m, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > size {
			t.Errorf("the last %d lines took %d bytes", tail, n)
		}
	}
}

// piece is what the reference keeps of a log: a part of a line in one record.
type piece struct {
	stream byte
	at     time.Time
	first  bool
	data   []byte
}

// lastOf is what is shown of pieces, without a thought of segments.
func lastOf(pieces []piece, o task.LogOptions) string {
	in := func(p piece) bool {
		return (p.stream == logs.Stdout && o.Stdout || p.stream == logs.Stderr && o.Stderr) && !p.at.Before(o.Since)
	}
	from, left := 0, o.Tail
	for i := len(pieces) - 1; i >= 0 && left > 0; i-- {
		if p := pieces[i]; in(p) && p.first {
			from = i
			left--
		}
	}
	if left == o.Tail {
		return ""
	}
	if left > 0 {
		from = 0
	}
	var out shown
	var begun [3]bool
	for _, p := range pieces[from:] {
		if begun[p.stream] = begun[p.stream] || p.first; in(p) && begun[p.stream] {
			out.add(p.stream, p.data)
		}
	}
	return out.b.String()
}

// shown is output with its streams, however it was cut.
type shown struct {
	b    bytes.Buffer
	last byte
}

func (s *shown) add(stream byte, data []byte) {
	if stream != s.last {
		fmt.Fprintf(&s.b, "<%d>", stream)
		s.last = stream
	}
	s.b.Write(data)
}

func read(t *testing.T, e *Engine, o task.LogOptions) string {
	t.Helper()
	r, err := e.Logs(t.Context(), testID, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	var out shown
	for fr := bulk.NewFrameReader(r); ; {
		kind, p, err := fr.Next()
		if errors.Is(err, io.EOF) {
			return out.b.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		if kind != bulk.FramePos {
			out.add(kind, p)
		}
	}
}

func TestTheLastLinesAreThoseThatBeganLast(t *testing.T) {
	for seed := range uint64(25) {
		rng := rand.New(rand.NewPCG(seed, 0))
		e := bare(t)
		w := logWriter(t, e, int64(60+rng.IntN(300)))
		began := time.Unix(1_700_000_000, 0)
		var pieces []piece
		var inside [3]bool
		for i := range rng.IntN(60) {
			stream := logs.Stdout
			if rng.IntN(4) == 0 {
				stream = logs.Stderr
			}
			var data []byte
			for range 1 + rng.IntN(3) {
				data = fmt.Appendf(data, "%d.", i)
				if rng.IntN(3) > 0 {
					data = append(data, '\n')
				}
			}
			at := began.Add(time.Duration(i) * time.Second)
			if err := w.Write(stream, at, data); err != nil {
				t.Fatal(err)
			}
			for _, p := range bytes.SplitAfter(data, []byte("\n")) {
				if len(p) > 0 {
					pieces = append(pieces, piece{stream, at, !inside[stream], p})
					inside[stream] = !bytes.HasSuffix(p, []byte("\n"))
				}
			}
		}
		for range 20 {
			o := task.LogOptions{Stdout: rng.IntN(4) > 0, Stderr: rng.IntN(4) > 0, Tail: rng.IntN(40)}
			if rng.IntN(3) == 0 {
				o.Since = began.Add(time.Duration(rng.IntN(60)) * time.Second)
			}
			if got, want := read(t, e, o), lastOf(pieces, o); got != want {
				t.Fatalf("seed %d, %+v:\n%q, want\n%q", seed, o, got, want)
			}
		}
	}
}
