package each

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// Bounds of the output that is held back so that equal output can be folded together.
const (
	holdFor  = time.Second
	holdMost = 256 << 10 // bytes
	perLine  = 24        // bytes that a line takes besides its text
)

// folder writes the output of many nodes, line by line, prefixed with their names. It
// holds output back for a moment, so that lines which several nodes print alike are
// written once, with all of their names.
type folder struct {
	out, errs io.Writer
	width     int
	sources   []*source

	mu    sync.Mutex // guards the fields below, and what sources hold
	held  int
	timer *time.Timer // runs while something is held
	over  bool
}

// source is one node's output.
type source struct {
	node  string
	lines []line
}

type line struct {
	errs bool
	text string
}

func newFolder(out, errs io.Writer, nodes []string) *folder {
	f := &folder{out: out, errs: errs}
	for _, n := range nodes {
		f.sources = append(f.sources, &source{node: n})
		f.width = max(f.width, len(n))
	}
	return f
}

// writer returns a node's stdout or stderr. Close writes the rest of an unterminated
// line.
func (f *folder) writer(i int, errs bool) io.WriteCloser {
	return &lineWriter{line: func(text string) { f.take(i, line{errs, text}) }}
}

func (f *folder) take(i int, l line) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sources[i].lines = append(f.sources[i].lines, l)
	f.held += len(l.text) + perLine
	switch {
	case f.over || f.held > holdMost:
		f.flush()
	case f.timer == nil:
		f.timer = time.AfterFunc(holdFor, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.flush()
		})
	}
}

// close writes what is held back.
func (f *folder) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over = true
	f.flush()
}

// flush must be called with mu held.
func (f *folder) flush() {
	if f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
	f.held = 0
	for i, s := range f.sources {
		if len(s.lines) == 0 {
			continue
		}
		nodes := []string{s.node}
		for _, o := range f.sources[i+1:] {
			if slices.Equal(o.lines, s.lines) {
				nodes = append(nodes, o.node)
				o.lines = nil
			}
		}
		f.write(nodes, s.lines)
		s.lines = nil
	}
}

func (f *folder) write(nodes []string, lines []line) {
	label := strings.Join(nodes, ", ")
	if len(nodes) > 4 {
		label = fmt.Sprintf("%d nodes (%s … %s)", len(nodes), nodes[0], nodes[len(nodes)-1])
	}
	for _, l := range lines {
		to := f.out
		if l.errs {
			to = f.errs
		}
		_, _ = fmt.Fprintf(to, "%-*s | %s\n", f.width, label, l.text)
	}
}

// lineWriter calls line for each line that is written to it. Not safe for concurrent use.
type lineWriter struct {
	line func(string)
	part []byte
}

// Write implements io.Writer.
func (w *lineWriter) Write(p []byte) (int, error) {
	w.part = append(w.part, p...)
	for {
		text, rest, whole := bytes.Cut(w.part, []byte("\n"))
		if !whole {
			break
		}
		w.line(string(text))
		w.part = rest
	}
	if len(w.part) > holdMost { // an overlong line is split
		w.line(string(w.part))
		w.part = nil
	}
	return len(p), nil
}

// Close implements io.Closer.
func (w *lineWriter) Close() error {
	if len(w.part) > 0 {
		w.line(string(w.part))
		w.part = nil
	}
	return nil
}
