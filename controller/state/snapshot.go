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
	"iter"

	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// A snapshot file is the magic, then sections: name (1 byte length), count
// and length (4 bytes each, big-endian), payload, CRC-32C over all of that.
// A payload is records, each with a 4-byte length. A kind with much in it has
// several sections, so that a reader needs a bounded buffer. "head" comes
// first; "end" is last and holds the state hash.
const (
	magic       = "drover-state 1\n"
	sectionSize = 1 << 20
	maxSection  = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// kinds lists what a snapshot holds, in the order that restoring needs:
// a task's index entries need its spec.
func (s *Snapshot) kinds() iter.Seq2[string, iter.Seq[proto.Message]] {
	return func(yield func(string, iter.Seq[proto.Message]) bool) {
		_ = yield("cluster", func(y func(proto.Message) bool) {
			if s.cluster != nil {
				y(s.cluster)
			}
		}) &&
			yield("spec", messages(s.specs)) && yield("run", messages(s.runs)) && yield("task", messages(s.tasks)) &&
			yield("tombstone", messages(s.tombstones)) && yield("node", messages(s.nodes)) &&
			yield("image", messages(s.images)) && yield("tag", messages(s.tags)) &&
			yield("identity", messages(s.identities)) && yield("sealed", messages(s.sealed)) &&
			yield("result", messages(s.results)) && yield("controller", messages(s.members)) &&
			yield("token", messages(s.tokens)) && yield("ended", messages(s.ended))
	}
}

func messages[M proto.Message](t tree[M]) iter.Seq[proto.Message] {
	return func(yield func(proto.Message) bool) {
		for m := range t.values("") {
			if !yield(m) {
				return
			}
		}
	}
}

// Hash is over everything in the state: equal on members that agree.
func (s *Snapshot) Hash() [32]byte {
	h := sha256.New()
	h.Write(s.head())
	var buf []byte
	for kind, all := range s.kinds() {
		h.Write([]byte(kind))
		for m := range all {
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
	// Marshalling fails only for invalid UTF-8, which unmarshalling refused.
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
	for kind, all := range s.kinds() {
		var buf []byte
		n := uint32(0)
		for m := range all {
			buf = appendRecord(buf, m)
			n++
			if len(buf) >= sectionSize {
				if err := writeSection(w, kind, n, buf); err != nil {
					return err
				}
				buf, n = buf[:0], 0
			}
		}
		if n > 0 {
			if err := writeSection(w, kind, n, buf); err != nil {
				return err
			}
		}
	}
	hash := s.Hash()
	return writeSection(w, "end", 1, hash[:])
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

// Read reads a snapshot file, all of it or an error.
func Read(r io.Reader) (*Snapshot, error) {
	br := bufio.NewReader(r)
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(br, head); err != nil || string(head) != magic {
		return nil, errors.New("not a drover state snapshot of a version known here")
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
			if hash := t.Hash(); !bytes.Equal(payload, hash[:]) {
				return nil, errors.New("the state hash differs from the one recorded")
			}
			return &t.Snapshot, nil
		default:
			if err := t.readRecords(name, count, payload); err != nil {
				return nil, fmt.Errorf("section %s: %w", name, err)
			}
		}
	}
}

func readSection(r *bufio.Reader) (name string, count uint32, payload []byte, err error) {
	n, err := r.ReadByte()
	if err != nil {
		return "", 0, nil, fmt.Errorf("it is cut off: %w", err)
	}
	hdr := make([]byte, 1+int(n)+8)
	hdr[0] = n
	if _, err := io.ReadFull(r, hdr[1:]); err != nil {
		return "", 0, nil, fmt.Errorf("it is cut off: %w", err)
	}
	name = string(hdr[1 : 1+n])
	count = binary.BigEndian.Uint32(hdr[1+n:])
	size := binary.BigEndian.Uint32(hdr[5+n:])
	if size > maxSection {
		return "", 0, nil, fmt.Errorf("section %q claims %d bytes", name, size)
	}
	// Read what is there rather than allocate what is claimed.
	payload, err = io.ReadAll(io.LimitReader(r, int64(size)))
	var sum [4]byte
	if err == nil {
		_, err = io.ReadFull(r, sum[:])
	}
	if err != nil || len(payload) != int(size) {
		return "", 0, nil, fmt.Errorf("section %q is cut off", name)
	}
	if crc32.Update(crc32.Checksum(hdr, castagnoli), castagnoli, payload) != binary.BigEndian.Uint32(sum[:]) {
		return "", 0, nil, fmt.Errorf("section %q is damaged: its checksum differs", name)
	}
	return name, count, payload, nil
}

func (t *Txn) readRecords(kind string, count uint32, p []byte) error {
	for ; len(p) > 0; count-- {
		if len(p) < 4 || count == 0 {
			return errors.New("malformed records")
		}
		n := binary.BigEndian.Uint32(p)
		if uint64(n) > uint64(len(p)-4) {
			return errors.New("a record is cut off")
		}
		if err := t.readRecord(kind, p[4:4+n]); err != nil {
			return err
		}
		p = p[4+n:]
	}
	if count != 0 {
		return errors.New("records are missing")
	}
	return nil
}

func (t *Txn) readRecord(kind string, b []byte) error {
	load := func(m proto.Message, e *dv1.Effect) error {
		if err := proto.Unmarshal(b, m); err != nil {
			return err
		}
		return t.Apply(e)
	}
	switch kind {
	case "cluster":
		m := &dv1.Cluster{}
		return load(m, &dv1.Effect{Of: &dv1.Effect_Cluster{Cluster: m}})
	case "spec":
		m := &dv1.Spec{}
		return load(m, &dv1.Effect{Of: &dv1.Effect_Spec{Spec: m}})
	case "run":
		m := &dv1.Run{}
		return load(m, &dv1.Effect{Of: &dv1.Effect_Run{Run: m}})
	case "task":
		m := &dv1.Task{}
		return load(m, &dv1.Effect{Of: &dv1.Effect_Task{Task: m}})
	case "tombstone":
		m := &dv1.Tombstone{}
		return load(m, &dv1.Effect{Of: &dv1.Effect_Tombstone{Tombstone: m}})
	case "node":
		m := &dv1.Node{}
		return load(m, &dv1.Effect{Of: &dv1.Effect_Node{Node: m}})
	case "image":
		m := &dv1.Image{}
		return load(m, &dv1.Effect{Of: &dv1.Effect_Image{Image: m}})
	case "tag":
		m := &dv1.Tag{}
		return load(m, &dv1.Effect{Of: &dv1.Effect_Tag{Tag: m}})
	case "identity":
		m := &dv1.Identity{}
		return load(m, &dv1.Effect{Of: &dv1.Effect_Identity{Identity: m}})
	case "sealed":
		m := &dv1.Sealed{}
		return load(m, &dv1.Effect{Of: &dv1.Effect_Sealed{Sealed: m}})
	case "controller":
		m := &dv1.Controller{}
		return load(m, &dv1.Effect{Of: &dv1.Effect_Controller{Controller: m}})
	case "token":
		m := &dv1.Token{}
		return load(m, &dv1.Effect{Of: &dv1.Effect_Token{Token: m}})
	case "ended":
		m := &dv1.Task{}
		return load(m, &dv1.Effect{Of: &dv1.Effect_Ended{Ended: m}})
	case "result":
		m := &dv1.KeyResult{}
		if err := proto.Unmarshal(b, m); err != nil {
			return err
		}
		t.PutResult(m)
		return nil
	}
	return errors.New("it is of a kind unknown here: a newer version wrote it")
}
