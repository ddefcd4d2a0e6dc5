package engine

import (
	"bytes"
	"context"
	"time"

	"github.com/drover/drover/agent/logs"
	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/life"
)

// lines splits records into docker's lines; each stream has its own.
type lines struct {
	o    task.LogOptions
	open [3]bool // by stream: inside a line
	skip [3]bool // by stream: the line began before what is shown
}

// state returns what a position has to keep of l.
func (l *lines) state() (b byte) {
	for i, set := range [...]bool{l.open[logs.Stdout], l.open[logs.Stderr], l.skip[logs.Stdout], l.skip[logs.Stderr]} {
		if set {
			b |= 1 << i
		}
	}
	return b
}

func (l *lines) restore(b byte) {
	l.open[logs.Stdout], l.open[logs.Stderr] = b&1 > 0, b&2 > 0
	l.skip[logs.Stdout], l.skip[logs.Stderr] = b&4 > 0, b&8 > 0
}

func (l *lines) wanted(r logs.Record) bool {
	switch r.Stream {
	case logs.Stdout:
		return l.o.Stdout
	case logs.Stderr:
		return l.o.Stderr
	}
	return false
}

func (l *lines) inTime(t time.Time) bool {
	return (l.o.Since.IsZero() || !t.Before(l.o.Since)) && (l.o.Until.IsZero() || !t.After(l.o.Until))
}

// each calls f with every piece of a line in r: where it begins in the data, and whether
// it begins a line.
func (l *lines) each(r logs.Record, f func(at int, piece []byte, first bool)) {
	for at, rest := 0, r.Data; len(rest) > 0; {
		n := bytes.IndexByte(rest, '\n') + 1
		ends := n > 0
		if !ends {
			n = len(rest)
		}
		f(at, rest[:n], !l.open[r.Stream])
		l.open[r.Stream] = !ends
		at, rest = at+n, rest[n:]
	}
}

// Logs implements task.Streams.
func (e *Engine) Logs(_ context.Context, id string, o task.LogOptions) (task.LogReader, error) {
	if _, err := e.readSpec(id); err != nil {
		return nil, err
	}
	a, err := e.readAttempt(id)
	if err != nil {
		return nil, err
	}
	var from mark
	l := &lines{o: o}
	// A followed log ends with the life, even if there is more after it; one that isn't
	// followed ends where it is now.
	of := a.life()
	if a.Number == 0 {
		of = life.First(1)
	}
	switch {
	case o.From != nil:
		of, from = o.From.Life, mark{off: o.From.Offset, at: int(o.From.At)}
		l.restore(o.From.Lines)
	case o.Tail >= 0:
		if from, err = e.lastLines(id, o); err != nil {
			return nil, err
		}
		l.open, l.skip = from.open, [3]bool{true, true, true}
	}
	t, err := e.newTail(id, task.LogPosition{Life: of, Offset: from.off, At: uint32(from.at), Lines: l.state()}, o.Follow)
	if err != nil {
		return nil, err
	}
	t.lines = l.state
	t.render = func(r logs.Record) []byte { return l.render(r, from) }
	return t, nil
}

func (l *lines) render(r logs.Record, from mark) []byte {
	if !l.wanted(r) {
		return nil
	}
	var out []byte
	within := l.inTime(r.Time)
	l.each(r, func(at int, piece []byte, first bool) {
		if r.Offset == from.off && at < from.at {
			return
		}
		if first {
			l.skip[r.Stream] = false
		}
		if l.skip[r.Stream] || !within {
			return
		}
		if first && l.o.Timestamps {
			out = r.Time.UTC().AppendFormat(out, "2006-01-02T15:04:05.000000000Z07:00")
			out = append(out, ' ')
		}
		out = append(out, piece...)
	})
	if len(out) == 0 {
		return nil
	}
	return frame(r.Stream, out)
}
