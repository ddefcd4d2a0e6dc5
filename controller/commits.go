package controller

import (
	"maps"
	"sync"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// gate holds back commits of earlier runs of this process, which raft replays at
// startup.
type gate struct {
	mu       sync.Mutex // guards to and restored
	to       func([]*dv1.Effect, uint64)
	restored func(before, after *state.Snapshot)
}

func (g *gate) committed(effects []*dv1.Effect, index uint64) {
	g.mu.Lock()
	to := g.to
	g.mu.Unlock()
	if to != nil {
		to(effects, index)
	}
}

func (g *gate) restore(before, after *state.Snapshot) {
	g.mu.Lock()
	restored := g.restored
	g.mu.Unlock()
	if restored != nil {
		restored(before, after)
	}
}

// open runs seed between the last commit that is held back and the first one that
// passes.
func (g *gate) open(seed func(), to func([]*dv1.Effect, uint64), restored func(before, after *state.Snapshot)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	seed()
	g.to, g.restored = to, restored
}

// between returns the effects that connections and controllers are closed by, for
// entries that a snapshot replaced.
func between(before, after *state.Snapshot) (out []*dv1.Effect) {
	for i := range after.Identities() {
		if i.Revoked && !before.Identity(i.Uri).GetRevoked() {
			out = append(out, &dv1.Effect{Of: &dv1.Effect_Identity{Identity: i}})
		}
	}
	for n := range after.Nodes() {
		if !maps.Equal(before.Node(n.Id).GetRoles(), n.Roles) {
			out = append(out, &dv1.Effect{Of: &dv1.Effect_Node{Node: n}})
		}
	}
	for m := range before.Controllers() {
		if after.Controller(m.Id) == nil {
			out = append(out, &dv1.Effect{Of: &dv1.Effect_DeleteController{DeleteController: m.Id}})
		}
	}
	return out
}
