package command

import (
	"encoding/json"
	"fmt"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/controller/access"
	"github.com/drover/drover/controller/scheduler"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/recent"
)

// Batch decides commands one after the other, each on the view that the previous
// ones left. What one of them computes, such as which nodes have room, is cached for
// the next: that affects the cost of decisions, never their outcome. A Batch and its
// view must be used by one goroutine.
type Batch struct {
	view     *state.Txn
	placer   *scheduler.Placer                            // nil until something is placed
	requests recent.Map[string, *container.CreateRequest] // decoded requests, by their bytes
}

// NewBatch returns a Batch for a view, which must then be written through the Batch
// only.
func NewBatch(view *state.Txn) *Batch {
	b := &Batch{view: view}
	b.requests.Max = maxRequests
	return b
}

// On switches to another view, which must equal the current one, committed.
func (b *Batch) On(view *state.Txn) {
	b.view = view
	if b.placer != nil {
		b.placer.On(view.View())
	}
}

// Decide leaves the view unchanged. If result.Error is set there are no effects.
// Whoever relayed a command, its principal must be allowed to do it, according to
// this view.
func (b *Batch) Decide(cmd *dv1.Command, now int64) ([]*dv1.Effect, *dv1.CommandResult) {
	d := &decision{Snapshot: b.view.View(), batch: b, cmd: cmd, now: now, dropped: map[string]int{}, without: map[string]bool{},
		lent: map[string]*dv1.Endpoint{}, noLender: map[string]bool{}, res: &dv1.CommandResult{}}
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

// touched returns the nodes that an effect changes, directly or through a task.
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

// maxRequests bounds the bytes of a generation of Batch.requests: many tasks are often
// made from few requests.
const maxRequests = 2 << 20

// request decodes a spec's body. The result must not be modified.
func (b *Batch) request(body []byte) (*container.CreateRequest, error) {
	if r, ok := b.requests.Get(string(body)); ok {
		return r, nil
	}
	r := &container.CreateRequest{}
	if err := json.Unmarshal(body, r); err != nil {
		return nil, fmt.Errorf("invalid container spec: %w", err)
	}
	b.requests.Put(string(body), r, len(body)+recent.Size(r))
	return r, nil
}

// place chooses the node for a group of one task.
func (b *Batch) place(g scheduler.Group) scheduler.Decision {
	if b.placer == nil {
		b.placer = scheduler.New(b.view.View())
	}
	return b.placer.Place(g)[0]
}
