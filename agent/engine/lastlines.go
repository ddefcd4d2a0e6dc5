package engine

import (
	"errors"
	"io"

	"github.com/drover/drover/agent/logs"
	"github.com/drover/drover/agent/task"
)

// mark is where a line begins: at byte at of the record at offset off. open tells which
// streams are inside a line where that record begins.
type mark struct {
	off  uint64
	at   int
	open [3]bool
}

// part counts the lines in one segment of a log.
type part struct {
	from, to uint64
	starts   int // lines that begin in it, except heads
	streams  [3]struct {
		seen   bool
		head   bool // whether the first piece begins a line that counts
		before int  // starts before that piece
		open   bool // at the end
	}
}

// lastLines finds where the last o.Tail lines begin. It reads the log's segments from
// the newest backwards until they hold enough lines, and then one of them again.
func (e *Engine) lastLines(id string, o task.LogOptions) (mark, error) {
	dir := e.o.logDir(id)
	end, err := logs.End(dir)
	if err != nil || o.Tail == 0 {
		return mark{off: end}, err
	}
	segs, err := logs.Segments(dir)
	if err != nil {
		return mark{}, err
	}
	var parts []part // newest first
	for to := end; len(segs) > 0 && !enough(parts, o.Tail); segs = segs[:len(segs)-1] {
		p, err := count(dir, segs[len(segs)-1], to, o)
		if err != nil {
			return mark{}, err
		}
		parts, to = append(parts, p), p.from
	}
	left := o.Tail
	for i, p := range parts {
		open := openBefore(parts[i+1:])
		n := p.starts
		for s, x := range p.streams {
			if x.head && !open[s] {
				n++
			}
		}
		if n >= left {
			return start(dir, p, open, n-left, o)
		}
		left -= n
	}
	if left == o.Tail {
		return mark{off: end}, nil
	}
	return mark{off: parts[len(parts)-1].from}, nil
}

// enough reports whether the last tail lines begin in parts, and for each piece it is
// known whether it begins one of them.
func enough(parts []part, tail int) bool {
	n := 0
	for i, p := range parts {
		for s, x := range p.streams {
			if x.head && n+p.starts-x.before < tail && !seen(parts[i+1:], s) {
				return false
			}
		}
		if n += p.starts; n >= tail {
			return true
		}
	}
	return false
}

func seen(older []part, stream int) bool {
	for _, p := range older {
		if p.streams[stream].seen {
			return true
		}
	}
	return false
}

// openBefore reports which streams are inside a line at the end of the newest of parts.
func openBefore(parts []part) (open [3]bool) {
	for s := range open {
		for _, p := range parts {
			if p.streams[s].seen {
				open[s] = p.streams[s].open
				break
			}
		}
	}
	return open
}

// count counts the lines that begin between two offsets.
func count(dir string, from, to uint64, o task.LogOptions) (part, error) {
	p := part{from: from, to: to}
	l := &lines{o: o}
	err := l.walk(dir, from, to, func(r logs.Record, _ int, first bool) bool {
		x := &p.streams[r.Stream]
		switch {
		case !x.seen:
			x.seen, x.head, x.before = true, l.inTime(r.Time), p.starts
		case first && l.inTime(r.Time):
			p.starts++
		}
		return true
	})
	for s := range p.streams {
		p.streams[s].open = l.open[s]
	}
	return p, err
}

// start finds where the line begins that follows skip others of p.
func start(dir string, p part, open [3]bool, skip int, o task.LogOptions) (mark, error) {
	l := &lines{o: o, open: open}
	m := mark{off: p.to}
	var here uint64
	err := l.walk(dir, p.from, p.to, func(r logs.Record, at int, first bool) bool {
		if at == 0 {
			here, open = r.Offset, l.open
		}
		if !first || !l.inTime(r.Time) {
			return true
		}
		if skip--; skip < 0 {
			m = mark{off: here, at: at, open: open}
		}
		return skip >= 0
	})
	return m, err
}

// walk calls f with each piece of a wanted line between two offsets, until f returns
// false.
func (l *lines) walk(dir string, from, to uint64, f func(r logs.Record, at int, first bool) bool) error {
	r := logs.NewReader(dir, from)
	defer func() { _ = r.Close() }()
	for on := true; on; {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) || err == nil && rec.Offset >= to {
			return nil
		}
		if err != nil {
			return err
		}
		if l.wanted(rec) {
			l.each(rec, func(at int, _ []byte, first bool) { on = on && f(rec, at, first) })
		}
	}
	return nil
}
