package logs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Limits bound a log on disk. Zero values take the defaults.
type Limits struct {
	SegmentBytes int64 // a segment of this length is closed
	Segments     int   // the oldest segments beyond this number are removed
}

// Default limits of a container's log.
const (
	DefaultSegmentBytes = 64 << 20
	DefaultSegments     = 8
)

// Writer appends to a log. There is one writer at a time: the container's shim.
// Safe for concurrent use.
type Writer struct {
	dir string
	lim Limits

	mu   sync.Mutex // guards the fields below, and the order of records
	f    *os.File
	base uint64 // offset of the segment's first byte
	size int64
	buf  []byte
}

// OpenWriter opens the log in dir for appending, and truncates a torn tail.
func OpenWriter(dir string, lim Limits) (*Writer, error) {
	if lim.SegmentBytes <= 0 {
		lim.SegmentBytes = DefaultSegmentBytes
	}
	if lim.Segments <= 0 {
		lim.Segments = DefaultSegments
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	w := &Writer{dir: dir, lim: lim}
	segs, err := Segments(dir)
	if err != nil {
		return nil, err
	}
	if len(segs) > 0 {
		w.base = segs[len(segs)-1]
	}
	if w.f, err = openSegment(dir, w.base); err != nil {
		return nil, err
	}
	if w.size, err = validLength(w.f, w.base); err == nil {
		err = w.f.Truncate(w.size)
	}
	if err == nil {
		_, err = w.f.Seek(w.size, io.SeekStart)
	}
	if err != nil {
		_ = w.f.Close()
		return nil, fmt.Errorf("opening the log %s: %w", w.f.Name(), err)
	}
	return w, nil
}

// Write appends data as records of stream with the given time, with one system call per
// record.
func (w *Writer) Write(stream byte, at time.Time, data []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var old error // failing to remove old segments does not block new records
	for len(data) > 0 {
		n := min(len(data), MaxPayload)
		w.buf = appendRecord(w.buf[:0], stream, at, data[:n])
		if w.size > 0 && w.size+int64(len(w.buf)) > w.lim.SegmentBytes {
			if err := w.rotate(); err != nil {
				return err
			}
			old = w.prune()
		}
		if _, err := w.f.Write(w.buf); err != nil {
			_ = w.f.Truncate(w.size) // half a record would hide all that follow
			_, _ = w.f.Seek(w.size, io.SeekStart)
			return fmt.Errorf("writing the log %s: %w", w.f.Name(), err)
		}
		w.size += int64(len(w.buf))
		data = data[n:]
	}
	return old
}

// End returns the offset after the last record.
func (w *Writer) End() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.base + uint64(w.size)
}

// Close closes the log.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.f.Close()
}

// rotate continues in a new segment. If it can't be created, the old one is kept, and
// the next record retries.
func (w *Writer) rotate() error {
	base := w.base + uint64(w.size)
	f, err := openSegment(w.dir, base)
	if err != nil {
		return err
	}
	_ = w.f.Close()
	w.f, w.base, w.size = f, base, 0
	return nil
}

// prune removes the oldest segments above the limit.
func (w *Writer) prune() error {
	segs, err := Segments(w.dir)
	if err != nil {
		return err
	}
	for ; len(segs) > w.lim.Segments; segs = segs[1:] {
		if err := os.Remove(segmentFile(w.dir, segs[0])); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing an old part of the log: %w", err)
		}
	}
	return nil
}

func openSegment(dir string, base uint64) (*os.File, error) {
	f, err := os.OpenFile(segmentFile(dir, base), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	return f, nil
}

// validLength returns how much of f consists of whole records.
func validLength(f *os.File, base uint64) (int64, error) {
	r := &segmentReader{f: f, base: base}
	for {
		if _, err := r.next(); errors.Is(err, io.EOF) {
			return int64(r.at), nil
		} else if err != nil {
			return 0, err
		}
	}
}

func segmentFile(dir string, base uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%020d.log", base))
}

// Segments returns the first offsets of the log's segments, ascending. A missing log has
// none.
func Segments(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the log: %w", err)
	}
	var out []uint64
	for _, e := range entries {
		s, ok := strings.CutSuffix(e.Name(), ".log")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(s, 10, 64); err == nil {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}
