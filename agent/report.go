package agent

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/drover/drover/agent/engine"
	"github.com/drover/drover/agent/images/peers"
	"github.com/drover/drover/agent/session"
	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/subnet"
)

// Hello implements session.Agent. A node without a subnet has never run anything.
func (a *agent) Hello(ctx context.Context) (*dv1.Hello, error) {
	n, err := a.store.NextSession()
	if err != nil {
		return nil, err
	}
	at, err := a.store.Last()
	if err != nil {
		return nil, err
	}
	h := &dv1.Hello{Roster: a.fleet.now.Load().Sum(), Number: n, Epoch: at.Epoch, Term: at.Term, Index: at.Index, Inventory: &dv1.Observation{Full: true},
		Node: &dv1.Node{Id: a.NodeID, Name: a.Name, Addr: a.addr, Labels: a.Labels}}
	h.Node.NoDoors = a.NoDoors
	for _, p := range a.Reserved {
		h.Node.ReservedPorts = append(h.Node.ReservedPorts, uint32(p))
	}
	if h.Node.Subnet, err = a.store.Subnet(); err != nil {
		return nil, err
	}
	if h.Specs, err = a.store.Specs(); err != nil {
		return nil, err
	}
	h.Node.Capacity = engine.Host(ctx, a.Version)
	a.mu.Lock()
	up := a.up
	a.mu.Unlock()
	if !up {
		return h, nil
	}
	select {
	case <-a.rec.Ready():
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if h.Inventory.Images, err = a.images.List(ctx); err != nil {
		return nil, err
	}
	h.Inventory.Tasks = a.rec.Statuses()
	return h, nil
}

// Welcome implements session.Agent.
func (a *agent) Welcome(_ context.Context, w *dv1.Welcome) error {
	if w.ClusterId != a.ClusterID {
		return fmt.Errorf("the controller is of cluster %s, this node of %s", w.ClusterId, a.ClusterID)
	}
	a.Changed(w)
	have, err := a.store.Subnet()
	if err != nil {
		return err
	}
	switch have {
	case w.Subnet:
	case "":
		if _, ok := subnet.Of(w.Subnet); !ok { // stored, it would end this agent at each start
			return fmt.Errorf("the control plane says that this node's subnet is %q, which is none", w.Subnet)
		}
		if err := a.store.SetSubnet(w.Subnet); err != nil {
			return err
		}
	default:
		return fmt.Errorf("the control plane says that this node's subnet is %s, containers here have %s", w.Subnet, have)
	}
	// Not under ctx: what a broken session leaves half open can't be opened again.
	return a.bring(a.ctx, w.Subnet)
}

// Take implements session.Agent.
func (a *agent) Take(ctx context.Context, y *dv1.Sync) error {
	for _, x := range y.Sources {
		a.peers.Named(x.Digest, peers.Source{Holders: x.Holders, Grant: x.Grant, Public: x.Public})
	}
	err := a.rec.Take(ctx, y)
	if errors.Is(err, task.ErrStale) {
		return fmt.Errorf("%w: %w", session.ErrStale, err)
	}
	return err
}

// Changed implements session.Agent.
func (a *agent) Changed(w *dv1.Welcome) {
	a.fleet.take(w.Roster)
	a.peers.Welcomed(w)
	if old := a.known.Swap(w); len(w.Controllers) > 0 && a.SaveControllers != nil && (old == nil || !slices.Equal(old.Controllers, w.Controllers)) {
		if err := a.SaveControllers(w.Controllers); err != nil {
			a.Logger.Warn("the controllers' addresses can't be stored", "err", err)
		}
	}
}

func (a *agent) event(taskID, action string, attributes map[string]string) {
	id, err := hex.DecodeString(taskID)
	if err != nil {
		return
	}
	a.box.Event(&dv1.Event{TaskId: id, Action: action, TimeNano: time.Now().UnixNano(), Attributes: attributes})
}

func (a *agent) volumeEvent(taskID, volume, action string, attributes map[string]string) {
	id, err := hex.DecodeString(taskID)
	if err != nil {
		return
	}
	a.box.Event(&dv1.Event{TaskId: id, Volume: volume, Action: action, TimeNano: time.Now().UnixNano(), Attributes: attributes})
}
