package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"github.com/drover/drover/agent/logs"
	"github.com/drover/drover/agent/task"
)

// lines cuts records into docker's lines: each stream has its own.
type lines struct {
	o    task.LogOptions
	open [3]bool // by stream: inside a line
	skip [3]bool // by stream: the line began before what is shown
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

// each calls f with every piece of a line in r: where it begins in the data, and
// whether it begins a line.
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

// mark is where a line begins.
type mark struct {
	off uint64
	at  int
}

// Logs implements task.Engine.
func (e *Engine) Logs(_ context.Context, id string, o task.LogOptions) (task.LogReader, error) {
	if _, err := e.readSpec(id); err != nil {
		return nil, err
	}
	a, err := e.readAttempt(id)
	if err != nil {
		return nil, err
	}
	var from mark
	if o.Tail >= 0 {
		if from, err = e.lastLines(id, o); err != nil {
			return nil, err
		}
	}
	// A log that is followed ends with the attempt, what lies behind it too; one
	// that isn't, where it is now.
	t, err := e.newTail(id, max(1, a.Number), o.Follow, from.off)
	if err != nil {
		return nil, err
	}
	l := &lines{o: o}
	if o.Tail >= 0 {
		l.skip = [3]bool{true, true, true}
	}
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
		if l.skip[r.Stream] && !first && r.Offset == from.off && at == from.at {
			first = true // what was before it is not read, but the line begins here
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

// lastLines finds where the last o.Tail lines begin.
func (e *Engine) lastLines(id string, o task.LogOptions) (mark, error) {
	end, err := logs.End(e.o.logDir(id))
	if err != nil || o.Tail == 0 {
		return mark{off: end}, err
	}
	ring := make([]mark, 0, min(o.Tail, 1<<12))
	next := 0
	l := &lines{o: o}
	r := logs.NewReader(e.o.logDir(id), 0)
	defer func() { _ = r.Close() }()
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) || err == nil && rec.Offset >= end {
			break
		}
		if err != nil {
			return mark{}, err
		}
		if !l.wanted(rec) {
			continue
		}
		within := l.inTime(rec.Time)
		l.each(rec, func(at int, _ []byte, first bool) {
			switch {
			case !first || !within:
			case len(ring) < o.Tail:
				ring = append(ring, mark{rec.Offset, at})
			default:
				ring[next] = mark{rec.Offset, at}
				next = (next + 1) % o.Tail
			}
		})
	}
	if len(ring) == 0 {
		return mark{off: end}, nil
	}
	return ring[next%len(ring)], nil
}
