package command

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/scheduler"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/fields"
	"github.com/drover/drover/pkg/life"
)

// validName is docker's rule, ^[a-zA-Z0-9][a-zA-Z0-9_.-]*$.
func validName(name string) bool {
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && (c == '_' || c == '.' || c == '-'):
		default:
			return false
		}
	}
	return name != ""
}

// freeName is why a task can't have a name, nil if it can.
func (d *decision) freeName(name string) *dv1.Error {
	if d.isFree(name) {
		return nil
	}
	if !validName(name) {
		return refuse(dv1.Error_INVALID, "Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	if t := d.TaskByName(name); t != nil {
		return refuse(dv1.Error_NAME_TAKEN, `Conflict. The container name "/%s" is already in use by container "%x". You have to remove (or rename) that container to be able to reuse that name.`, name, t.Id)
	}
	return refuse(dv1.Error_NAME_TAKEN, `Conflict. The container name "/%s" is already in use by run %s. You have to remove that run's containers to be able to reuse that name.`, name, d.runOf(name).Name)
}

// isFree reports whether a task can have a name. Of a large fleet most of a create's
// candidates are taken, so that it says no more.
func (d *decision) isFree(name string) bool {
	return validName(name) && !d.TaskNamed(name) && d.runOf(name) == nil
}

// runOf is the run that has a name, as its own or as that of a slot.
func (d *decision) runOf(name string) *dv1.Run {
	if r := d.RunByName(name); r != nil {
		return r
	}
	if run, _ := slotOf(name); run != "" {
		return d.RunByName(run)
	}
	return nil
}

func (d *decision) chooseName(id []byte, want string, candidates []string) (string, *dv1.Error) {
	if want = strings.TrimPrefix(want, "/"); want != "" {
		return want, d.freeName(want)
	}
	for _, c := range candidates {
		if d.isFree(c) {
			return c, nil
		}
	}
	if c := hex.EncodeToString(id[:6]); d.isFree(c) {
		return c, nil
	}
	return "", refuse(dv1.Error_CONFLICT, "no free container name among %v", candidates)
}

func (d *decision) task(id []byte) (*dv1.Task, *dv1.Error) {
	t := d.Task(id)
	if t == nil {
		return nil, refuse(dv1.Error_NOT_FOUND, "No such container: %x", id)
	}
	d.answer(t)
	return proto.CloneOf(t), nil
}

func (d *decision) start(id []byte) *dv1.Error {
	t, e := d.task(id)
	if e != nil || t.Desired == dv1.Desired_RUNNING {
		return e
	}
	t.StopTimeout, t.StopSignal = 0, ""
	asked := proto.CloneOf(t)
	e = d.next(t)
	if e != nil && t.AutoRemove {
		d.failAtOnce(asked, e.Message)
		return nil
	}
	return e
}

// failAtOnce makes an attempt that failed because of why of one that cannot begin, for
// a task that its end removes: who waits for the end must not wait for ever.
func (d *decision) failAtOnce(t *dv1.Task, why string) {
	d.effects, d.plan = nil, nil // of the attempt that is not made
	t.Desired, t.Attempt, t.Restarts, t.Started, t.Failed, t.Ports = dv1.Desired_STOPPED, t.Attempt+1, 0, 0, clip(why), nil
	d.answer(t)
	d.add(&dv1.Effect{Of: &dv1.Effect_Ended{Ended: t}})
	d.drop(t, false, true)
}

func (d *decision) next(t *dv1.Task) *dv1.Error {
	r, err := d.batch.request(d.Spec(t.SpecId).GetBody())
	if err != nil {
		return refuse(dv1.Error_INVALID, "%v", err)
	}
	ports, taken, e := d.bind(t, d.Spec(t.SpecId), r)
	if e != nil {
		return e
	}
	if taken != nil {
		ip := taken.Ip
		if ip == "" {
			ip = "0.0.0.0"
		}
		if scheduler.Conflicts(scheduler.Reserved(d.Node(t.NodeId)), taken) {
			return refuse(dv1.Error_PORT_TAKEN, "Bind for %s:%d failed: port %d is reserved for drover", ip, taken.Host, taken.Host)
		}
		return refuse(dv1.Error_PORT_TAKEN, "Bind for %s:%d failed: port is already allocated%s", ip, taken.Host, d.takers(taken))
	}
	t.Desired, t.Attempt, t.Restarts, t.Started, t.Failed = dv1.Desired_RUNNING, t.Attempt+1, 0, 0, ""
	t.StoppedByHand, t.Ports, t.Traceparent = false, ports, d.cmd.Traceparent
	_, t.Restarting = d.cmd.Of.(*dv1.Command_Restart)
	d.put(t)
	return d.addresses(t)
}

// bind chooses a task's host ports on its node. taken is one of them that is in use
// there, if any.
func (d *decision) bind(t *dv1.Task, spec *dv1.Spec, r *container.CreateRequest) (ports []*dv1.Port, taken *dv1.Port, e *dv1.Error) {
	if r.HostConfig == nil || len(r.HostConfig.PortBindings) == 0 && !r.HostConfig.PublishAllPorts {
		return nil, nil, nil
	}
	held := slices.Clone(d.Use(t.NodeId).Ports)
	if t.Desired == dv1.Desired_RUNNING { // its own are in use
		held = slices.DeleteFunc(held, func(p *dv1.Port) bool {
			return slices.ContainsFunc(t.Ports, func(own *dv1.Port) bool { return proto.Equal(p, own) })
		})
	}
	held = append(held, scheduler.Reserved(d.Node(t.NodeId))...)
	ports, e = wantedPorts(r, d.Image(spec.GetDigest()), held)
	if i := slices.IndexFunc(ports, func(p *dv1.Port) bool { return scheduler.Conflicts(held, p) }); i >= 0 {
		taken = ports[i]
	}
	return ports, taken, e
}

// takers describes which containers hold a port on which nodes, if there is more
// than one.
func (d *decision) takers(p *dv1.Port) string {
	var out []string
	nodes := 0
	for n := range d.Nodes() {
		nodes++
		for t := range d.TasksOfNode(n.Id) {
			if t.Desired == dv1.Desired_RUNNING && scheduler.Conflicts(t.Ports, p) {
				out = append(out, n.Name+" (by "+t.Name+")")
			}
		}
	}
	if nodes < 2 {
		return ""
	}
	slices.Sort(out)
	if more := len(out) - maxTakers; more > 0 {
		out = append(out[:maxTakers], fmt.Sprintf("%d more", more))
	}
	return fmt.Sprintf(" on %d of %d nodes: %s", min(nodes, len(out)), nodes, strings.Join(out, ", "))
}

const maxTakers = 10

// wantedPorts returns the spec's published ports; for a range, the first one that is
// not held.
func wantedPorts(r *container.CreateRequest, img *dv1.Image, held []*dv1.Port) ([]*dv1.Port, *dv1.Error) {
	var out []*dv1.Port
	if r.HostConfig == nil || !fields.PublishesPorts(r) {
		return nil, nil
	}
	byText := func(a, b network.Port) int { return strings.Compare(a.String(), b.String()) }
	for _, cp := range slices.SortedFunc(maps.Keys(r.HostConfig.PortBindings), byText) {
		for _, b := range r.HostConfig.PortBindings[cp] {
			p := &dv1.Port{Proto: string(cp.Proto()), Container: uint32(cp.Num())}
			if b.HostIP.IsValid() {
				p.Ip = b.HostIP.String()
			}
			if b.HostPort != "" && b.HostPort != "0" {
				hr, err := network.ParsePortRange(b.HostPort)
				if err != nil {
					return nil, refuse(dv1.Error_INVALID, "invalid port specification: %q", b.HostPort)
				}
				p.Host = uint32(hr.Start())
				for p.Host < uint32(hr.End()) && (scheduler.Conflicts(held, p) || scheduler.Conflicts(out, p)) {
					p.Host++
				}
			}
			out = append(out, p)
		}
	}
	if r.HostConfig.PublishAllPorts {
		for _, cp := range exposed(r, img) {
			if _, bound := r.HostConfig.PortBindings[cp]; !bound {
				out = append(out, &dv1.Port{Proto: string(cp.Proto()), Container: uint32(cp.Num())})
			}
		}
	}
	return out, nil
}

// exposed returns the ports that the request and its image expose, in order.
func exposed(r *container.CreateRequest, img *dv1.Image) []network.Port {
	var out []network.Port
	if r.Config != nil {
		out = slices.Collect(maps.Keys(r.ExposedPorts))
	}
	var c struct {
		Config struct{ ExposedPorts map[string]struct{} } `json:"config"`
	}
	_ = json.Unmarshal(img.GetConfig(), &c) // an image without a readable config exposes nothing
	for p := range c.Config.ExposedPorts {
		if port, err := network.ParsePort(p); err == nil && !slices.Contains(out, port) {
			out = append(out, port)
		}
	}
	slices.SortFunc(out, func(a, b network.Port) int { return strings.Compare(a.String(), b.String()) })
	return out
}

// everywhere lists paths that mean the same on every node.
var everywhere = []string{"/etc/localtime", "/etc/timezone", "/sys", "/proc", "/dev", "/lib/modules"}

// Pins reports whether a bind's source refers to a path of one node.
func Pins(source string) bool {
	return !slices.ContainsFunc(everywhere, func(p string) bool { return source == p || strings.HasPrefix(source, p+"/") })
}

func pinned(h *container.HostConfig) bool {
	return slices.ContainsFunc(h.Binds, func(b string) bool {
		source, _, _ := strings.Cut(b, ":")
		return strings.HasPrefix(source, "/") && Pins(source)
	}) || slices.ContainsFunc(h.Mounts, func(m mount.Mount) bool { return m.Type == mount.TypeBind && Pins(m.Source) })
}

// stopTimeout returns seconds; -2 means the spec's timeout, or else docker's 10.
func (d *decision) stopTimeout(t *dv1.Task, want int32) int32 {
	if want != -2 {
		return want
	}
	if r, err := d.batch.request(d.Spec(t.SpecId).GetBody()); err == nil && r.Config != nil && r.StopTimeout != nil {
		return int32(*r.StopTimeout)
	}
	return 10
}

func (d *decision) stop(c *dv1.Stop) *dv1.Error {
	t, e := d.task(c.TaskId)
	if e != nil || !state.Live(t) {
		return e
	}
	t.Desired, t.StoppedByHand = dv1.Desired_STOPPED, true
	t.StopTimeout, t.StopSignal = d.stopTimeout(t, c.Timeout), c.Signal
	d.put(t)
	return nil
}

func (d *decision) restart(c *dv1.Restart) *dv1.Error {
	t, e := d.task(c.TaskId)
	if e != nil || (c.Attempt > 0 && t.Attempt >= c.Attempt) {
		return e
	}
	t.StopTimeout, t.StopSignal = d.stopTimeout(t, c.Timeout), c.Signal
	return d.next(t)
}

func (d *decision) rename(c *dv1.Rename) *dv1.Error {
	t, e := d.task(c.TaskId)
	if e != nil {
		return e
	}
	name := strings.TrimPrefix(c.Name, "/")
	switch name {
	case "":
		return refuse(dv1.Error_INVALID, "Neither old nor new names may be empty")
	case t.Name:
		return refuse(dv1.Error_INVALID, "Renaming a container with the same name as its current name")
	}
	if e := d.freeName(name); e != nil {
		e.Message = "Error when allocating new name: " + strings.Replace(e.Message, "("+name+")", "(/"+name+")", 1) // as docker
		return e
	}
	t.Name = name
	d.put(t)
	return nil
}

func (d *decision) remove(c *dv1.Remove) *dv1.Error {
	t, e := d.task(c.TaskId)
	if e != nil {
		return e
	}
	if state.Live(t) && !c.Force {
		return refuse(dv1.Error_CONFLICT, "cannot remove container %q: container is running: stop the container before removing or force remove", "/"+t.Name)
	}
	d.drop(t, c.Force, c.Volumes)
	return nil
}

// drop removes a task; the tombstone informs its agent, whose acknowledgement frees the
// task's addresses.
func (d *decision) drop(t *dv1.Task, force, volumes bool) {
	d.leaveAll(t.Id)
	d.add(&dv1.Effect{Of: &dv1.Effect_Tombstone{Tombstone: &dv1.Tombstone{TaskId: t.Id, NodeId: t.NodeId, At: d.now, Force: force, Volumes: volumes}}})
	if d.without[string(t.Id)] = true; volumes {
		d.dropAnonymous(t)
	}
	d.forget(t)
}

// forget deletes a task, its run if no task is left and none is wanted, and specs
// that are no longer used. What this command removes is counted, since the view
// still has it.
func (d *decision) forget(t *dv1.Task) {
	d.add(&dv1.Effect{Of: &dv1.Effect_DeleteTask{DeleteTask: t.Id}})
	d.dropped[string(t.RunId)]++
	d.dropped[string(t.SpecId)]++
	specs := [][]byte{t.SpecId}
	if run := d.Run(t.RunId); run != nil && !run.Filling && !d.RunHasTasks(run.Id, d.dropped[string(run.Id)]+1) {
		d.add(&dv1.Effect{Of: &dv1.Effect_DeleteRun{DeleteRun: run.Id}})
		d.dropped[string(run.SpecId)]++
		if !bytes.Equal(run.SpecId, t.SpecId) {
			specs = append(specs, run.SpecId)
		}
	}
	for _, spec := range specs {
		if !d.SpecInUse(spec, d.dropped[string(spec)]+1) {
			d.add(&dv1.Effect{Of: &dv1.Effect_DeleteSpec{DeleteSpec: spec}})
		}
	}
}

// keepEnded bounds how many removed tasks' exits are kept.
const keepEnded = 4096

// maxReason bounds a node's message about why a task ended or failed to start.
const maxReason = 4 << 10

func (d *decision) report(c *dv1.Report) {
	over := min(d.EndedCount()-keepEnded, 256)
	for t := range d.EndedByAge() {
		if over <= 0 {
			break
		}
		over--
		d.add(&dv1.Effect{Of: &dv1.Effect_DeleteEnded{DeleteEnded: t.Id}})
	}
	seen := map[string]bool{}
	d.res.Left = uint32(d.some(len(c.Tasks), func(i int) {
		r := c.Tasks[i]
		t := d.Task(r.TaskId)
		if t == nil || t.NodeId != c.NodeId || r.Attempt > t.Attempt || seen[string(r.TaskId)] {
			return
		}
		seen[string(r.TaskId)] = true
		d.reported(t, r)
	}))
}

// reported applies the report of one task. Agents count restarts within an attempt
// by themselves: the log keeps the latest start and the latest exit that were
// reported, not how many there were in between.
func (d *decision) reported(t *dv1.Task, r *dv1.TaskReport) {
	n := proto.CloneOf(t)
	current := r.Attempt == t.Attempt && state.Live(t)
	if current && r.Restarts > t.Restarts {
		n.Restarts, n.Started = r.Restarts, 0
	}
	if current && r.Restarts == n.Restarts && r.Started != 0 && n.Started == 0 {
		n.Started = r.Started
		if len(r.Ports) > 0 && t.Desired == dv1.Desired_RUNNING {
			if n.Ports = r.Ports; proto.Size(n) > budget {
				n.Ports = t.Ports // an honest node binds about as many as assigned
			}
		}
	}
	if ended := (life.Life{Attempt: r.Attempt, Restarts: r.Exit.GetRestarts()}); r.Exit != nil && (t.Exit == nil || life.Of(t.Exit).Before(ended)) {
		n.Exit = proto.CloneOf(r.Exit)
		n.Exit.Attempt, n.Exit.Reason = r.Attempt, clip(r.Exit.Reason)
		if current && n.Started == 0 && state.LastExit(n) != nil {
			n.Started = r.Exit.Started
		}
	}
	if current && r.Failed != "" && r.Restarts == n.Restarts && state.LastExit(n) == nil {
		n.Failed = clip(r.Failed)
	}
	n.Restarting = n.Restarting && n.Started == 0 && state.Live(n)
	if current && !state.Live(n) {
		n.Desired, n.Ports = dv1.Desired_STOPPED, nil
		if n.AutoRemove {
			// Waiters on any controller find the exit here.
			d.add(&dv1.Effect{Of: &dv1.Effect_Ended{Ended: n}})
			d.drop(n, false, true)
			return
		}
	}
	if !proto.Equal(t, n) {
		d.add(&dv1.Effect{Of: &dv1.Effect_Task{Task: n}})
	}
}

func clip(s string) string {
	if len(s) > maxReason {
		return strings.ToValidUTF8(s[:maxReason], "")
	}
	return s
}

func (d *decision) ackTombstones(c *dv1.AckTombstones) {
	seen := map[string]bool{}
	d.res.Left = uint32(d.some(len(c.TaskIds), func(i int) {
		id := c.TaskIds[i]
		if t := d.Tombstone(id); t != nil && t.NodeId == c.NodeId && !seen[string(id)] {
			seen[string(id)] = true
			d.add(&dv1.Effect{Of: &dv1.Effect_DeleteTombstone{DeleteTombstone: id}})
			d.gone(id)
		}
	}))
}
