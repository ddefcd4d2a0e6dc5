package state

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"google.golang.org/protobuf/proto"
)

// A snapshot file is the magic, followed by sections: name (1 byte length), count
// and length (4 bytes each, big-endian), payload, and a CRC-32C over all of these. A
// payload is a list of records, each with a 4-byte length. A large kind has several
// sections, so that a reader needs a bounded buffer. "head" comes first; "end" is
// last and holds the state hash.
const (
	magic       = "drover-state 1\n"
	sectionSize = 1 << 20
	maxSection  = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Hash returns a hash of the whole state, equal on members that agree: of the head and,
// for each kind, its section's name and its records.
func (s *Snapshot) Hash() [32]byte {
	h := sha256.New()
	h.Write(s.head())
	var buf []byte
	for _, k := range table {
		h.Write([]byte(k.section()))
		for m := range k.records(s) {
			buf = appendRecord(buf[:0], m)
			h.Write(buf)
		}
	}
	return [32]byte(h.Sum(nil))
}

func (s *Snapshot) head() []byte {
	b := binary.BigEndian.AppendUint64(nil, s.index)
	return binary.BigEndian.AppendUint64(b, uint64(s.time))
}

func appendRecord(b []byte, m proto.Message) []byte {
	at := len(b)
	b = append(b, 0, 0, 0, 0)
	// Marshalling fails only for invalid UTF-8, which unmarshalling has refused.
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(b, m)
	if err != nil {
		panic(fmt.Sprintf("state holds a message that can't be encoded: %v", err))
	}
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b
}

// Write writes s as a snapshot file.
func (s *Snapshot) Write(w io.Writer) error {
	if _, err := io.WriteString(w, magic); err != nil {
		return err
	}
	if err := writeSection(w, "head", 1, s.head()); err != nil {
		return err
	}
	hash := sha256.New() // as Hash has it
	hash.Write(s.head())
	var buf []byte
	for _, k := range table {
		hash.Write([]byte(k.section()))
		buf = buf[:0]
		n := uint32(0)
		for m := range k.records(s) {
			buf = appendRecord(buf, m)
			n++
			if len(buf) >= sectionSize {
				hash.Write(buf)
				if err := writeSection(w, k.section(), n, buf); err != nil {
					return err
				}
				buf, n = buf[:0], 0
			}
		}
		if n > 0 {
			hash.Write(buf)
			if err := writeSection(w, k.section(), n, buf); err != nil {
				return err
			}
		}
	}
	return writeSection(w, "end", 1, hash.Sum(nil))
}

func writeSection(w io.Writer, name string, count uint32, payload []byte) error {
	b := append([]byte{byte(len(name))}, name...)
	b = binary.BigEndian.AppendUint32(b, count)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	sum := crc32.Update(crc32.Checksum(b, castagnoli), castagnoli, payload)
	for _, p := range [][]byte{b, payload, binary.BigEndian.AppendUint32(nil, sum)} {
		if _, err := w.Write(p); err != nil {
			return fmt.Errorf("writing section %s: %w", name, err)
		}
	}
	return nil
}

// Read reads a snapshot file, completely or not at all.
func Read(r io.Reader) (*Snapshot, error) {
	br := bufio.NewReader(r)
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(br, head); err != nil || string(head) != magic {
		return nil, errors.New("not a drover state snapshot of a known version")
	}
	t := NewTxn(empty())
	for first := true; ; first = false {
		name, count, payload, err := readSection(br)
		if err != nil {
			return nil, err
		}
		switch {
		case first != (name == "head"):
			return nil, errors.New("the head section is missing or misplaced")
		case first:
			if len(payload) != 16 {
				return nil, errors.New("the head section is malformed")
			}
			t.index = binary.BigEndian.Uint64(payload)
			t.time = int64(binary.BigEndian.Uint64(payload[8:]))
		case name == "end":
			for _, k := range table {
				if err := k.load(t); err != nil {
					return nil, fmt.Errorf("section %s: %w", k.section(), err)
				}
			}
			if hash := t.Hash(); !bytes.Equal(payload, hash[:]) {
				return nil, errors.New("state hash mismatch")
			}
			return t.done(), nil
		default:
			if err := t.readRecords(name, count, payload); err != nil {
				return nil, fmt.Errorf("section %s: %w", name, err)
			}
		}
	}
}

func readSection(r *bufio.Reader) (name string, count uint32, payload []byte, err error) {
	long, err := r.ReadByte()
	if err != nil {
		return "", 0, nil, fmt.Errorf("truncated: %w", err)
	}
	n := int(long) // offsets after the longest names don't fit a byte
	hdr := make([]byte, 1+n+8)
	hdr[0] = long
	if _, err := io.ReadFull(r, hdr[1:]); err != nil {
		return "", 0, nil, fmt.Errorf("truncated: %w", err)
	}
	name = string(hdr[1 : 1+n])
	count = binary.BigEndian.Uint32(hdr[1+n:])
	size := binary.BigEndian.Uint32(hdr[5+n:])
	if size > maxSection {
		return "", 0, nil, fmt.Errorf("section %q claims %d bytes", name, size)
	}
	// Read what is there instead of allocating what is claimed.
	payload, err = io.ReadAll(io.LimitReader(r, int64(size)))
	var sum [4]byte
	if err == nil {
		_, err = io.ReadFull(r, sum[:])
	}
	if err != nil || len(payload) != int(size) {
		return "", 0, nil, fmt.Errorf("section %q is truncated", name)
	}
	if crc32.Update(crc32.Checksum(hdr, castagnoli), castagnoli, payload) != binary.BigEndian.Uint32(sum[:]) {
		return "", 0, nil, fmt.Errorf("section %q is damaged: checksum mismatch", name)
	}
	return name, count, payload, nil
}

func (t *Txn) readRecords(kind string, count uint32, p []byte) error {
	i := slices.IndexFunc(table, func(k row) bool { return k.section() == kind })
	if i < 0 {
		return errors.New("unknown kind: written by a newer version")
	}
	for ; len(p) > 0; count-- {
		if len(p) < 4 || count == 0 {
			return errors.New("malformed records")
		}
		n := binary.BigEndian.Uint32(p)
		if uint64(n) > uint64(len(p)-4) {
			return errors.New("truncated record")
		}
		if err := table[i].read(t, p[4:4+n]); err != nil {
			return err
		}
		p = p[4+n:]
	}
	if count != 0 {
		return errors.New("missing records")
	}
	return nil
}
