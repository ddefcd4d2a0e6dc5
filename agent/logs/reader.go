package logs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Reader reads a log from an offset on. io.EOF means that there is no more yet: Next
// continues once more was written. Not safe for concurrent use.
type Reader struct {
	dir string
	at  uint64
	seg *segmentReader
	mem []byte // of the last segment's reader, reused by the next one
}

// NewReader reads the log in dir from offset from, skipping what was rotated away. A
// missing log counts as empty.
func NewReader(dir string, from uint64) *Reader { return &Reader{dir: dir, at: from} }

// Offset returns where the next record begins.
func (r *Reader) Offset() uint64 { return r.at }

// Next returns the next record. Its data is valid until the next call.
func (r *Reader) Next() (Record, error) {
	for {
		if r.seg == nil {
			if err := r.open(); err != nil {
				return Record{}, err
			}
		}
		rec, err := r.seg.next()
		if err == nil {
			if rec.Next <= r.at { // the requested offset lies further on
				continue
			}
			r.at = rec.Next
			return rec, nil
		}
		if !errors.Is(err, io.EOF) {
			return Record{}, err
		}
		more, err := r.ended()
		if err != nil || !more {
			return Record{}, errors.Join(err, io.EOF)
		}
	}
}

// ended closes a segment after the writer has moved on to the next one. A record that
// was written between our last read and the rotation is read first.
func (r *Reader) ended() (bool, error) {
	segs, err := Segments(r.dir)
	if err != nil {
		return false, err
	}
	if len(segs) == 0 || segs[len(segs)-1] <= r.seg.base {
		return false, nil
	}
	if r.seg.peek() == nil {
		return true, nil
	}
	next := segs[len(segs)-1]
	for _, s := range segs {
		if s > r.seg.base {
			next = s
			break
		}
	}
	r.at = max(r.at, next)
	return true, r.Close()
}

func (r *Reader) open() error {
	segs, err := Segments(r.dir)
	if err != nil {
		return err
	}
	if len(segs) == 0 {
		return io.EOF
	}
	base := segs[0]
	for _, s := range segs {
		if s <= r.at {
			base = s
		}
	}
	f, err := os.Open(segmentFile(r.dir, base))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // rotated away just now: retry
	}
	if err != nil {
		return fmt.Errorf("reading the log: %w", err)
	}
	r.seg = &segmentReader{f: f, base: base, mem: r.mem}
	r.at = max(r.at, base)
	return nil
}

// Close closes the file; Next opens it again.
func (r *Reader) Close() error {
	if r.seg == nil {
		return nil
	}
	f := r.seg.f
	r.seg, r.mem = nil, r.seg.mem
	return f.Close()
}

// End returns the offset after the last whole record of the log in dir.
func End(dir string) (uint64, error) {
	segs, err := Segments(dir)
	if err != nil || len(segs) == 0 {
		return 0, err
	}
	base := segs[len(segs)-1]
	f, err := os.Open(segmentFile(dir, base))
	if err != nil {
		return 0, fmt.Errorf("reading the log: %w", err)
	}
	defer func() { _ = f.Close() }()
	n, err := validLength(f, base)
	return base + uint64(n), err
}

// segmentReader reads one segment; at is its position.
type segmentReader struct {
	f    *os.File
	base uint64
	at   uint64
	buf  []byte // read ahead, from at on: a part of mem
	mem  []byte
}

func (s *segmentReader) next() (Record, error) {
	rec, err := decode(s.buf, s.base+s.at)
	if errors.Is(err, errShort) {
		if err = s.fill(); err == nil {
			rec, err = decode(s.buf, s.base+s.at)
		}
	}
	if err != nil {
		// Torn, or not a record: the end, until a writer has repaired it.
		s.buf = nil
		return Record{}, io.EOF
	}
	n := rec.Next - rec.Offset
	s.buf = s.buf[n:]
	s.at += n
	return rec, nil
}

// peek reports whether a whole record follows.
func (s *segmentReader) peek() error {
	if err := s.fill(); err != nil {
		return err
	}
	_, err := decode(s.buf, s.base+s.at)
	return err
}

// fill reads ahead from at: at most four records of the largest size.
func (s *segmentReader) fill() error {
	if s.mem == nil {
		s.mem = make([]byte, 4*(headerSize+MaxPayload))
	}
	n, err := s.f.ReadAt(s.mem, int64(s.at))
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading the log %s: %w", s.f.Name(), err)
	}
	s.buf = s.mem[:n]
	return nil
}
