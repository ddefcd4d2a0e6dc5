package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// file is a state's snapshot file.
func file(t testing.TB, s *Snapshot) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// section is one with its right checksum.
func section(name string, count uint32, payload []byte) []byte {
	b := append([]byte{byte(len(name))}, name...)
	b = binary.BigEndian.AppendUint32(b, count)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	b = append(b, payload...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// Each way in which a file can be wrong is said; none is taken.
func TestWrongFilesAreRefused(t *testing.T) {
	good := file(t, crowd(t, 3, 2))
	head := section("head", 1, make([]byte, 16))
	record := appendRecord(nil, &dv1.Tag{Ref: "a", Digest: "b"})
	joined := func(parts ...[]byte) []byte { return append([]byte(magic), bytes.Join(parts, nil)...) }
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	for _, c := range []struct {
		what, why string
		file      []byte
	}{
		{"nothing", "not a drover state snapshot", nil},
		{"another file", "not a drover state snapshot", []byte("drover-state 2\n and more")},
		{"cut off behind the magic", "truncated", good[:len(magic)]},
		{"cut off in a section", "truncated", good[:len(good)-70]},
		{"without its end", "truncated", good[:len(good)-32-4-9-3]},
		{"a flipped bit", "", flipped},
		{"no head", "head section is missing", joined(section("tag", 1, record))},
		{"two heads", "head section is missing or misplaced", joined(head, head)},
		{"a short head", "head section is malformed", joined(section("head", 1, make([]byte, 15)))},
		{"a kind of the future", "unknown", joined(head, section("later", 1, record))},
		{"fewer records than counted", "missing records", joined(head, section("tag", 2, record))},
		{"more records than counted", "malformed records", joined(head, section("tag", 0, record))},
		{"a record that is cut off", "truncated record", joined(head, section("tag", 1, record[:len(record)-1]))},
		{"a record that is none", "section tag", joined(head, section("tag", 1, []byte{0, 0, 0, 1, 0xff}))},
		{"another hash", "state hash mismatch", joined(head, section("tag", 1, record), section("end", 1, make([]byte, 32)))},
		{"a section that claims too much", "claims", joined(head, []byte("\x03tag\x00\x00\x00\x01\xff\xff\xff\xff"))},
	} {
		if _, err := Read(bytes.NewReader(c.file)); err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want %q", c.what, err, c.why)
		}
		s := NewStore()
		if err := s.Restore(bytes.NewReader(c.file)); err == nil || s.Snapshot().Index() != 0 {
			t.Errorf("%s was restored", c.what)
		}
	}
}

// What holds much is several sections, and read again as it was.
func TestALargeKindIsSeveralSections(t *testing.T) {
	x := NewTxn(NewStore().Snapshot())
	for i := range 5 {
		err := x.Apply(&dv1.Effect{Of: &dv1.Effect_Spec{Spec: &dv1.Spec{Id: bytes32("spec", i), Body: bytes.Repeat([]byte("x"), sectionSize*2/3)}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	b := file(t, x.View())
	if n := bytes.Count(b, []byte("\x04spec\x00\x00\x00\x02")); n != 2 {
		t.Errorf("%d sections of two specs", n)
	}
	same(t, "read again", reread(t, x.View()), x.View())
}

func entry(t testing.TB, base uint64, at int64, results []*dv1.KeyResult, effects ...*dv1.Effect) []byte {
	t.Helper()
	b, err := proto.Marshal(&dv1.Entry{Format: Format, Type: EntryEffects, Base: base, Time: at, Effects: effects, Results: results})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEntries(t *testing.T) {
	s := NewStore()
	node := &dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: "n", Name: "n"}}}
	apply := func(index uint64, data []byte) error { _, err := s.Apply(index, data); return err }
	if err := apply(3, entry(t, 0, 50, []*dv1.KeyResult{{Key: "k"}}, node)); err != nil {
		t.Fatal(err)
	}
	snap := s.Snapshot()
	if snap.Index() != 3 || snap.Time() != 50 || snap.Node("n").Revision != 3 || snap.Result("k").Result.Index != 3 {
		t.Errorf("entry 3 made %v at %d, %v and %v", snap.Index(), snap.Time(), snap.Node("n"), snap.Result("k"))
	}
	// Time doesn't go back.
	if err := apply(4, entry(t, 3, 20, nil, node)); err != nil || s.Snapshot().Time() != 50 {
		t.Errorf("an earlier time: %v, now it is %d", err, s.Snapshot().Time())
	}
	// Decided on another version: nothing happens, and the next goes on.
	if err := apply(5, entry(t, 3, 60, nil, node)); !errors.Is(err, ErrBase) || s.Snapshot().Index() != 4 {
		t.Errorf("an entry of another base: %v, now at %d", err, s.Snapshot().Index())
	}
	if snap.Node("n").Revision != 3 {
		t.Error("an old snapshot changed")
	}
}

// What can't be applied halts a member for good: it would drift from the others.
func TestEntriesThatHalt(t *testing.T) {
	raw := func(e *dv1.Entry) []byte {
		b, err := proto.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	unknown := raw(&dv1.Entry{Format: Format, Type: EntryEffects})
	unknown = append(unknown, 0x32, 4, 0x9a, 0x3f, 1, 0) // an effect of field 1011
	task := func(id, name string) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: []byte(id), Name: name}}}
	}
	for what, c := range map[string]struct {
		data []byte
		why  string
	}{
		"no message":        {[]byte{0xff}, "decoding"},
		"another format":    {raw(&dv1.Entry{Format: 9, Type: EntryEffects}), "format 9"},
		"another type":      {raw(&dv1.Entry{Format: Format, Type: 9}), "type 9"},
		"a higher level":    {raw(&dv1.Entry{Format: Format, Type: EntryEffects, MinVersion: FeatureLevel + 1}), "requires feature level"},
		"a keyless result":  {entry(t, 0, 1, []*dv1.KeyResult{{}}), "no key"},
		"an unknown effect": {unknown, "unknown"},
		"a name twice":      {entry(t, 0, 1, nil, task("a", "web"), task("b", "web")), `name "web"`},
	} {
		s := NewStore()
		_, err := s.Apply(1, c.data)
		var fatal *FatalError
		if !errors.As(err, &fatal) || fatal.Index != 1 || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want %q", what, err, c.why)
		}
		if s.Snapshot().Index() != 0 || s.Fatal() == nil {
			t.Errorf("%s: the state is at %d, halted by %v", what, s.Snapshot().Index(), s.Fatal())
		}
		if _, err := s.Apply(2, entry(t, 0, 1, nil)); !errors.As(err, &fatal) || fatal.Index != 1 {
			t.Errorf("%s: afterwards an entry was met with %v", what, err)
		}
		if err := s.Restore(bytes.NewReader(file(t, s.Snapshot()))); err == nil {
			t.Errorf("%s: a halted member was restored", what)
		}
	}
}

// Whatever a file holds, it is refused, or it is a state that writes the same file.
func FuzzRead(f *testing.F) {
	f.Add(file(f, crowd(f, 3, 2)))
	f.Add(file(f, empty()))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		if again := reread(t, s); again.Hash() != s.Hash() {
			t.Error("written and read, it is another state")
		}
	})
}

// Whatever an entry holds, it halts the member, or leaves a state that its own file
// brings back.
func FuzzApply(f *testing.F) {
	f.Add(entry(f, 0, 1, nil, &dv1.Effect{Of: &dv1.Effect_Task{Task: benchTask(1, 2)}}))
	f.Add(entry(f, 0, 1, []*dv1.KeyResult{{Key: "k"}}, &dv1.Effect{Of: &dv1.Effect_DeleteTask{DeleteTask: bytes32("task", 1)}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := NewStore()
		if _, err := s.Apply(1, b); err != nil {
			return
		}
		if again := reread(t, s.Snapshot()); again.Hash() != s.Snapshot().Hash() {
			t.Error("written and read, it is another state")
		}
	})
}
