package scheduler

import (
	"slices"

	"github.com/drover/drover/controller/state"
)

// Each decides for a group of which every node that it fits gets one task: these are
// in the order of their ids, from the first behind a node on, "" for all.
func Each(s *state.Snapshot, g Group, behind string) (d Decision) {
	all := filters(g)
	for n := range s.Nodes() {
		if n.Id <= behind {
			continue
		}
		d.Total++
		candidate := &node{Node: n, Use: s.Use(n.Id)}
		if i := slices.IndexFunc(all, func(f filter) bool { return f.refuses(candidate) }); i >= 0 {
			d.Reject(all[i].why)
			continue
		}
		d.Nodes = append(d.Nodes, n.Id)
	}
	return d
}

// Reject counts one more node that was turned away, the most frequent reason first.
func (d *Decision) Reject(why string) {
	i := slices.IndexFunc(d.Rejected, func(r Rejection) bool { return r.Why == why })
	if i < 0 {
		d.Rejected = append(d.Rejected, Rejection{Why: why})
		i = len(d.Rejected) - 1
	}
	d.Rejected[i].Nodes++
	for ; i > 0 && d.Rejected[i-1].Nodes < d.Rejected[i].Nodes; i-- {
		d.Rejected[i-1], d.Rejected[i] = d.Rejected[i], d.Rejected[i-1]
	}
}
