package state

import (
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// record is a pointer to a message, or nil.
type record interface {
	comparable
	proto.Message
}

// kind describes how records of one type are kept: a row of the table. Its functions
// are pure.
type kind[M record] struct {
	// name is that of its sections in a snapshot file and of the effect that writes a
	// record; with the prefix "delete_", that of the effect that deletes one by key.
	name    string
	key     func(M) string
	indexes []*index[M]
	stamp   func(m M, index uint64)            // records the index of the entry that wrote m; may be nil
	total   func() total[M]                    // an aggregate of all records; may be nil
	around  func(t *Txn, key string, sign int) // around a change: with sign -1 subtracts what depends on the record from other kinds' totals, with 1 adds it again
	at      int                                // its position in the table
}

// sep terminates keys of variable length in an index.
const sep = "\x00"

// index finds records by something other than their key. Its entries consist of what
// key returns, which must not be a prefix of another one's, followed by the record's
// key.
type index[M record] struct {
	key    func(M) string // "": the record is not in the index
	width  int            // of its keys, if fixed: then the whole index can be iterated
	unique string         // what at most one record may have; "" if several may
	at     int            // its position among the kind's indexes
}

// total is an aggregate of all records of a kind.
type total[M record] interface {
	// change is called when a record is replaced; nil stands for none.
	change(s *Snapshot, old, new M)
	// load recomputes the total from all records.
	load(s *Snapshot, all iter.Seq[M])
	copy() total[M]
}

// rows holds the records of one kind in one state.
type rows[M record] struct {
	copying sync.Mutex // guards copying the trees, which marks their nodes as shared
	all     tree[M]
	indexes []tree[none]
	total   total[M]
}

// row is a kind, without its type parameter.
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

// own copies a kind's rows for t's exclusive use, once.
func (k *kind[M]) own(t *Txn) *rows[M] {
	if t.owned&(1<<k.at) == 0 {
		t.owned |= 1 << k.at
		t.rows[k.at] = k.copy(t.rows[k.at])
	}
	return k.in(&t.Snapshot)
}

func (k *kind[M]) get(s *Snapshot, key string) M { return k.in(s).all.get(key) }
func (k *kind[M]) len(s *Snapshot) int           { return k.in(s).all.len() }

// byPrefix returns the records whose key, in hex, starts with prefix; none if it is
// empty or not hex.
func byPrefix[M record](s *Snapshot, k *kind[M], prefix string) []M {
	prefix = strings.ToLower(prefix)
	raw, err := hex.DecodeString(prefix[:len(prefix)&^1])
	if prefix == "" || err != nil {
		return nil
	}
	var out []M
	for key, m := range k.in(s).all.from(string(raw)) {
		if len(prefix)%2 == 0 || strings.HasPrefix(hex.EncodeToString([]byte(key)), prefix) {
			out = append(out, m)
		}
	}
	return out
}

// nth returns the i-th record in key order.
func (k *kind[M]) nth(s *Snapshot, i int) M {
	all := k.in(s).all
	return all.get(all.at(i))
}

// each yields the records whose key starts with prefix, in key order.
func (k *kind[M]) each(s *Snapshot, prefix string) iter.Seq[M] { return k.in(s).all.values(prefix) }

// by yields the records of an index with the given key, or all of the index for "",
// in its order.
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

// keys yields the keys of the records of an index with the given key.
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

// first returns the first record of an index with the given key, or nil.
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

// free fails if another record has what only one may have.
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

// replace stores m under its key, or deletes the record if m is nil.
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

// read adds a record of a snapshot file. load, called afterwards, builds the indexes
// and totals in key order, which is much cheaper than one by one.
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

// effectOf is the oneof of an effect.
var effectOf = (*dv1.Effect)(nil).ProtoReflect().Descriptor().Oneofs().ByName("of")

// apply applies one effect, given its field's value.
type apply func(*Txn, protoreflect.Value) error

// applying returns the apply function of each effect, by its field's name.
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
