package command

import (
	"encoding/json"
	"fmt"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/controller/access"
	"github.com/drover/drover/controller/scheduler"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Batch decides commands one after the other, each on what those before it left in
// the view. What one of them found out, as which nodes have room, the next ones have
// at hand: it changes what deciding costs, never what is decided. One goroutine owns
// a Batch and its view.
type Batch struct {
	view     *state.Txn
	placer   *scheduler.Placer                   // nil until something is placed
	requests map[string]*container.CreateRequest // by what they were decoded from
}

// NewBatch makes a Batch on a view, which from then on is written through it only.
func NewBatch(view *state.Txn) *Batch {
	return &Batch{view: view, requests: map[string]*container.CreateRequest{}}
}

// On goes on with another view, which must hold what the one so far does: what was
// written to that, committed.
func (b *Batch) On(view *state.Txn) {
	b.view = view
	if b.placer != nil {
		b.placer.On(view.View())
	}
}

// Decide leaves the view as it is. With result.Error there are no effects. Whoever
// relayed a command, its principal must be allowed what it asks for, in this view.
func (b *Batch) Decide(cmd *dv1.Command, now int64) ([]*dv1.Effect, *dv1.CommandResult) {
	d := &decision{Snapshot: b.view.View(), batch: b, cmd: cmd, now: now, gone: map[string]int{}, res: &dv1.CommandResult{}}
	var err error
	if d.who, err = access.Allowed(d.Snapshot, cmd.GetPrincipal(), access.Command(cmd)); err != nil {
		return nil, &dv1.CommandResult{Error: refuse(dv1.Error_FORBIDDEN, "%v", err)}
	}
	if e := d.decide(); e != nil {
		return nil, &dv1.CommandResult{Error: e}
	}
	d.res.Changed = d.res.Changed || len(d.effects) > 0
	return d.effects, d.res
}

// Apply writes effects to the view.
func (b *Batch) Apply(effects ...*dv1.Effect) error {
	if b.placer != nil {
		for _, e := range effects {
			b.placer.Changed(b.touched(e)...)
		}
	}
	return b.view.Apply(effects...)
}

// touched are the nodes which an effect changes, or a task of which.
func (b *Batch) touched(e *dv1.Effect) (nodes []string) {
	was := func(id []byte) {
		if t := b.view.Task(id); t != nil {
			nodes = append(nodes, t.NodeId)
		}
	}
	switch of := e.GetOf().(type) {
	case *dv1.Effect_Task:
		was(of.Task.Id)
		nodes = append(nodes, of.Task.NodeId)
	case *dv1.Effect_DeleteTask:
		was(of.DeleteTask)
	case *dv1.Effect_Node:
		nodes = append(nodes, of.Node.Id)
	case *dv1.Effect_DeleteNode:
		nodes = append(nodes, of.DeleteNode)
	}
	return nodes
}

// Bounds of Batch.requests: many tasks are often made with few requests.
const (
	maxRequests    = 256
	maxRequestSize = 8 << 10
)

// request decodes a spec's body. What it returns is not to be modified.
func (b *Batch) request(body []byte) (*container.CreateRequest, error) {
	if r := b.requests[string(body)]; r != nil {
		return r, nil
	}
	r := &container.CreateRequest{}
	if err := json.Unmarshal(body, r); err != nil {
		return nil, fmt.Errorf("invalid container spec: %w", err)
	}
	if len(body) <= maxRequestSize {
		if len(b.requests) >= maxRequests {
			clear(b.requests)
		}
		b.requests[string(body)] = r
	}
	return r, nil
}

// place chooses the node of a group of one.
func (b *Batch) place(g scheduler.Group) scheduler.Decision {
	if b.placer == nil {
		b.placer = scheduler.New(b.view.View())
	}
	return b.placer.Place(g)[0]
}
