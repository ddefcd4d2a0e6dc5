// Package command decides what a command does to the state: effects and a result, as
// a pure function. Logging and applying them is left to consensus and state.
package command

import (
	"fmt"
	"maps"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/ipam"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/join"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/subnet"
	"github.com/drover/drover/pkg/timing"
)

const (
	keepResults = 15 * time.Minute
	maxResults  = 1 << 17
	maxKept     = 64 << 20 // bytes of results
)

type decision struct {
	*state.Snapshot
	batch    *Batch
	cmd      *dv1.Command
	who      pki.Principal // principal of the command
	now      int64
	effects  []*dv1.Effect
	sized    int // number of effects that size includes
	size     int
	dropped  map[string]int           // removed by this command: tasks per run, runs and tasks per spec, endpoints per network and place
	plan     *ipam.Plan               // of addresses that this command chooses; nil until it does
	lent     map[string]*dv1.Endpoint // by task and network: endpoints that this command takes addresses from
	noLender map[string]bool          // families and networks in which none is left to take
	without  map[string]bool          // ids of tasks and volumes that this command removes
	res      *dv1.CommandResult
}

// Decide decides one command, as a Batch of its own.
func Decide(view *state.Txn, cmd *dv1.Command, now int64) ([]*dv1.Effect, *dv1.CommandResult) {
	return NewBatch(view).Decide(cmd, now)
}

// Evict deletes the results of idempotency keys that are older than 15 minutes, and
// the oldest beyond a count or a number of bytes.
func Evict(s *state.Snapshot, now int64) (out []*dv1.Effect) {
	over, size := s.ResultCount()-maxResults, s.ResultBytes()-maxKept
	for r := range s.ResultsByAge() {
		if (now-r.At < int64(keepResults) && over <= 0 && size <= 0) || len(out) == 64 {
			break
		}
		over--
		size -= proto.Size(r)
		out = append(out, &dv1.Effect{Of: &dv1.Effect_DeleteResult{DeleteResult: r.Key}})
	}
	return out
}

func (d *decision) decide() *dv1.Error {
	switch c := d.cmd.GetOf().(type) {
	case *dv1.Command_Init:
		return d.init(c.Init)
	case *dv1.Command_Create:
		return d.create(c.Create)
	case *dv1.Command_CreateVolume:
		return d.createVolume(c.CreateVolume)
	case *dv1.Command_RemoveVolumes:
		return d.removeVolumes(c.RemoveVolumes)
	case *dv1.Command_MoveVolume:
		return d.moveVolume(c.MoveVolume)
	case *dv1.Command_EndMove:
		return d.endMove(c.EndMove)
	case *dv1.Command_FillRun:
		return d.fillRun(c.FillRun.RunId)
	case *dv1.Command_Start:
		return d.start(c.Start.TaskId)
	case *dv1.Command_Stop:
		return d.stop(c.Stop)
	case *dv1.Command_Restart:
		return d.restart(c.Restart)
	case *dv1.Command_Rename:
		return d.rename(c.Rename)
	case *dv1.Command_Remove:
		return d.remove(c.Remove)
	case *dv1.Command_CommitImage:
		return d.commitImage(c.CommitImage)
	case *dv1.Command_PutTag:
		return d.putTag(c.PutTag)
	case *dv1.Command_Untag:
		return d.untag(c.Untag)
	case *dv1.Command_RegisterNode:
		return d.register(c.RegisterNode.GetNode())
	case *dv1.Command_SetLiveness:
		d.setLiveness(c.SetLiveness.Nodes)
	case *dv1.Command_Report:
		d.report(c.Report)
	case *dv1.Command_AckTombstones:
		d.ackTombstones(c.AckTombstones)
	case *dv1.Command_PutIdentity:
		if i := c.PutIdentity.GetIdentity(); !proto.Equal(d.Identity(i.GetUri()), i) {
			d.add(&dv1.Effect{Of: &dv1.Effect_Identity{Identity: i}})
		}
	case *dv1.Command_PutSealed:
		return d.putSealed(c.PutSealed.GetSealed())
	case *dv1.Command_RotateDataKey:
		return d.rotateDataKey(c.RotateDataKey)
	case *dv1.Command_Join:
		return d.join(c.Join)
	case *dv1.Command_PutToken:
		return d.putToken(c.PutToken.GetToken())
	case *dv1.Command_RevokeToken:
		return d.revokeToken(c.RevokeToken.Id)
	case *dv1.Command_UpdateNode:
		return d.updateNode(c.UpdateNode)
	case *dv1.Command_RemoveNode:
		return d.removeNode(c.RemoveNode)
	case *dv1.Command_RemoveController:
		return d.removeController(c.RemoveController.Id)
	case *dv1.Command_PutController:
		return d.putController(c.PutController.GetController())
	case *dv1.Command_SetTiming:
		return d.setTiming(c.SetTiming.GetTiming())
	case *dv1.Command_AddPool:
		return d.addPool(c.AddPool)
	case *dv1.Command_CreateNetwork:
		return d.createNetwork(c.CreateNetwork.GetNetwork())
	case *dv1.Command_RemoveNetwork:
		return d.removeNetwork(c.RemoveNetwork.Id)
	case *dv1.Command_Connect:
		return d.connect(c.Connect)
	case *dv1.Command_Disconnect:
		return d.disconnect(c.Disconnect)
	case *dv1.Command_LeftNetworks:
		return d.leftNetworks(c.LeftNetworks)
	case *dv1.Command_Killed:
		if t := d.Task(c.Killed.TaskId); t != nil && t.Attempt == c.Killed.Attempt && !t.StoppedByHand {
			t = proto.CloneOf(t)
			t.StoppedByHand = true
			d.put(t)
		}
	default:
		return refuse(dv1.Error_INVALID, "unknown command %T", c)
	}
	return nil
}

func refuse(kind dv1.Error_Kind, format string, a ...any) *dv1.Error {
	return &dv1.Error{Kind: kind, Message: fmt.Sprintf(format, a...)}
}
func (d *decision) add(e ...*dv1.Effect) { d.effects = append(d.effects, e...) }

// budget bounds the effects of a command that can be continued in another entry,
// well below the proposer's limit, which includes results.
const budget = 64 << 10

// some calls f for as many of a command's n parts as fit into one entry, and at
// least for the first. It returns how many are left.
func (d *decision) some(n int, f func(i int)) (left int) {
	for i := range n {
		before := len(d.effects)
		f(i)
		was := d.size
		for _, e := range d.effects[d.sized:] {
			d.size += proto.Size(e) + 8
		}
		if d.size > budget && i > 0 {
			d.effects, d.sized, d.size = d.effects[:before], before, was
			return n - i
		}
		d.sized = len(d.effects)
	}
	return 0
}

// setLiveness records verdicts, ignoring nodes that were removed meanwhile.
func (d *decision) setLiveness(verdicts []*dv1.Verdict) {
	d.res.Left = uint32(d.some(len(verdicts), func(i int) {
		if n := d.Node(verdicts[i].NodeId); n != nil && n.Liveness != verdicts[i].Liveness {
			n = proto.CloneOf(n)
			n.Liveness = verdicts[i].Liveness
			d.add(&dv1.Effect{Of: &dv1.Effect_Node{Node: n}})
		}
	}))
}

func (d *decision) put(t *dv1.Task) {
	d.add(&dv1.Effect{Of: &dv1.Effect_Task{Task: t}})
	d.answer(t)
}
func (d *decision) answer(t *dv1.Task) {
	d.res.TaskId, d.res.Name, d.res.NodeId, d.res.Attempt = t.Id, t.Name, t.NodeId, t.Attempt
}

func (d *decision) init(c *dv1.Init) *dv1.Error {
	if old := d.Cluster(); old != nil {
		if old.Id == c.Cluster.GetId() {
			return nil
		}
		return refuse(dv1.Error_CONFLICT, "this controller belongs to cluster %s", old.Id)
	}
	if c.Cluster.GetId() == "" {
		return refuse(dv1.Error_INVALID, "a cluster needs an id")
	}
	d.add(&dv1.Effect{Of: &dv1.Effect_Cluster{Cluster: c.Cluster}})
	for _, i := range c.Identities {
		d.add(&dv1.Effect{Of: &dv1.Effect_Identity{Identity: i}})
	}
	for _, s := range c.Sealed {
		d.add(&dv1.Effect{Of: &dv1.Effect_Sealed{Sealed: s}})
	}
	if c.Controller != nil {
		d.add(&dv1.Effect{Of: &dv1.Effect_Controller{Controller: c.Controller}})
	}
	return nil
}

// raise raises the cluster's feature level once all controllers support a higher one:
// those of the state, with m in place of the one with that id, or without it if m is
// nil. The level is never lowered: the log may hold entries that need it.
func (d *decision) raise(id string, m *dv1.Controller) {
	least := uint32(state.FeatureLevel)
	for c := range d.Controllers() {
		if c.Id != id {
			least = min(least, max(1, c.Level))
		}
	}
	if m != nil {
		least = min(least, max(1, m.Level))
	}
	if d.Cluster() != nil && least > d.Level() {
		c := proto.CloneOf(d.Cluster())
		c.FeatureLevel = least
		d.add(&dv1.Effect{Of: &dv1.Effect_Cluster{Cluster: c}})
	}
}

func (d *decision) setTiming(t *dv1.Timing) *dv1.Error {
	if d.Cluster() == nil {
		return refuse(dv1.Error_UNAVAILABLE, "there is no fleet yet")
	}
	if err := timing.FromProto(t).Validate(); err != nil {
		return refuse(dv1.Error_INVALID, "%v", err)
	}
	if timing.FromProto(d.Cluster().Timing) != timing.FromProto(t) {
		c := proto.CloneOf(d.Cluster())
		c.Timing = timing.FromProto(t).Proto()
		d.add(&dv1.Effect{Of: &dv1.Effect_Cluster{Cluster: c}})
	}
	return nil
}

func (d *decision) register(n *dv1.Node) *dv1.Error {
	n = proto.CloneOf(n)
	old := d.Node(n.GetId())
	if len(n.ReservedPorts) > maxReserved {
		return refuse(dv1.Error_INVALID, "node %s reserves %d ports; %d at most", n.GetName(), len(n.ReservedPorts), maxReserved)
	}
	if err := fresh(n, old).Validate(); err != nil {
		return refuse(dv1.Error_INVALID, "node %.12s: %v", n.GetId(), err)
	}
	if old != nil {
		n.Joined, n.Subnet, n.Availability, n.Revision, n.Roles = old.Joined, old.Subnet, old.Availability, old.Revision, old.Roles
		n.Labels = labels(old, n)
	}
	return d.admit(n, old)
}

// fresh returns what a node reports of itself that was not known yet, to be
// validated like a join: a session must not get past what a join would be refused
// for.
func fresh(n, old *dv1.Node) *join.Request {
	r := &join.Request{Labels: map[string]string{}}
	if n.Name != old.GetName() {
		r.Name = n.Name
	}
	if n.Addr != old.GetAddr() {
		r.Agent = n.Addr
	}
	for k, v := range n.Labels {
		if had, ok := old.GetLabels()[k]; !ok || had != v {
			r.Labels[k] = v
		}
	}
	return r
}

// maxReserved bounds the ports that a node reserves; drover itself has four.
const maxReserved = 16

// labels returns a node's labels: the agent's own, overridden by those that
// operators set.
func labels(old, n *dv1.Node) map[string]string {
	out := maps.Clone(n.Labels)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, old.SetLabels)
	n.SetLabels = old.SetLabels
	return out
}

// admit assigns a node a unique name and a subnet.
func (d *decision) admit(n, old *dv1.Node) *dv1.Error {
	if n.GetId() == "" {
		return refuse(dv1.Error_INVALID, "a node needs an id")
	}
	n.Liveness = dv1.Node_READY
	if n.Joined == 0 {
		n.Joined = d.now
	}
	if n.Availability == dv1.Node_AVAILABILITY_UNSPECIFIED {
		n.Availability = dv1.Node_ACTIVE
	}
	if o := d.NodeNamed(n.Name); o != nil && o.Id != n.Id {
		return refuse(dv1.Error_CONFLICT, "node name %q is taken by node %.12s: give this host another with --node-name", n.Name, o.Id)
	}
	if n.Subnet == "" {
		p, e := d.freeSubnet()
		if e != nil {
			return e
		}
		n.Subnet = p.String()
	} else if p, ok := subnet.Of(n.Subnet); !ok || d.NodeOfSubnet(subnet.Number(p)) != nil && d.NodeOfSubnet(subnet.Number(p)).Id != n.Id {
		return refuse(dv1.Error_CONFLICT, "subnet %s is malformed or taken", n.Subnet)
	}
	d.res.NodeId, d.res.Name = n.Id, n.Name
	if !proto.Equal(old, n) {
		d.add(&dv1.Effect{Of: &dv1.Effect_Node{Node: n}})
	}
	return nil
}
