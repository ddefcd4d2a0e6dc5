package state

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// An effect that no kind takes would halt every member that reads it.
func TestEveryEffectHasItsKind(t *testing.T) {
	fields := effectOf.Fields()
	seen := map[protoreflect.Name]bool{}
	for i := range fields.Len() {
		f := fields.Get(i)
		seen[f.Name()] = true
		if effects[f.Name()] == nil {
			t.Errorf("no row of the table takes the effect %s", f.Name())
		}
	}
	for _, k := range table {
		// Key results come with an entry, beside its effects.
		if name := protoreflect.Name(k.section()); !seen[name] && name != "result" {
			t.Errorf("the kind %s has no effect that writes it", name)
		}
	}
	if len(table) > 64 {
		t.Error("Txn has a bit for 64 kinds")
	}
}

// sample fills a message's fields with what is told apart by n. Nodes are two, so
// that indexes have several records under one key.
func sample(t *testing.T, m proto.Message, n int) proto.Message {
	t.Helper()
	fill(m.ProtoReflect(), n)
	switch m := m.(type) {
	case *dv1.Node:
		m.Subnet = fmt.Sprintf("10.210.%d.0/24", n)
	case *dv1.Network:
		m.Removing = false
	case *dv1.Endpoint:
		m.NodeId, m.Ip, m.Ip6 = fmt.Sprint("node-", n%2), fmt.Sprintf("10.0.0.%d", n), fmt.Sprintf("fd00::%d", n)
	case *dv1.Task:
		m.NodeId, m.Failed = fmt.Sprint("node-", n%2), ""
	}
	return m
}

func fill(m protoreflect.Message, n int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case f.IsMap():
			m.Mutable(f).Map().Set(protoreflect.ValueOf("key").MapKey(), protoreflect.ValueOf(fmt.Sprint("value-", n)))
		case f.IsList():
			l := m.Mutable(f).List()
			if f.Kind() == protoreflect.MessageKind {
				e := l.NewElement()
				fill(e.Message(), n)
				l.Append(e)
			} else {
				l.Append(scalar(f, n))
			}
		case f.Kind() == protoreflect.MessageKind:
			fill(m.Mutable(f).Message(), n)
		default:
			m.Set(f, scalar(f, n))
		}
	}
}

func scalar(f protoreflect.FieldDescriptor, n int) protoreflect.Value {
	at := int32(n + int(f.Number()))
	switch f.Kind() {
	case protoreflect.BytesKind:
		return protoreflect.ValueOf(bytes32(string(f.Name()), n))
	case protoreflect.StringKind:
		return protoreflect.ValueOf(fmt.Sprintf("%s-%d", f.Name(), n))
	case protoreflect.BoolKind:
		return protoreflect.ValueOf(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOf(f.Enum().Values().Get(1).Number())
	case protoreflect.Int32Kind:
		return protoreflect.ValueOf(at)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOf(int64(at))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOf(uint32(at))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOf(uint64(at))
	default:
		panic(fmt.Sprintf("a field of kind %v: say how it is filled", f.Kind()))
	}
}

// unlike returns a record with the key of m and all else of another.
func unlike(t *testing.T, k row, m proto.Message) proto.Message {
	out, other := proto.Clone(m), sample(t, k.new(), 9).ProtoReflect()
	key := k.(tested).keyOf(m)
	other.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		was := out.ProtoReflect().Get(f)
		if out.ProtoReflect().Set(f, v); k.(tested).keyOf(out) != key {
			out.ProtoReflect().Set(f, was)
		}
		return true
	})
	return out
}

// tested is what tests read of a kind.
type tested interface {
	keyOf(proto.Message) string
	dump(s *Snapshot) string
}

func (k *kind[M]) keyOf(m proto.Message) string { return k.key(m.(M)) }

// dump is all that a state has of a kind: records, indexes and total.
func (k *kind[M]) dump(s *Snapshot) string {
	var b strings.Builder
	for key, m := range k.in(s).all.from("") {
		raw, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		fmt.Fprintf(&b, "%s %x: %x\n", k.name, key, raw)
	}
	for i, ix := range k.in(s).indexes {
		for e := range ix.from("") {
			fmt.Fprintf(&b, "%s index %d: %q\n", k.name, i, e)
		}
	}
	switch total := any(k.in(s).total).(type) {
	case *usage:
		fmt.Fprintf(&b, "all: %+v\n", total.all)
		for node, u := range total.byNode.from("") {
			u := *u
			var ports []string
			for _, p := range u.Ports {
				ports = append(ports, fmt.Sprint(p.Ip, p.Proto, p.Host))
			}
			slices.Sort(ports)
			u.Ports = nil
			fmt.Fprintf(&b, "%s: %+v %v\n", node, u, ports)
		}
		for image, n := range total.byImage.from("") {
			fmt.Fprintf(&b, "%q: %d\n", image, n)
		}
	case reservations:
		for spec, r := range total.bySpec.from("") {
			fmt.Fprintf(&b, "%q reserves %+v\n", spec, r)
		}
	case *resultBytes:
		fmt.Fprintf(&b, "%d bytes\n", *total)
	}
	return b.String()
}

func dump(s *Snapshot) string {
	var b strings.Builder
	for _, k := range table {
		b.WriteString(k.(tested).dump(s))
	}
	return b.String()
}

// reread is what a state's snapshot file is read as.
func reread(t testing.TB, s *Snapshot) *Snapshot {
	t.Helper()
	var file bytes.Buffer
	if err := s.Write(&file); err != nil {
		t.Fatal(err)
	}
	again, err := Read(&file)
	if err != nil {
		t.Fatal(err)
	}
	return again
}

func same(t *testing.T, what string, got, want *Snapshot) {
	t.Helper()
	if got.Hash() != want.Hash() {
		t.Errorf("%s: the hashes differ", what)
	}
	if a, b := dump(got), dump(want); a != b {
		t.Errorf("%s:\n%s\nwant\n%s", what, a, b)
	}
}

// What holds of every kind, whatever its records are.
func TestEveryKind(t *testing.T) {
	for _, k := range table {
		t.Run(k.section(), func(t *testing.T) {
			put := func(x *Txn, m proto.Message) {
				t.Helper()
				if err := k.put(x, proto.Clone(m)); err != nil {
					t.Fatal(err)
				}
			}
			nothing := NewStore().Snapshot()
			x := NewTxn(nothing)
			var records []proto.Message
			for n := range 5 {
				m := sample(t, k.new(), n)
				records = append(records, m)
				put(x, m)
			}
			full := NewTxn(x.View()).View()
			same(t, "read again from a file", reread(t, x.View()), x.View())

			put(x, unlike(t, k, records[4]))
			same(t, "overwritten, and read again", reread(t, x.View()), x.View())
			if x.Hash() == full.Hash() {
				t.Error("overwriting changed nothing")
			}
			put(x, records[4])
			same(t, "as it was before", x.View(), full)

			fork := NewTxn(x.View())
			for _, m := range records {
				k.drop(fork, k.(tested).keyOf(m))
				k.drop(fork, "no such key")
			}
			same(t, "all deleted", fork.View(), nothing)
			same(t, "copied before that", x.View(), full)
			put(x, unlike(t, k, records[4]))
			same(t, "a copy of what goes on", fork.View(), nothing)

			f := k.new().ProtoReflect().Descriptor().Fields().ByName("revision")
			if f == nil {
				return
			}
			x.rev = 77
			m := proto.Clone(records[4])
			if err := k.put(x, m); err != nil || m.ProtoReflect().Get(f).Uint() != 77 {
				t.Errorf("its revision is %v (%v), the entry was 77", m.ProtoReflect().Get(f), err)
			}
		})
	}
}

// Whatever came and went, in whichever order: a state is what its file is read as, with
// all that is kept of records together.
func TestAnyHistoryIsItsFile(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	x := NewTxn(NewStore().Snapshot())
	for range 3000 {
		n := r.IntN(40)
		spec := &dv1.Spec{Id: bytes32("spec", n%5), Digest: fmt.Sprint("sha256:", n%2), Body: fmt.Appendf(nil, `{"HostConfig":{"MemoryReservation":%d}}`, n*1000)}
		task := &dv1.Task{Id: bytes32("task", n), Name: fmt.Sprint("task-", n), SpecId: spec.Id, NodeId: []string{"", "a", "b"}[r.IntN(3)], Attempt: int32(r.IntN(3)), Created: int64(r.IntN(3)),
			Desired: dv1.Desired(1 + r.IntN(3)), Started: int64(r.IntN(2)), Exit: &dv1.Exit{Attempt: int32(r.IntN(3))}, Failed: []string{"", "no"}[r.IntN(2)]}
		for p := range r.IntN(3) {
			task.Ports = append(task.Ports, &dv1.Port{Proto: "tcp", Host: uint32(8000 + p)})
		}
		var e *dv1.Effect
		switch r.IntN(8) {
		case 0:
			e = &dv1.Effect{Of: &dv1.Effect_Spec{Spec: spec}}
		case 1:
			e = &dv1.Effect{Of: &dv1.Effect_DeleteSpec{DeleteSpec: spec.Id}}
		case 2, 3:
			e = &dv1.Effect{Of: &dv1.Effect_DeleteTask{DeleteTask: task.Id}}
		default:
			e = &dv1.Effect{Of: &dv1.Effect_Task{Task: task}}
		}
		if err := x.Apply(e); err != nil {
			t.Fatal(err)
		}
		if r.IntN(100) == 0 {
			same(t, "read again", reread(t, x.View()), x.View())
		}
	}
}

// What its own version would refuse, a file may not bring in.
func TestANameIsOneTasksInAFileToo(t *testing.T) {
	x := NewTxn(NewStore().Snapshot())
	for n := range 2 {
		task := &dv1.Task{Id: bytes32("task", n), Name: "web"}
		err := x.Apply(&dv1.Effect{Of: &dv1.Effect_Task{Task: task}})
		if (err == nil) != (n == 0) {
			t.Fatalf("task %d named web: %v", n, err)
		}
		if n == 1 && !strings.Contains(err.Error(), `name "web" of task`) {
			t.Errorf("it is refused with %q", err)
		}
		tasks.own(x).all.set(string(task.Id), task)
	}
	var file bytes.Buffer
	if err := x.View().Write(&file); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(&file); err == nil || !strings.Contains(err.Error(), `name "web" of task`) {
		t.Errorf("two tasks of a name were read: %v", err)
	}
}
