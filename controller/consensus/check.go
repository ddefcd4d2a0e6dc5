package consensus

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// A segment of raft-wal is a header, then frames of 8-byte aligned payloads:
// entries, at most one index (the entries' offsets), and commits, whose checksum
// covers everything since the commit before (raft-wal segment/format.go).
const (
	segmentHeader = 32
	frameHeader   = 8
)

// check reads every segment and completes what was left half done, where the file
// itself proves what is missing:
//
//   - a sealed segment without an index, which raft-wal 0.4.0 leaves when the log's
//     tail is replaced (hashicorp/raft-wal issue 31): the index is rebuilt from the
//     entries, each of which has a good checksum;
//   - a last segment that was sealed but has no successor, because the process died
//     in between: raft-wal refuses all writes to it;
//   - the rest of a torn write, which was never acknowledged: it is zeroed, since an
//     index in it would be taken for a seal.
//
// Anything else that can't be read is a *DamagedError, and nothing is changed.
func check(dir string, meta types.MetaStore, hl hclog.Logger) error {
	st, err := meta.Load(dir)
	if err != nil {
		err = fmt.Errorf("reading %s: %w", metadb.FileName, err)
		if _, is := errors.AsType[*fs.PathError](err); is {
			return err // an error of the file system, not of the content
		}
		return &DamagedError{Dir: dir, Err: err}
	}
	var todo []func() error
	changed := false
	for i := range st.Segments {
		si := &st.Segments[i]
		file := filepath.Join(dir, segment.FileName(*si))
		tail := si.SealTime.IsZero()
		if i > 0 && st.Segments[i-1].MaxIndex+1 != si.BaseIndex {
			return &DamagedError{Dir: dir, Err: fmt.Errorf("segment %s does not follow the previous one, which ends at %d", filepath.Base(file), st.Segments[i-1].MaxIndex)}
		}
		s, err := scan(file, *si)
		if tail && errors.Is(err, fs.ErrNotExist) {
			continue // created by Open, never written to
		}
		if err != nil {
			return &DamagedError{Dir: dir, Err: fmt.Errorf("segment %s: %w", filepath.Base(file), err)}
		}
		switch {
		case tail && s.index != 0:
			hl.Warn("the log's last segment was sealed without a successor: adding one", "segment", file)
			si.SealTime, si.IndexStart, si.MaxIndex = time.Now(), s.index, si.BaseIndex+uint64(len(s.offsets))-1
			st.Segments = append(st.Segments, types.SegmentInfo{ID: st.NextSegmentID, BaseIndex: si.MaxIndex + 1, MinIndex: si.MaxIndex + 1,
				SizeLimit: si.SizeLimit, Codec: si.Codec, CreateTime: time.Now()})
			st.NextSegmentID++
			changed = true
		case tail:
			todo = append(todo, func() error { return zero(file, s.end) })
		case si.IndexStart == 0 || si.IndexStart != s.index:
			hl.Warn("a segment of the log has no index: rebuilding it from the entries", "segment", file)
			if si.IndexStart = s.index; s.index == 0 {
				todo = append(todo, func() error { return s.seal(file) })
				si.IndexStart = uint64(s.end) + frameHeader
			}
			changed = true
		}
	}
	for _, do := range todo {
		if err := do(); err != nil {
			return fmt.Errorf("repairing the log in %s: %w", dir, err)
		}
	}
	if changed {
		if err := meta.CommitState(st); err != nil {
			return fmt.Errorf("repairing the log in %s: %w", dir, err)
		}
	}
	return nil
}

// scanned is the verified content of a segment.
type scanned struct {
	offsets []uint32 // of the entries' frames
	index   uint64   // offset of the index's data, 0 without one
	end     int64    // end of the last good commit
}

var errChecksum = errors.New("checksum mismatch")

// scan reads a segment up to its seal or its last good commit. A bad commit is taken
// for a torn write, unless a good one follows or a sealed segment lacks entries.
func scan(file string, si types.SegmentInfo) (*scanned, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read-only
	r := bufio.NewReaderSize(f, 1<<20)
	s, now := &scanned{}, &scanned{}
	head := make([]byte, segmentHeader)
	if _, err := io.ReadFull(r, head); err != nil {
		return s.whole(si, err)
	}
	sum := crc32.Checksum(head, castagnoli)
	at, torn := int64(segmentHeader), false
	for s.index == 0 {
		frame := make([]byte, frameHeader)
		if _, err := io.ReadFull(r, frame); err != nil {
			return s.whole(si, err)
		}
		size := binary.LittleEndian.Uint32(frame[4:])
		var payload []byte
		switch frame[0] {
		case segment.FrameEntry, segment.FrameIndex:
			if size > segment.MaxEntrySize {
				return s.whole(si, errChecksum)
			}
			if payload, err = io.ReadAll(io.LimitReader(r, int64(size+7)&^7)); err != nil || len(payload) < int(size) {
				return s.whole(si, io.ErrUnexpectedEOF)
			}
		case segment.FrameCommit:
			if size != sum {
				torn, sum = true, 0
				at += frameHeader
				continue
			}
			if torn {
				return nil, errChecksum
			}
			if s.end == 0 && (binary.LittleEndian.Uint64(head[8:]) != si.BaseIndex || binary.LittleEndian.Uint64(head[16:]) != si.ID) {
				return nil, errors.New("the file belongs to another segment")
			}
			sum = 0
			at += frameHeader
			now.end = at
			*s = scanned{offsets: now.offsets, index: now.index, end: at}
			continue
		default:
			return s.whole(si, errChecksum)
		}
		if frame[0] == segment.FrameIndex {
			now.index = uint64(at) + frameHeader
			if !torn && !bytes.Equal(payload, indexPayload(now.offsets)) {
				return s.whole(si, errors.New("the index does not match the entries"))
			}
		} else {
			if index, n := binary.Uvarint(payload); !torn && (n <= 0 || index != si.BaseIndex+uint64(len(now.offsets))) {
				return s.whole(si, fmt.Errorf("entry %d has index %d", si.BaseIndex+uint64(len(now.offsets)), index))
			}
			now.offsets = append(now.offsets, uint32(at))
		}
		sum = crc32.Update(crc32.Update(sum, castagnoli, frame), castagnoli, payload)
		at += frameHeader + int64(len(payload))
	}
	return s.whole(si, errChecksum)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// whole returns why if a sealed segment lacks entries.
func (s *scanned) whole(si types.SegmentInfo, why error) (*scanned, error) {
	if si.SealTime.IsZero() {
		return s, nil
	}
	if want := si.MaxIndex - si.BaseIndex + 1; si.MaxIndex < si.BaseIndex || uint64(len(s.offsets)) < want {
		return nil, fmt.Errorf("only %[3]d of the entries %[1]d to %[2]d can be read: %[4]w", si.BaseIndex, si.MaxIndex, len(s.offsets), why)
	}
	return s, nil
}

func indexPayload(offsets []uint32) []byte {
	var b []byte
	for _, o := range offsets {
		b = binary.LittleEndian.AppendUint32(b, o)
	}
	return append(b, make([]byte, (8-len(b)%8)%8)...)
}

// seal writes the index and its commit after the last good commit.
func (s *scanned) seal(file string) error {
	payload := indexPayload(s.offsets)
	b := append([]byte{segment.FrameIndex, 0, 0, 0}, binary.LittleEndian.AppendUint32(nil, uint32(4*len(s.offsets)))...)
	b = append(b, payload...)
	sum := crc32.Checksum(b, castagnoli)
	b = append(b, segment.FrameCommit, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, sum)
	return change(file, func(f *os.File) error {
		_, err := f.WriteAt(b, s.end)
		return err
	})
}

// zero overwrites a file with zeros from an offset on, skipping what is zero
// already.
func zero(file string, from int64) error {
	return change(file, func(f *os.File) error {
		buf, none := make([]byte, 1<<20), make([]byte, 1<<20)
		for {
			n, err := f.ReadAt(buf, from)
			if n > 0 && !bytes.Equal(buf[:n], none[:n]) {
				if _, err := f.WriteAt(none[:n], from); err != nil {
					return err
				}
			}
			from += int64(n)
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
}

func change(file string, how func(*os.File) error) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(how(f), f.Sync(), f.Close())
}
