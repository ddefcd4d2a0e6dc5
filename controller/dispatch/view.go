package dispatch

import (
	"iter"
	"strings"
	"sync"

	"github.com/tidwall/btree"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// View is a snapshot of the latest reports of agents. It is immutable, safe for
// concurrent use, and read without locks. What it returns must not be modified.
type View struct {
	nodes   btree.Map[string, *inventory]
	holders btree.Set[string]
	silent  btree.Map[string, int64]
	paused  int
}

// Status returns the latest status of a task on the node that it is placed on, or
// whose removal of it is pending; nil if none was reported.
func (v *View) Status(node string, task []byte) *dv1.TaskStatus {
	i, _ := v.nodes.Get(node)
	return i.status(task)
}

// Paused returns the number of paused tasks.
func (v *View) Paused() int { return v.paused }

// Ended yields the statuses of attempts that ended or failed to start.
func (v *View) Ended() iter.Seq[*dv1.TaskStatus] {
	return func(yield func(*dv1.TaskStatus) bool) {
		v.nodes.Scan(func(_ string, i *inventory) (more bool) {
			more = true
			if i.ended > 0 {
				i.tasks.Scan(func(_ string, st *dv1.TaskStatus) bool {
					more = !ended(st) || yield(st)
					return more
				})
			}
			return more
		})
	}
}

// Holds reports whether a node reported having an image's content.
func (v *View) Holds(node, digest string) bool {
	return v.holders.Contains(holder(digest, node))
}

// Holders yields the nodes that reported having an image's content, sorted by id.
func (v *View) Holders(digest string) iter.Seq[string] { return v.HoldersFrom(digest, "") }

// HoldersFrom yields them starting at an id and wrapping around, so that callers
// that take only a few spread over different holders.
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

// SilentSince reports whether a node is silent, and when it was last heard from
// (Unix ns).
func (v *View) SilentSince(node string) (at int64, silent bool) { return v.silent.Get(node) }

// Silent yields the silent nodes and when each was last heard from (Unix ns).
func (v *View) Silent() iter.Seq2[string, int64] { return v.silent.Scan }

func holder(digest, node string) string { return digest + "\x00" + node }

// observations is the mutable View. Its lock is held for one change or for one copy,
// which is cheap: the trees are copy-on-write.
type observations struct {
	mu   sync.Mutex // guards the fields below
	v    View
	last *View // a copy of v; nil if v has changed since
}

// view returns an immutable copy.
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

// of returns the latest report of a node, nil if the node is not admitted.
func (o *observations) of(node string) *inventory {
	o.mu.Lock()
	defer o.mu.Unlock()
	i, _ := o.v.nodes.Get(node)
	return i
}

// admit starts keeping a node's reports.
func (o *observations) admit(node string) {
	o.change(func(v *View) {
		if _, ok := v.nodes.Get(node); !ok {
			v.nodes.Set(node, &inventory{})
		}
	})
}

// put replaces a node's inventory, unless the node was removed meanwhile. Calls for
// one node must be serialized.
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

// remove drops a node.
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
