package dispatch

import (
	"iter"
	"strings"
	"sync"

	"github.com/tidwall/btree"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// View is what agents reported last, as of one moment. It does not change, is safe
// for concurrent use, and takes no locks to read. What it returns must not be
// modified.
type View struct {
	nodes   btree.Map[string, *inventory]
	holders btree.Set[string]
	silent  btree.Map[string, int64]
	paused  int
}

// Status returns the last status of a task that is, or was until its removal, on a
// node; nil if none was reported.
func (v *View) Status(node string, task []byte) *dv1.TaskStatus {
	i, _ := v.nodes.Get(node)
	return i.status(task)
}

// Paused is how many tasks are.
func (v *View) Paused() int { return v.paused }

// Holds reports whether a node reported an image's content.
func (v *View) Holds(node, digest string) bool {
	return v.holders.Contains(holder(digest, node))
}

// Holders yields the nodes that reported an image's content, in the order of their
// ids.
func (v *View) Holders(digest string) iter.Seq[string] { return v.HoldersFrom(digest, "") }

// HoldersFrom yields them beginning at an id, and around: who takes the first few of
// them takes others than the next one does.
func (v *View) HoldersFrom(digest, node string) iter.Seq[string] {
	return func(yield func(string) bool) {
		prefix, ended := holder(digest, ""), false
		walk := func(from, to string) {
			v.holders.Ascend(prefix+from, func(key string) bool {
				id, ok := strings.CutPrefix(key, prefix)
				if !ok || to != "" && id >= to {
					return false
				}
				ended = !yield(id)
				return !ended
			})
		}
		if walk(node, ""); node != "" && !ended {
			walk("", node)
		}
	}
}

// SilentSince reports whether a node is silent, and when it was heard last (Unix ns).
func (v *View) SilentSince(node string) (at int64, silent bool) { return v.silent.Get(node) }

// Silent yields the nodes that are silent, and when each was heard last (Unix ns).
func (v *View) Silent() iter.Seq2[string, int64] { return v.silent.Scan }

func holder(digest, node string) string { return digest + "\x00" + node }

// observations is the View that is being written. Its lock is held for one change, or
// one copy, which is cheap: the trees are copied where they are written.
type observations struct {
	mu   sync.Mutex // guards the fields below
	v    View
	last *View // a copy of v; nil: v has changed since
}

// view returns a copy.
func (o *observations) view() *View {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.last == nil {
		o.last = &View{nodes: *o.v.nodes.Copy(), holders: *o.v.holders.Copy(), silent: *o.v.silent.Copy(), paused: o.v.paused}
	}
	return o.last
}

func (o *observations) change(f func(v *View)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = nil
	f(&o.v)
}

// of returns what a node reported last, nil for one that is not admitted.
func (o *observations) of(node string) *inventory {
	o.mu.Lock()
	defer o.mu.Unlock()
	i, _ := o.v.nodes.Get(node)
	return i
}

// admit has what a node reports kept from now on.
func (o *observations) admit(node string) {
	o.change(func(v *View) {
		if _, ok := v.nodes.Get(node); !ok {
			v.nodes.Set(node, &inventory{})
		}
	})
}

// put replaces a node's inventory, unless the node was removed meanwhile. It is
// called for one observation of a node after the other.
func (o *observations) put(node string, d *draft) {
	ok := false
	o.change(func(v *View) {
		var old *inventory
		if old, ok = v.nodes.Get(node); ok {
			v.nodes.Set(node, d.inventory)
			v.paused += d.paused - old.paused
		}
	})
	if !ok {
		return
	}
	for digest := range d.lost {
		o.change(func(v *View) { v.holders.Delete(holder(digest, node)) })
	}
	for digest := range d.gained {
		o.change(func(v *View) {
			if _, ok := v.nodes.Get(node); ok {
				v.holders.Insert(holder(digest, node))
			}
		})
	}
}

// remove forgets a node.
func (o *observations) remove(node string) {
	var old *inventory
	o.change(func(v *View) {
		if old, _ = v.nodes.Delete(node); old != nil {
			v.paused -= old.paused
		}
		v.silent.Delete(node)
	})
	if old == nil {
		return
	}
	for digest := range old.images.Scan {
		o.change(func(v *View) { v.holders.Delete(holder(digest, node)) })
	}
}

func (o *observations) markSilent(node string, at int64) {
	o.change(func(v *View) { v.silent.Set(node, at) })
}

func (o *observations) clearSilent(node string) {
	o.change(func(v *View) { v.silent.Delete(node) })
}
