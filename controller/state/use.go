package state

import (
	"iter"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Use is what a node's tasks take of it. Nothing in it may be modified.
type Use struct {
	Counts
	Wanted   int         // tasks that are created or meant to run: what a node is loaded by
	Memory   int64       // bytes that the wanted ones reserve
	NanoCPUs int64       // that the wanted ones reserve
	Ports    []*dv1.Port // host ports of those that are meant to run
}

// Counts is how many tasks there are. Each is one of these.
type Counts struct {
	Created int // no attempt was asked for yet
	Running int // as Running has it
	Begun   int // the current attempt is wanted and is not known to run
	Ended   int // the current attempt has ended, or never began
}

// All is how many there are together.
func (c Counts) All() int { return c.Created + c.Running + c.Begun + c.Ended }

func (c *Counts) add(o Counts, by int) {
	c.Created += by * o.Created
	c.Running += by * o.Running
	c.Begun += by * o.Begun
	c.Ended += by * o.Ended
}

// Use is what a node's tasks take of it now.
func (s *Snapshot) Use(node string) Use {
	if u := tasks.in(s).total.(*usage).byNode.get(node); u != nil {
		return *u
	}
	return Use{}
}

// Counts is how many tasks the fleet has.
func (s *Snapshot) Counts() Counts { return tasks.in(s).total.(*usage).all }

// NodesOfImage yields the nodes that have a task of an image, in the order of their ids.
func (s *Snapshot) NodesOfImage(digest string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for k := range tasks.in(s).total.(*usage).byImage.from(digest + sep) {
			if !yield(k[len(digest+sep):]) {
				return
			}
		}
	}
}

// HasTaskOfImage reports whether a node has a task of an image.
func (s *Snapshot) HasTaskOfImage(node, digest string) bool {
	return tasks.in(s).total.(*usage).byImage.get(digest+sep+node) > 0
}

// usage is what all tasks take, kept as they change.
type usage struct {
	all     Counts
	byNode  tree[*Use] // of nodes that have any
	byImage tree[int]  // how many tasks of an image a node has, by both
}

func newUsage() total[*dv1.Task] { return &usage{byNode: newTree[*Use](), byImage: newTree[int]()} }

func (u *usage) copy() total[*dv1.Task] { return &usage{u.all, u.byNode.copy(), u.byImage.copy()} }

func (u *usage) change(s *Snapshot, old, m *dv1.Task) {
	if from, to := held(s, old), held(s, m); from != to {
		u.hold(from, -1)
		u.hold(to, 1)
	}
	was, is := taken(s, old), taken(s, m)
	u.all.add(was.Counts, -1)
	u.all.add(is.Counts, 1)
	if old.GetNodeId() == m.GetNodeId() && was.equal(is) {
		return
	}
	u.move(old.GetNodeId(), was, -1)
	u.move(m.GetNodeId(), is, 1)
}

func (u *usage) move(node string, by Use, sign int) {
	if node == "" {
		return
	}
	n := Use{}
	if have := u.byNode.get(node); have != nil {
		n = *have
	}
	n.Ports = slices.Clip(n.Ports)
	if n.add(by, sign); n.All() == 0 {
		u.byNode.del(node)
		return
	}
	u.byNode.set(node, &n)
}

// held names a task's image on its node, "" if it has not both.
func held(s *Snapshot, t *dv1.Task) string {
	spec := s.Spec(t.GetSpecId())
	if spec == nil || t.NodeId == "" {
		return ""
	}
	return spec.Digest + sep + t.NodeId
}

func (u *usage) hold(image string, by int) {
	switch n := u.byImage.get(image) + by; {
	case image == "":
	case n == 0:
		u.byImage.del(image)
	default:
		u.byImage.set(image, n)
	}
}

func (u *usage) load(s *Snapshot, all iter.Seq[*dv1.Task]) {
	byNode, byImage := map[string]*Use{}, map[string]int{}
	for t := range all {
		is := taken(s, t)
		u.all.add(is.Counts, 1)
		if byNode[t.NodeId] == nil {
			byNode[t.NodeId] = &Use{}
		}
		byNode[t.NodeId].add(is, 1)
		byImage[held(s, t)]++
	}
	delete(byNode, "")
	delete(byImage, "")
	for _, node := range slices.Sorted(maps.Keys(byNode)) {
		u.byNode.load(node, byNode[node])
	}
	for _, image := range slices.Sorted(maps.Keys(byImage)) {
		u.byImage.load(image, byImage[image])
	}
}

// add counts what tasks take that come, or with a sign of -1 go.
func (u *Use) add(by Use, sign int) {
	u.Counts.add(by.Counts, sign)
	u.Wanted += sign * by.Wanted
	u.Memory += int64(sign) * by.Memory
	u.NanoCPUs += int64(sign) * by.NanoCPUs
	switch {
	case len(by.Ports) == 0:
	case sign > 0:
		u.Ports = append(u.Ports, by.Ports...)
	default:
		u.Ports = without(u.Ports, by.Ports)
	}
}

// without returns ports less others, each of which is among them.
func without(ports, others []*dv1.Port) []*dv1.Port {
	out := slices.Clone(ports)
	for _, o := range others {
		if i := slices.IndexFunc(out, func(p *dv1.Port) bool { return proto.Equal(p, o) }); i >= 0 {
			out = slices.Delete(out, i, i+1)
		}
	}
	return out
}

// taken is what one task takes of its node.
func taken(s *Snapshot, t *dv1.Task) (u Use) {
	if t == nil {
		return u
	}
	switch {
	case t.Attempt == 0:
		u.Created = 1
	case Running(t):
		u.Running = 1
	case Live(t):
		u.Begun = 1
	default:
		u.Ended = 1
	}
	if t.Desired != dv1.Desired_CREATED && t.Desired != dv1.Desired_RUNNING {
		return u
	}
	r := s.reserves(t.SpecId)
	u.Wanted, u.Memory, u.NanoCPUs = 1, r.memory, r.nanoCPUs
	if t.Desired == dv1.Desired_RUNNING {
		u.Ports = t.Ports
	}
	return u
}

func (u Use) equal(o Use) bool {
	return u.Counts == o.Counts && u.Wanted == o.Wanted && u.Memory == o.Memory && u.NanoCPUs == o.NanoCPUs &&
		slices.EqualFunc(u.Ports, o.Ports, func(a, b *dv1.Port) bool { return proto.Equal(a, b) })
}
