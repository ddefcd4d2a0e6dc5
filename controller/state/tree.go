package state

import (
	"iter"
	"strings"

	"github.com/tidwall/btree"
)

type item[V any] struct {
	key string
	val V
}

// tree is a sorted map with cheap copies, which share nodes until written.
type tree[V any] struct{ t *btree.BTreeG[item[V]] }

type none = struct{}

// newTree returns a tree without locks: a Snapshot's trees are only read, a Txn's
// own have one owner, and rows guard copying.
func newTree[V any]() tree[V] {
	return tree[V]{btree.NewBTreeGOptions(func(a, b item[V]) bool { return a.key < b.key }, btree.Options{NoLocks: true, Degree: 16})}
}

func (t tree[V]) get(k string) (v V) {
	i, ok := t.t.Get(item[V]{key: k})
	if !ok {
		return v
	}
	return i.val
}

func (t tree[V]) set(k string, v V) { t.t.Set(item[V]{k, v}) }

// load sets a key above all others, which is quicker than set.
func (t tree[V]) load(k string, v V) { t.t.Load(item[V]{k, v}) }

func (t tree[V]) del(k string)  { t.t.Delete(item[V]{key: k}) }
func (t tree[V]) copy() tree[V] { return tree[V]{t.t.Copy()} }
func (t tree[V]) len() int      { return t.t.Len() }

// at returns the i-th key, in O(log n).
func (t tree[V]) at(i int) string {
	it, _ := t.t.GetAt(i)
	return it.key
}

// from yields everything whose key starts with prefix, in key order.
func (t tree[V]) from(prefix string) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		t.t.Ascend(item[V]{key: prefix}, func(i item[V]) bool {
			return strings.HasPrefix(i.key, prefix) && yield(i.key, i.val)
		})
	}
}

func (t tree[V]) values(prefix string) iter.Seq[V] {
	return func(yield func(V) bool) {
		for _, v := range t.from(prefix) {
			if !yield(v) {
				return
			}
		}
	}
}
