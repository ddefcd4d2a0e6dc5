// Package scheduler chooses nodes for groups of equal tasks on a snapshot.
// It only decides: names, ports at start, committing and telling agents are
// left to command, consensus and dispatch.
package scheduler

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Group is Count tasks that want the same of a node.
type Group struct {
	Count    int
	On       []string // constraints: node==c, zone!=b, disk==ssd*
	Arch     string   // "" is any
	Memory   int64    // bytes reserved
	NanoCPUs int64    // reserved
	Ports    []*dv1.Port
	Digest   string   // image: nodes that hold it are preferred
	Holders  []string // nodes known to hold it, beside those that the snapshot shows
	Contact  string   // preferred node, "" for none
	Pinned   bool     // only the contact will do: binds and what else lives there
}

// Rejection counts the nodes that one filter turned away.
type Rejection struct {
	Nodes int
	Why   string // "lack 2 GiB memory"
}

// Decision has a node for each task of a group that fitted, in order.
type Decision struct {
	Nodes    []string
	Total    int // nodes that were looked at
	Rejected []Rejection
}

// Reason says to people why tasks of the group got no node.
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

// use is what is taken on a node, with what this call places added.
type use struct {
	node     *dv1.Node
	tasks    int
	memory   int64
	cpus     int64
	ports    []*dv1.Port
	hasImage bool
}

// Place returns one decision per group, in order; later groups see what
// earlier ones took. It does no I/O, and equal snapshots give equal placements.
func Place(s *state.Snapshot, groups []Group) []Decision {
	uses := survey(s, groups)
	out := make([]Decision, len(groups))
	for i, g := range groups {
		out[i] = place(s, uses, g)
	}
	return out
}

func survey(s *state.Snapshot, groups []Group) []*use {
	// Reading every spec is dear, and only reservations need it.
	reserves := slices.ContainsFunc(groups, func(g Group) bool { return g.Memory > 0 || g.NanoCPUs > 0 })
	var uses []*use
	for n := range s.Nodes() {
		u := &use{node: n}
		for t := range s.TasksOfNode(n.Id) {
			if t.Desired != dv1.Desired_RUNNING && t.Desired != dv1.Desired_CREATED {
				continue
			}
			u.tasks++
			if t.Desired == dv1.Desired_RUNNING {
				u.ports = append(u.ports, t.Ports...)
			}
			if reserves {
				m, c := reservation(s.Spec(t.SpecId))
				u.memory, u.cpus = u.memory+m, u.cpus+c
			}
		}
		uses = append(uses, u)
	}
	return uses
}

func place(s *state.Snapshot, uses []*use, g Group) Decision {
	d := Decision{Total: len(uses)}
	holders := map[string]bool{}
	for _, h := range g.Holders {
		holders[h] = true
	}
	if g.Digest != "" {
		for t := range s.TasksOfImage(g.Digest) {
			holders[t.NodeId] = true
		}
	}
	for range g.Count {
		rejected := map[string]int{}
		var fit []*use
		for _, u := range uses {
			u.hasImage = holders[u.node.Id]
			if why := refuse(u, g); why != "" {
				rejected[why]++
			} else {
				fit = append(fit, u)
			}
		}
		if len(fit) == 0 {
			for _, why := range slices.Sorted(maps.Keys(rejected)) {
				d.Rejected = append(d.Rejected, Rejection{rejected[why], why})
			}
			slices.SortStableFunc(d.Rejected, func(a, b Rejection) int { return b.Nodes - a.Nodes })
			return d
		}
		best := slices.MinFunc(fit, func(a, b *use) int { return better(a, b, g) })
		best.tasks++
		best.memory += g.Memory
		best.cpus += g.NanoCPUs
		best.ports = append(best.ports, g.Ports...)
		d.Nodes = append(d.Nodes, best.node.Id)
	}
	return d
}

// refuse runs the filters: the first that turns the node away says why.
func refuse(u *use, g Group) string {
	n := u.node
	switch {
	case n.Liveness == dv1.Node_DOWN:
		return "down"
	case n.Liveness == dv1.Node_SUSPECT:
		return "silent"
	case n.Availability == dv1.Node_DRAIN || n.Availability == dv1.Node_REMOVING:
		return "drained"
	case g.Pinned && n.Id != g.Contact:
		return "lack the bind's source, which is the contact's"
	case g.Arch != "" && n.Capacity.GetArch() != g.Arch:
		return "are not " + g.Arch
	}
	for _, c := range g.On {
		k, err := parseConstraint(c)
		if err != nil {
			return err.Error()
		}
		if !k.matches(n) {
			return "don't match " + c
		}
	}
	for _, p := range g.Ports {
		if Holder(Reserved(n), p) {
			return fmt.Sprintf("reserve port %d for drover", p.Host)
		}
	}
	if g.Memory > 0 && n.Capacity.GetMemory()-u.memory < g.Memory {
		return "lack " + bytesText(g.Memory) + " memory"
	}
	if g.NanoCPUs > 0 && n.Capacity.GetNanoCpus()-u.cpus < g.NanoCPUs {
		return fmt.Sprintf("lack %g CPUs", float64(g.NanoCPUs)/1e9)
	}
	return ""
}

// better orders nodes that fit: free ports first, for they are only a preference
// here (they are taken at start), then what a container would cost.
func better(a, b *use, g Group) int {
	return cmp.Or(
		cmp.Compare(clashes(a, g), clashes(b, g)),
		cmp.Compare(a.cost(g), b.cost(g)),
		cmp.Compare(a.node.Id, b.node.Id),
	)
}

func clashes(u *use, g Group) int {
	if clash(u.ports, g.Ports) {
		return 1
	}
	return 0
}

// cost spreads containers: each counts two, as does an image that is to be
// fetched first, and a node that is not the contact counts one.
func (u *use) cost(g Group) int {
	c := 2 * u.tasks
	if g.Digest != "" && !u.hasImage {
		c += 2
	}
	if g.Contact != "" && u.node.Id != g.Contact {
		c++
	}
	return c
}

func clash(held, want []*dv1.Port) bool {
	for _, w := range want {
		if Holder(held, w) {
			return true
		}
	}
	return false
}

// Holder says whether one of the held ports keeps want from being bound.
func Holder(held []*dv1.Port, want *dv1.Port) bool {
	return slices.ContainsFunc(held, func(h *dv1.Port) bool { return Overlap(h, want) })
}

// Reserved are the ports that drover itself has on a node, for Holder.
func Reserved(n *dv1.Node) []*dv1.Port {
	var out []*dv1.Port
	for _, p := range n.GetReservedPorts() {
		out = append(out, &dv1.Port{Proto: "tcp", Host: p}, &dv1.Port{Proto: "udp", Host: p})
	}
	return out
}

// Overlap says whether two host ports can't be bound side by side; a wildcard
// address overlaps every other. Port 0 is yet to be chosen and overlaps none.
func Overlap(a, b *dv1.Port) bool {
	if a.Host == 0 || a.Host != b.Host || a.Proto != b.Proto {
		return false
	}
	return Wildcard(a.Ip) || Wildcard(b.Ip) || a.Ip == b.Ip
}

// Wildcard says whether a host address stands for all of them.
func Wildcard(ip string) bool { return ip == "" || ip == "0.0.0.0" || ip == "::" }

func reservation(s *dv1.Spec) (memory, nanoCPUs int64) {
	var r container.CreateRequest
	if s == nil || json.Unmarshal(s.Body, &r) != nil || r.HostConfig == nil {
		return 0, 0
	}
	return r.HostConfig.MemoryReservation, 0
}

func bytesText(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.size {
			return fmt.Sprintf("%.4g %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}
