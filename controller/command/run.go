package command

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/scheduler"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/route"
	"github.com/drover/drover/pkg/volumes"
)

func (d *decision) create(c *dv1.CreateRun) *dv1.Error {
	one := c.Mode == dv1.Run_ONE
	switch {
	case len(c.RunId) != 32 || d.Run(c.RunId) != nil, one && (len(c.TaskIds) != 1 || len(c.TaskIds[0]) != 32 || d.Task(c.TaskIds[0]) != nil):
		return refuse(dv1.Error_INVALID, "a run needs one new task id and a new run id, of 32 bytes each")
	case !one && c.Mode != dv1.Run_EACH:
		return refuse(dv1.Error_INVALID, "run mode %s is not supported here", c.Mode)
	case !one && len(c.TaskIds) > 0:
		return refuse(dv1.Error_INVALID, "the ids of a run's tasks are derived from the run's id")
	case !one && d.Level() < state.LevelRuns:
		return refuse(dv1.Error_UNAVAILABLE, "runs over nodes have to wait until all controllers know them: drover node and controller lists show which is older")
	}
	r, err := d.batch.request(c.Spec.GetBody())
	if err != nil {
		return refuse(dv1.Error_INVALID, "%v", err)
	}
	if field := Rootly(r.HostConfig); field != "" && !route.Admin.Has(d.who) {
		return refuse(dv1.Error_FORBIDDEN, "HostConfig.%s is refused: the role user may not be root on a host, as a container with it could be", field)
	}
	if e := d.checkEndpoints(c.Endpoints, one); e != nil {
		return e
	}
	run := &dv1.Run{Id: c.RunId, Mode: c.Mode, Generation: 1, Created: d.now, Principal: d.cmd.Principal, On: c.On, AutoRemove: c.AutoRemove}
	var name string
	var e *dv1.Error
	if one {
		name, e = d.chooseName(c.TaskIds[0], c.Name, c.NameCandidates)
	} else {
		name, e = d.chooseRunName(c)
	}
	if e != nil {
		return e
	}
	digest, e := FindImage(d.Snapshot, c.Spec.Image)
	if e != nil {
		return e
	}
	// The digest is part of the id: the tag of an equal request may have moved.
	sum := sha256.Sum256(append(append(slices.Clone(c.Spec.Body), 0), digest...))
	spec := &dv1.Spec{Id: sum[:], Body: c.Spec.Body, Image: c.Spec.Image, Digest: digest}
	run.SpecId = spec.Id
	g, e := d.group(spec, r, c.On)
	if e != nil {
		return e
	}
	if d.Spec(spec.Id) == nil {
		d.add(&dv1.Effect{Of: &dv1.Effect_Spec{Spec: spec}})
	}
	if !one {
		run.Name, run.Start, run.Filling, run.Traceparent, run.Endpoints = name, c.Start, true, d.cmd.Traceparent, c.Endpoints
		return d.fill(run, spec, r, g)
	}
	m, e := d.mounting(c.TaskIds[0], spec, r)
	if e != nil {
		return e
	}
	g.Contact = c.Contact
	if c.Contact != "" && !scheduler.NamesNode(c.On) && r.HostConfig != nil && pinned(r.HostConfig) {
		m.places = append(m.places, place{c.Contact, "the bind's source is on " + d.homeName(c.Contact) + ", the contact", "lack the bind's source, which is the contact's"})
	}
	if e := agree(m.places); e != nil {
		return e
	}
	place := d.placeWith(m, g)
	if len(place.Nodes) == 0 {
		return refuse(dv1.Error_UNAVAILABLE, "%s", place.Reason())
	}
	m.settle(place.Nodes[0])
	run.Count = 1
	d.add(&dv1.Effect{Of: &dv1.Effect_Run{Run: run}})
	t := d.newTask(run, 1, place.Nodes[0])
	t.Id, t.Name, t.Traceparent, t.Mounts = c.TaskIds[0], name, d.cmd.Traceparent, m.mounts
	d.put(t)
	return d.attach(t, c.Endpoints)
}

// placeWith places a task with its mounts, beside other volumes that belong to its own if
// there is room.
func (d *decision) placeWith(m *mounting, g scheduler.Group) scheduler.Decision {
	g.Pins = append(g.Pins, pins(m.places)...)
	if node := m.beside(); node != "" && len(m.places) == 0 {
		with := g
		with.Pins = append(slices.Clip(g.Pins), scheduler.Pin{Node: node, Why: "excluded: volumes of the same group are on " + d.homeName(node)})
		if place := d.batch.place(with); len(place.Nodes) > 0 {
			return place
		}
	}
	return d.batch.place(g)
}

// group returns what tasks of a spec require of a node.
func (d *decision) group(spec *dv1.Spec, r *container.CreateRequest, on []string) (scheduler.Group, *dv1.Error) {
	g := scheduler.Group{Count: 1, On: on, Digest: spec.Digest}
	for _, c := range on {
		if err := scheduler.CheckConstraint(c); err != nil {
			return g, refuse(dv1.Error_INVALID, "%v", err)
		}
	}
	if r.HostConfig == nil {
		return g, nil
	}
	g.Memory = r.HostConfig.MemoryReservation
	var reserved []*dv1.Port // a range skips these
	if len(r.HostConfig.PortBindings) > 0 {
		for n := range d.Nodes() {
			reserved = append(reserved, scheduler.Reserved(n)...)
		}
	}
	var e *dv1.Error
	g.Ports, e = wantedPorts(r, d.Image(spec.Digest), reserved)
	return g, e
}

// newTask returns a new task of a run, for a slot and a node.
func (d *decision) newTask(run *dv1.Run, slot uint32, node string) *dv1.Task {
	return &dv1.Task{Id: state.TaskID(run.Id, slot, run.Generation), RunId: run.Id, SpecId: run.SpecId, Name: fmt.Sprintf("%s-%d", run.Name, slot),
		NodeId: node, Slot: slot, Generation: run.Generation, Desired: dv1.Desired_CREATED, Created: d.now, AutoRemove: run.AutoRemove, Traceparent: run.Traceparent}
}

// fill creates tasks that a run over nodes lacks, as many as fit into one entry; the
// leader continues with the rest. Nodes are processed in order of their ids, so that
// one id records the progress, and auto-removed tasks aren't created again.
func (d *decision) fill(run *dv1.Run, spec *dv1.Spec, r *container.CreateRequest, g scheduler.Group) *dv1.Error {
	m, e := d.mounting(run.Id, spec, r)
	if e == nil {
		e = m.onNodes()
	}
	if e != nil {
		return e
	}
	g.Pins = append(g.Pins, pins(m.places)...)
	fits := scheduler.Each(d.Snapshot, g, run.Filled)
	type spot struct {
		node  string
		ports []*dv1.Port
	}
	var spots []spot
	for _, node := range fits.Nodes {
		at := spot{node: node}
		if run.Start {
			ports, taken, refused := d.bind(d.newTask(run, 0, node), spec, r)
			if refused != nil {
				return refused
			}
			if taken != nil {
				fits.Reject(fmt.Sprintf("have port %d taken", taken.Host))
				continue
			}
			at.ports = ports
		}
		spots = append(spots, at)
	}
	var made []*dv1.Task
	var failed *dv1.Error
	last := -1 // spot of the last one that was made
	left := d.some(len(spots), func(i int) {
		t := d.newTask(run, run.Count+uint32(len(made))+1, spots[i].node)
		if run.Start {
			t.Desired, t.Attempt, t.Ports = dv1.Desired_RUNNING, 1, spots[i].ports
		}
		m, e := d.mounting(t.Id, spec, r) // as for the run
		if e != nil {
			failed = e
			return
		}
		before := len(d.effects)
		m.settle(t.NodeId)
		t.Mounts = m.mounts
		d.add(&dv1.Effect{Of: &dv1.Effect_Task{Task: t}})
		if e := d.attach(t, run.Endpoints); e != nil {
			d.effects = d.effects[:before]
			fits.Reject("lack an address: " + e.Message)
			return
		}
		made, last = append(made, t), i
	})
	if failed != nil {
		return failed
	}
	if left > 0 && last == len(spots)-left { // it did not fit
		made = made[:len(made)-1]
	}
	if len(made) == 0 && run.Count == 0 {
		return refuse(dv1.Error_UNAVAILABLE, "%s", fits.Reason())
	}
	for _, t := range made {
		d.res.Placed = append(d.res.Placed, &dv1.Placed{TaskId: t.Id, Name: t.Name, NodeId: t.NodeId})
		run.Count, run.Filled = t.Slot, t.NodeId
	}
	for _, j := range fits.Rejected {
		d.res.Rejected = append(d.res.Rejected, &dv1.Rejected{Nodes: uint32(j.Nodes), Why: j.Why})
	}
	d.res.RunId, d.res.Name, d.res.Left = run.Id, run.Name, uint32(left)
	if left == 0 {
		run.Filling, run.Filled = false, ""
	}
	if !run.Filling && len(made) == 0 && !d.RunHasTasks(run.Id, 1) {
		d.add(&dv1.Effect{Of: &dv1.Effect_DeleteRun{DeleteRun: run.Id}})
		if !d.SpecInUse(run.SpecId, 2) {
			d.add(&dv1.Effect{Of: &dv1.Effect_DeleteSpec{DeleteSpec: run.SpecId}})
		}
		return nil
	}
	d.add(&dv1.Effect{Of: &dv1.Effect_Run{Run: run}})
	return nil
}

// fillRun continues a run that did not fit into one entry.
func (d *decision) fillRun(id []byte) *dv1.Error {
	run := proto.CloneOf(d.Run(id))
	if run == nil || !run.Filling {
		return nil
	}
	spec := d.Spec(run.SpecId)
	r, err := d.batch.request(spec.GetBody())
	if err != nil {
		return refuse(dv1.Error_INVALID, "%v", err)
	}
	g, e := d.group(spec, r, run.On)
	if e != nil {
		return e
	}
	return d.fill(run, spec, r, g)
}

// chooseRunName finds a name for which NAME-1, NAME-2 and so on are free too.
func (d *decision) chooseRunName(c *dv1.CreateRun) (string, *dv1.Error) {
	free := func(name string) *dv1.Error {
		if e := d.freeName(name); e != nil {
			return e
		}
		for taken := range d.TaskNames(name + "-") {
			if run, _ := slotOf(taken); run == name {
				return refuse(dv1.Error_NAME_TAKEN, `Conflict. The name "%s" would have a container be "/%s", which is already in use.`, name, taken)
			}
		}
		return nil
	}
	if want := strings.TrimPrefix(c.Name, "/"); want != "" {
		return want, free(want)
	}
	for _, name := range append(slices.Clone(c.NameCandidates), hex.EncodeToString(c.RunId[:6])) {
		if free(name) == nil {
			return name, nil
		}
	}
	return "", refuse(dv1.Error_CONFLICT, "no free name among %v", c.NameCandidates)
}

// slotOf splits the name of a slot; run is "" if it isn't one.
func slotOf(name string) (run string, slot uint32) {
	i := strings.LastIndexByte(name, '-')
	if i <= 0 {
		return "", 0
	}
	n, err := strconv.ParseUint(name[i+1:], 10, 32)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != name[i+1:] {
		return "", 0
	}
	return name[:i], uint32(n)
}

// onNodes refuses volumes that the tasks of a run over nodes would have to share, on one
// node.
func (m *mounting) onNodes() *dv1.Error {
	for _, v := range m.volumes {
		if _, anonymous := v.Labels[volumes.LabelAnonymous]; anonymous || v.Home != "" || m.d.Volume(v.Id) != nil && !volumes.HasHome(v.Options) {
			continue
		}
		return refuse(dv1.Error_INVALID, "volume %s has no node yet, and would be on one of them only: use anonymous volumes, or create one whose data is elsewhere (type nfs, cifs, tmpfs)", v.Name)
	}
	return agree(m.places)
}
