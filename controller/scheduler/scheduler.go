// Package scheduler chooses nodes for groups of equal tasks on a view of the state.
// It only decides: names, ports at start, committing and informing agents are left
// to command, consensus and dispatch.
package scheduler

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/docker/go-units"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Group is Count tasks with equal requirements.
type Group struct {
	Count    int
	On       []string // constraints: node==c, zone!=b, disk==ssd*
	Arch     string   // "" is any
	Memory   int64    // bytes reserved
	NanoCPUs int64    // reserved
	Ports    []*dv1.Port
	Digest   string   // image: nodes that hold it are preferred
	Holders  []string // nodes known to hold it, besides those that the view shows
	Contact  string   // preferred node, "" for none
	Pins     []Pin    // nodes that the tasks must be on; all pins apply
}

// Pin ties a group to the node that holds something it needs.
type Pin struct {
	Node string
	Why  string // why other nodes are rejected, as in "lack the bind's source"
}

// Rejection counts the nodes that one filter rejected.
type Rejection struct {
	Nodes int
	Why   string // "lack 2 GiB memory"
}

// Decision has a node for each task of a group that fits, in order.
type Decision struct {
	Nodes    []string
	Total    int // nodes considered
	Rejected []Rejection
}

// Reason explains to users why tasks of the group got no node.
func (d Decision) Reason() string {
	if d.Total == 0 {
		return "no node has joined yet"
	}
	var parts []string
	for _, r := range d.Rejected {
		parts = append(parts, fmt.Sprintf("%d %s", r.Nodes, r.Why))
	}
	noun := "nodes fit"
	if d.Total == 1 {
		noun = "node fits"
	}
	return fmt.Sprintf("0 of %d %s: %s", d.Total, noun, strings.Join(parts, ", "))
}

// Place returns one decision per group, in order; later groups see what earlier ones
// took. It does no I/O, and equal states yield equal placements.
func Place(s *state.Snapshot, groups ...Group) []Decision { return New(s).Place(groups...) }

// Placer places groups one after the other on a view that changes in between. It
// caches what it learned about each node, so that the cost of placing another group
// of a known shape depends on what changed, not on the number of nodes and tasks. It
// must be used by one goroutine, which also owns the view.
type Placer struct {
	view   *state.Snapshot
	nodes  []*node
	byID   map[string]*node
	shapes map[string]*shape
	stale  map[string]bool // nodes that may differ from the view's
	log    []*node         // every change of a node, for shapes that haven't seen it yet
}

// node is a node with the resources in use there, including what a call of Place
// adds.
type node struct {
	*dv1.Node
	state.Use
	at int // index in Placer.nodes
}

// New returns a Placer for a view.
func New(view *state.Snapshot) *Placer {
	p := &Placer{view: view, stale: map[string]bool{}}
	p.survey()
	return p
}

// maxShapes bounds how many shapes are cached.
const maxShapes = 64

// On switches to another view, which must have the same nodes and tasks as the
// current one.
func (p *Placer) On(view *state.Snapshot) {
	p.view = view
	p.refresh()
	for key, s := range p.shapes {
		if !s.used {
			delete(p.shapes, key)
			continue
		}
		s.used = false
		s.catchUp()
		s.seen = 0
	}
	p.log = nil
}

// survey reads every node from the view.
func (p *Placer) survey() {
	p.nodes, p.byID, p.shapes, p.log = nil, map[string]*node{}, map[string]*shape{}, nil
	for n := range p.view.Nodes() {
		n := &node{Node: n, Use: p.view.Use(n.Id), at: len(p.nodes)}
		p.nodes = append(p.nodes, n)
		p.byID[n.Id] = n
	}
	clear(p.stale)
}

// Changed marks nodes that changed in the view, or whose tasks did.
func (p *Placer) Changed(ids ...string) {
	for _, id := range ids {
		p.stale[id] = true
	}
}

// refresh rereads the nodes that changed.
func (p *Placer) refresh() {
	for _, id := range slices.Sorted(maps.Keys(p.stale)) {
		now, n := p.view.Node(id), p.byID[id]
		if (now == nil) != (n == nil) {
			p.survey()
			return
		}
		if n != nil {
			n.Node, n.Use = now, p.view.Use(id)
			p.log = append(p.log, n)
		}
	}
	clear(p.stale)
}

// Place returns one decision per group, in order; later groups see what earlier ones
// took. It doesn't write to the view: a caller that writes a decision there must
// call Changed.
func (p *Placer) Place(groups ...Group) []Decision {
	p.refresh()
	out := make([]Decision, len(groups))
	for i, g := range groups {
		out[i] = p.place(g)
	}
	return out
}

func (p *Placer) place(g Group) Decision {
	d := Decision{Total: len(p.nodes)}
	s := p.shape(g)
	for range g.Count {
		n := s.best()
		if n == nil {
			d.Rejected = s.rejections()
			break
		}
		n.Wanted++
		n.Memory += g.Memory
		n.NanoCPUs += g.NanoCPUs
		n.Ports = append(slices.Clip(n.Ports), g.Ports...)
		s.look(n)
		p.log = append(p.log, n)
		s.seen = len(p.log)
		p.stale[n.Id] = true // its placement is known to this call only, until the caller writes it
		d.Nodes = append(d.Nodes, n.Id)
	}
	return d
}

// filter rejects nodes for one reason.
type filter struct {
	why     string
	refuses func(*node) bool
}

// filters returns what a node must pass for a group. The first filter that rejects a
// node provides the reason that users see.
func filters(g Group) []filter {
	out := []filter{
		{"down", func(n *node) bool { return n.Liveness == dv1.Node_DOWN }},
		{"silent", func(n *node) bool { return n.Liveness == dv1.Node_SUSPECT }},
		{"drained", func(n *node) bool { return n.Availability == dv1.Node_DRAIN || n.Availability == dv1.Node_REMOVING }},
	}
	add := func(why string, refuses func(*node) bool) { out = append(out, filter{why, refuses}) }
	for _, p := range g.Pins {
		add(p.Why, func(n *node) bool { return n.Id != p.Node })
	}
	if g.Arch != "" {
		add("are not "+g.Arch, func(n *node) bool { return n.Capacity.GetArch() != g.Arch })
	}
	for _, on := range g.On {
		c, err := parseConstraint(on)
		if err != nil {
			add(err.Error(), func(*node) bool { return true })
			continue
		}
		add("don't match "+on, func(n *node) bool { return !c.matches(n.Node) })
	}
	for _, p := range g.Ports {
		add(fmt.Sprintf("reserve port %d for drover", p.Host), func(n *node) bool { return Conflicts(Reserved(n.Node), p) })
	}
	if g.Memory > 0 {
		add("lack "+units.CustomSize("%.4g %s", float64(g.Memory), 1024, binary)+" memory", func(n *node) bool { return n.Capacity.GetMemory()-n.Memory < g.Memory })
	}
	if g.NanoCPUs > 0 {
		add(fmt.Sprintf("lack %g CPUs", float64(g.NanoCPUs)/1e9), func(n *node) bool { return n.Capacity.GetNanoCpus()-n.NanoCPUs < g.NanoCPUs })
	}
	return out
}

var binary = []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}

// score orders the nodes that fit: free ports first, which are only a preference
// here since ports are taken at start, then cost.
type score struct{ clash, cost int }

// scoreOf spreads containers: each one costs two, as does fetching the image first;
// a node that isn't the contact costs one.
func scoreOf(g Group, n *node, holds bool) score {
	s := score{cost: 2 * n.Wanted}
	if slices.ContainsFunc(g.Ports, func(p *dv1.Port) bool { return Conflicts(n.Ports, p) }) {
		s.clash = 1
	}
	if g.Digest != "" && !holds {
		s.cost += 2
	}
	if g.Contact != "" && n.Id != g.Contact {
		s.cost++
	}
	return s
}

func (s score) compare(o score) int {
	return cmp.Or(cmp.Compare(s.clash, o.clash), cmp.Compare(s.cost, o.cost))
}
