package state

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// record is a message, by its pointer: nil is none.
type record interface {
	comparable
	proto.Message
}

// kind is how records of one sort are kept: a row of the table. Its functions
// depend on their arguments only.
type kind[M record] struct {
	// name is that of its sections in a snapshot file, of the effect that writes a
	// record, and behind "delete_" of the one that deletes it by its key.
	name    string
	key     func(M) string
	indexes []*index[M]
	stamp   func(m M, index uint64)            // notes the entry that wrote m; nil: it isn't noted
	total   func() total[M]                    // what is kept of all records together; nil: nothing
	around  func(t *Txn, key string, sign int) // takes what depends on a record out of other kinds' totals before a change, with -1, and in after it, with 1
	at      int                                // its place in the table
}

// sep ends a key of an index that is not of one length.
const sep = "\x00"

// index finds records by something else than their key: its entries are what key
// returns, which no other's may be a prefix of, and then the record's key.
type index[M record] struct {
	key    func(M) string // "": the record is not in the index
	width  int            // of its keys, if they are of one width: then it can be read whole
	unique string         // what at most one record has, "" if several may have it
	at     int            // its place among its kind's
}

// total is what is kept of all records of a kind together.
type total[M record] interface {
	// change is called when a record becomes another; nil stands for none.
	change(s *Snapshot, old, new M)
	// load makes the total anew, of all records.
	load(s *Snapshot, all iter.Seq[M])
	copy() total[M]
}

// rows are the records of one kind in one state.
type rows[M record] struct {
	copying sync.Mutex // guards copying the trees, which marks their nodes as shared
	all     tree[M]
	indexes []tree[none]
	total   total[M]
}

// row is a kind, whatever its records are.
type row interface {
	place(at int)
	section() string
	new() proto.Message
	empty() any
	copy(rows any) any
	put(t *Txn, m proto.Message) error
	drop(t *Txn, key string)
	read(t *Txn, b []byte) error
	load(t *Txn) error
	records(s *Snapshot) iter.Seq[proto.Message]
}

func (k *kind[M]) in(s *Snapshot) *rows[M] { return s.rows[k.at].(*rows[M]) }

// own makes what t has of a kind t's alone, once.
func (k *kind[M]) own(t *Txn) *rows[M] {
	if t.owned&(1<<k.at) == 0 {
		t.owned |= 1 << k.at
		t.rows[k.at] = k.copy(t.rows[k.at])
	}
	return k.in(&t.Snapshot)
}

func (k *kind[M]) get(s *Snapshot, key string) M { return k.in(s).all.get(key) }
func (k *kind[M]) len(s *Snapshot) int           { return k.in(s).all.len() }

// each yields the records whose key starts with prefix, in key order.
func (k *kind[M]) each(s *Snapshot, prefix string) iter.Seq[M] { return k.in(s).all.values(prefix) }

// by yields the records that an index has under a key, or all that it has under "", in
// the order of the index.
func (k *kind[M]) by(s *Snapshot, ix *index[M], key string) iter.Seq[M] {
	return func(yield func(M) bool) {
		var nothing M
		for r := range k.keys(s, ix, key) {
			if m := k.get(s, r); m != nothing && !yield(m) {
				return
			}
		}
	}
}

// keys yields the keys of the records that an index has under a key.
func (k *kind[M]) keys(s *Snapshot, ix *index[M], key string) iter.Seq[string] {
	return k.in(s).keys(ix, key)
}

func (r *rows[M]) keys(ix *index[M], key string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for e := range r.indexes[ix.at].from(key) {
			if !yield(e[max(len(key), ix.width):]) {
				return
			}
		}
	}
}

// first is the first record that an index has under a key, nil if it has none.
func (k *kind[M]) first(s *Snapshot, ix *index[M], key string) (m M) {
	for m := range k.by(s, ix, key) {
		return m
	}
	return m
}

func (k *kind[M]) place(at int) {
	k.at = at
	for i, ix := range k.indexes {
		ix.at = i
	}
}

func (k *kind[M]) section() string { return k.name }

func (k *kind[M]) new() proto.Message {
	var nothing M
	return nothing.ProtoReflect().New().Interface()
}

func (k *kind[M]) empty() any {
	r := &rows[M]{all: newTree[M]()}
	for range k.indexes {
		r.indexes = append(r.indexes, newTree[none]())
	}
	if k.total != nil {
		r.total = k.total()
	}
	return r
}

func (k *kind[M]) copy(of any) any {
	r := of.(*rows[M])
	r.copying.Lock()
	defer r.copying.Unlock()
	c := &rows[M]{all: r.all.copy(), indexes: make([]tree[none], len(r.indexes))}
	for i, ix := range r.indexes {
		c.indexes[i] = ix.copy()
	}
	if r.total != nil {
		c.total = r.total.copy()
	}
	return c
}

func (k *kind[M]) put(t *Txn, of proto.Message) error {
	m := of.(M)
	if err := k.free(k.own(t), m); err != nil {
		return err
	}
	if k.stamp != nil && t.rev != 0 {
		k.stamp(m, t.rev)
	}
	k.replace(t, k.key(m), m)
	return nil
}

// free says who else has what only one record may have.
func (k *kind[M]) free(r *rows[M], m M) error {
	for _, ix := range k.indexes {
		entry := ix.key(m)
		if ix.unique == "" || entry == "" {
			continue
		}
		for holder := range r.keys(ix, entry) {
			if key := k.key(m); holder != key {
				return fmt.Errorf("%s %q of %s %x is held by %x", ix.unique, strings.TrimSuffix(entry, sep), k.name, key, holder)
			}
		}
	}
	return nil
}

func (k *kind[M]) drop(t *Txn, key string) {
	var nothing M
	k.replace(t, key, nothing)
}

// replace puts m, or nothing where it is nil, in the place of what has its key.
func (k *kind[M]) replace(t *Txn, key string, m M) {
	r := k.own(t)
	old := r.all.get(key)
	var nothing M
	had, has := old != nothing, m != nothing
	if !had && !has {
		return
	}
	if k.around != nil {
		k.around(t, key, -1)
	}
	if has {
		r.all.set(key, m)
	} else {
		r.all.del(key)
	}
	for i, ix := range k.indexes {
		var was, is string
		if had {
			was = ix.key(old)
		}
		if has {
			is = ix.key(m)
		}
		if was == is {
			continue
		}
		if was != "" {
			r.indexes[i].del(was + key)
		}
		if is != "" {
			r.indexes[i].set(is+key, none{})
		}
	}
	if r.total != nil {
		r.total.change(&t.Snapshot, old, m)
	}
	if k.around != nil {
		k.around(t, key, 1)
	}
}

// read takes a record out of a snapshot file. load, afterwards, makes what is kept of
// all of them: in order, which costs much less than one by one.
func (k *kind[M]) read(t *Txn, b []byte) error {
	m := k.new()
	if err := proto.Unmarshal(b, m); err != nil {
		return err
	}
	k.own(t).all.load(k.key(m.(M)), m.(M))
	return nil
}

func (k *kind[M]) load(t *Txn) error {
	r := k.own(t)
	for i, ix := range k.indexes {
		entries := make([]string, 0, r.all.len())
		for key, m := range r.all.from("") {
			if e := ix.key(m); e != "" {
				entries = append(entries, e+key)
			}
		}
		slices.Sort(entries)
		for _, e := range entries {
			r.indexes[i].load(e, none{})
		}
	}
	for _, m := range r.all.from("") {
		if err := k.free(r, m); err != nil {
			return err
		}
	}
	if r.total != nil {
		r.total.load(&t.Snapshot, r.all.values(""))
	}
	return nil
}

func (k *kind[M]) records(s *Snapshot) iter.Seq[proto.Message] {
	return func(yield func(proto.Message) bool) {
		for m := range k.each(s, "") {
			if !yield(m) {
				return
			}
		}
	}
}

// effectOf is what an effect is.
var effectOf = (*dv1.Effect)(nil).ProtoReflect().Descriptor().Oneofs().ByName("of")

// apply writes one effect, whose field's value is given.
type apply func(*Txn, protoreflect.Value) error

// applying returns how each effect is applied, by its field.
func applying(table []row) map[protoreflect.Name]apply {
	out := map[protoreflect.Name]apply{}
	for _, r := range table {
		name := protoreflect.Name(r.section())
		out[name] = func(t *Txn, v protoreflect.Value) error { return r.put(t, v.Message().Interface()) }
		out["delete_"+name] = func(t *Txn, v protoreflect.Value) error {
			if key, ok := v.Interface().([]byte); ok {
				r.drop(t, string(key))
			} else {
				r.drop(t, v.String())
			}
			return nil
		}
	}
	return out
}
