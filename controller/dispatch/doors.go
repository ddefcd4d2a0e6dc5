package dispatch

import (
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// doors knows to which nodes published ports lead, as of the last commit, so that nodes are
// told only of what changed.
type doors struct {
	of   map[string][]state.PublishedPort // ports by task
	to   map[state.PublishedPort]string   // nodes
	down map[string]bool                  // nodes
}

func newDoors() doors {
	return doors{of: map[string][]state.PublishedPort{}, to: map[state.PublishedPort]string{}, down: map[string]bool{}}
}

func (d *doors) begin(snap *state.Snapshot) {
	for n := range snap.Nodes() {
		d.node(snap, n.Id)
	}
	for port := range snap.PublishedPorts() {
		d.changed(snap, port)
		for t := range snap.Publishers(port) {
			d.task(snap, t.Id)
		}
	}
}

// task returns the ports that a task has or had before.
func (d *doors) task(snap *state.Snapshot, id []byte) []state.PublishedPort {
	before, now := d.of[string(id)], state.PublishedBy(snap.Task(id))
	if len(now) > 0 {
		d.of[string(id)] = now
	} else {
		delete(d.of, string(id))
	}
	return append(before[:len(before):len(before)], now...)
}

// node returns the ports of a node that is down and was not, or the other way round.
func (d *doors) node(snap *state.Snapshot, id string) (out []state.PublishedPort) {
	down := snap.Node(id).GetLiveness() == dv1.Node_DOWN
	if d.down[id] == down {
		return nil
	}
	if delete(d.down, id); down {
		d.down[id] = true
	}
	for t := range snap.TasksOfNode(id) {
		out = append(out, state.PublishedBy(t)...)
	}
	return out
}

// changed records to which node a port leads, and reports whether it is another one.
func (d *doors) changed(snap *state.Snapshot, port state.PublishedPort) bool {
	now := snap.Door(port).GetNodeId()
	if d.to[port] == now {
		return false
	}
	if d.to[port] = now; now == "" {
		delete(d.to, port)
	}
	return true
}

// markDoors marks ports that lead elsewhere than before, for the nodes that are doors.
func (t *term) markDoors(index uint64, which func(*doors, *state.Snapshot) []state.PublishedPort) {
	snap := t.o.Log.Snapshot()
	var changed []state.PublishedPort
	o := t.topology
	o.mu.Lock()
	for _, p := range which(&o.doors, snap) {
		if o.doors.changed(snap, p) {
			changed = append(changed, p)
		}
	}
	o.mu.Unlock()
	if len(changed) == 0 {
		return
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, n := range t.nodes {
		if s := n.session.Load(); s != nil && !s.shut {
			for _, p := range changed {
				s.mark(mark{markDoor, p.String()}, index)
			}
		}
	}
}

func (t *term) markDoorsOfTask(id []byte, index uint64) {
	t.markDoors(index, func(d *doors, snap *state.Snapshot) []state.PublishedPort { return d.task(snap, id) })
}

func (t *term) markDoorsOfNode(id string, index uint64) {
	t.markDoors(index, func(d *doors, snap *state.Snapshot) []state.PublishedPort { return d.node(snap, id) })
}

// door adds to which node a port leads.
func (p *parts) door(snap *state.Snapshot, port state.PublishedPort) {
	d := &dv1.Door{Proto: port.Proto, Port: port.Port, NodeId: snap.Door(port).GetNodeId()}
	p.room(proto.Size(d))
	p.around().Doors = append(p.around().Doors, d)
}
