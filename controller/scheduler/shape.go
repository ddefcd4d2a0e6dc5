package scheduler

import (
	"cmp"
	"container/heap"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// shape is a set of groups that differ only in their count, with every node as such
// a group sees it. Those that fit are in a heap, the best one first.
type shape struct {
	p       *Placer
	g       Group
	filters []filter
	holders map[string]bool // nodes that hold the image according to the group
	seen    int             // how many changes of Placer.log are applied
	used    bool            // since the placer got its view

	all  []candidate  // by node.at
	heap []*candidate // nodes that fit
}

// candidate is a node as groups of one shape see it.
type candidate struct {
	node  *node
	score score
	why   string // why it was rejected; "" if it fits
	at    int    // index in the heap, -1 if not in it
}

// key identifies the shape: it contains everything of a group but its count.
func (g Group) key() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q %d %d %q %q %q", g.On, g.Arch, g.Memory, g.NanoCPUs, g.Digest, g.Holders, g.Contact)
	for _, p := range g.Ports {
		fmt.Fprintf(&b, " %q/%q/%d", p.Ip, p.Proto, p.Host)
	}
	for _, p := range g.Pins {
		fmt.Fprintf(&b, " %q=%q", p.Node, p.Why)
	}
	return b.String()
}

// shape returns a group's shape, up to date.
func (p *Placer) shape(g Group) *shape {
	key := g.key()
	s := p.shapes[key]
	if s == nil {
		if len(p.shapes) >= maxShapes {
			clear(p.shapes)
		}
		s = newShape(p, g)
		p.shapes[key] = s
	}
	s.used = true
	s.catchUp()
	return s
}

// catchUp judges again the nodes that changed since the last call.
func (s *shape) catchUp() {
	for _, n := range s.p.log[s.seen:] {
		s.look(n)
	}
	s.seen = len(s.p.log)
}

func newShape(p *Placer, g Group) *shape {
	s := &shape{p: p, g: g, filters: filters(g), holders: map[string]bool{}, seen: len(p.log), all: make([]candidate, len(p.nodes))}
	for _, h := range g.Holders {
		s.holders[h] = true
	}
	holds := maps.Clone(s.holders)
	if g.Digest != "" {
		for id := range p.view.NodesOfImage(g.Digest) {
			holds[id] = true
		}
	}
	for i, n := range p.nodes {
		c := &s.all[i]
		*c = candidate{node: n, at: -1}
		s.judge(c, holds[n.Id])
		if c.why == "" {
			c.at = len(s.heap)
			s.heap = append(s.heap, c)
		}
	}
	heap.Init(s)
	return s
}

func (s *shape) judge(c *candidate, holds bool) {
	c.why = ""
	for _, f := range s.filters {
		if f.refuses(c.node) {
			c.why = f.why
			return
		}
	}
	c.score = scoreOf(s.g, c.node, holds)
}

// look judges a node that changed.
func (s *shape) look(n *node) {
	c := &s.all[n.at]
	s.judge(c, s.holders[n.Id] || s.g.Digest != "" && s.p.view.HasTaskOfImage(n.Id, s.g.Digest))
	switch in := c.at >= 0; {
	case c.why == "" && in:
		heap.Fix(s, c.at)
	case c.why == "":
		heap.Push(s, c)
	case in:
		heap.Remove(s, c.at)
	}
}

// best returns the node for the next task, nil if it fits nowhere.
func (s *shape) best() *node {
	if len(s.heap) == 0 {
		return nil
	}
	return s.heap[0].node
}

// rejections counts why nodes were rejected, the most frequent reason first.
func (s *shape) rejections() (out []Rejection) {
	count := map[string]int{}
	for i := range s.all {
		if why := s.all[i].why; why != "" {
			count[why]++
		}
	}
	for _, why := range slices.Sorted(maps.Keys(count)) {
		out = append(out, Rejection{count[why], why})
	}
	slices.SortStableFunc(out, func(a, b Rejection) int { return b.Nodes - a.Nodes })
	return out
}

// Len implements heap.Interface.
func (s *shape) Len() int { return len(s.heap) }

// Less implements heap.Interface.
func (s *shape) Less(i, j int) bool {
	a, b := s.heap[i], s.heap[j]
	return cmp.Or(a.score.compare(b.score), cmp.Compare(a.node.Id, b.node.Id)) < 0
}

// Swap implements heap.Interface.
func (s *shape) Swap(i, j int) {
	s.heap[i], s.heap[j] = s.heap[j], s.heap[i]
	s.heap[i].at, s.heap[j].at = i, j
}

// Push implements heap.Interface.
func (s *shape) Push(x any) {
	c := x.(*candidate)
	c.at = len(s.heap)
	s.heap = append(s.heap, c)
}

// Pop implements heap.Interface.
func (s *shape) Pop() any {
	c := s.heap[len(s.heap)-1]
	s.heap, c.at = s.heap[:len(s.heap)-1], -1
	return c
}
