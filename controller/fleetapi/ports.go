package fleetapi

import (
	"context"
	"fmt"
	"slices"

	"connectrpc.com/connect"

	"github.com/drover/drover/controller/scheduler"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// ports implements dv1connect.PortsHandler.
type ports struct{ *server }

func (s ports) List(ctx context.Context, r *connect.Request[dv1.ListPortsRequest]) (*connect.Response[dv1.ListPortsResponse], error) {
	snap, err := s.state(ctx, r.Header())
	if err != nil {
		return nil, err
	}
	all := published(snap)
	some, next, err := page(all, func(p *dv1.PortInfo) string {
		return fmt.Sprintf("%05d/%s %s %x %d", p.Port, p.Proto, p.Ip, p.ContainerId, p.ContainerPort)
	}, r.Msg.PageSize, r.Msg.PageToken)
	if err != nil {
		return nil, err
	}
	doors := doorsOf(snap)
	for _, p := range some {
		doors.fill(snap, p)
	}
	return reply(snap, &dv1.ListPortsResponse{Ports: some, NextPageToken: next}), nil
}

// published returns the ports of all running tasks.
func published(snap *state.Snapshot) (out []*dv1.PortInfo) {
	for n := range snap.Nodes() {
		if len(snap.Use(n.Id).Ports) == 0 {
			continue
		}
		for t := range snap.TasksOfNode(n.Id) {
			if !state.Running(t) {
				continue
			}
			for _, p := range t.Ports {
				if p.Host != 0 {
					out = append(out, &dv1.PortInfo{Ip: p.Ip, Proto: p.Proto, Port: p.Host, ContainerPort: p.Container,
						ContainerId: t.Id, Container: t.Name, Node: n.Name, Unreached: n.Liveness == dv1.Node_DOWN})
				}
			}
		}
	}
	return out
}

// doors are the nodes that may lead to others' ports.
type doors []*dv1.Node

func doorsOf(snap *state.Snapshot) doors {
	var out doors
	for n := range snap.Nodes() {
		if !n.NoDoors && n.Liveness != dv1.Node_DOWN {
			out = append(out, n)
		}
	}
	return out
}

// fill adds which nodes lead to a port. That a process of a node has the number is only
// known to the node.
func (d doors) fill(snap *state.Snapshot, p *dv1.PortInfo) {
	home := snap.Task(p.ContainerId).GetNodeId()
	p.Others = uint32(snap.NodeCount() - 1)
	if !scheduler.Wildcard(p.Ip) || p.Unreached {
		return
	}
	first := snap.Door(state.PublishedPort{Proto: p.Proto, Port: p.Port})
	if first == nil || first.NodeId != home {
		p.TakenBy = first.GetName()
		return
	}
	want := &dv1.Port{Proto: p.Proto, Host: p.Port}
	for _, n := range d {
		own := slices.Concat(snap.Use(n.Id).Ports, scheduler.Reserved(n))
		if n.Id != home && !scheduler.Conflicts(own, want) {
			p.Doors++
		}
	}
}
