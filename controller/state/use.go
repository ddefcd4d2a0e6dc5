package state

import (
	"iter"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Use is what a node's tasks use of it. It must not be modified.
type Use struct {
	Counts
	Wanted   int         // tasks that are created or should run: the node's load
	Memory   int64       // bytes reserved by the wanted ones
	NanoCPUs int64       // reserved by the wanted ones
	Ports    []*dv1.Port // host ports of those that should run
}

// Counts is the number of tasks, each of which is counted once.
type Counts struct {
	Created int // never started
	Running int // as Running defines it
	Begun   int // the current attempt is wanted and not known to run
	Ended   int // the current attempt has ended, or never began
}

// All returns the total.
func (c Counts) All() int { return c.Created + c.Running + c.Begun + c.Ended }

func (c *Counts) add(o Counts, by int) {
	c.Created += by * o.Created
	c.Running += by * o.Running
	c.Begun += by * o.Begun
	c.Ended += by * o.Ended
}

// Use returns what a node's tasks use of it.
func (s *Snapshot) Use(node string) Use {
	if u := tasks.in(s).total.(*usage).byNode.get(node); u != nil {
		return *u
	}
	return Use{}
}

// Counts returns the number of tasks of the fleet.
func (s *Snapshot) Counts() Counts { return tasks.in(s).total.(*usage).all }

// NodesOfImage yields the ids of nodes that have a task of an image, sorted.
func (s *Snapshot) NodesOfImage(digest string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for k := range tasks.in(s).total.(*usage).byImage.from(digest + sep) {
			if !yield(k[len(digest+sep):]) {
				return
			}
		}
	}
}

// TaskCountOfImage returns the number of an image's tasks, in time that grows with the
// nodes that have one.
func (s *Snapshot) TaskCountOfImage(digest string) (n int) {
	for of := range tasks.in(s).total.(*usage).byImage.values(digest + sep) {
		n += of
	}
	return n
}

// HasTaskOfImage reports whether a node has a task of an image.
func (s *Snapshot) HasTaskOfImage(node, digest string) bool {
	return tasks.in(s).total.(*usage).byImage.get(digest+sep+node) > 0
}

// usage aggregates what all tasks use.
type usage struct {
	all     Counts
	byNode  tree[*Use] // nodes without tasks are missing
	byImage tree[int]  // number of tasks per image and node

	byVolume tree[none] // ids of a volume and of a task that mounts it
	byPort   tree[none] // ports that tasks publish, and the tasks' ids
}

func newUsage() total[*dv1.Task] {
	return &usage{byNode: newTree[*Use](), byImage: newTree[int](), byVolume: newTree[none](), byPort: newTree[none]()}
}

func (u *usage) copy() total[*dv1.Task] {
	return &usage{u.all, u.byNode.copy(), u.byImage.copy(), u.byVolume.copy(), u.byPort.copy()}
}

func (u *usage) change(s *Snapshot, old, m *dv1.Task) {
	if from, to := imageOnNode(s, old), imageOnNode(s, m); from != to {
		u.hold(from, -1)
		u.hold(to, 1)
	}
	for _, id := range volumesOf(old) {
		u.byVolume.del(id + string(old.Id))
	}
	for _, id := range volumesOf(m) {
		u.byVolume.set(id+string(m.Id), none{})
	}
	for _, p := range PublishedBy(old) {
		u.byPort.del(p.String() + sep + string(old.Id))
	}
	for _, p := range PublishedBy(m) {
		u.byPort.set(p.String()+sep+string(m.Id), none{})
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

// imageOnNode returns the key of a task's image and node, "" if it lacks either.
func imageOnNode(s *Snapshot, t *dv1.Task) string {
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
	var mounts, ports []string
	for t := range all {
		is := taken(s, t)
		u.all.add(is.Counts, 1)
		if byNode[t.NodeId] == nil {
			byNode[t.NodeId] = &Use{}
		}
		byNode[t.NodeId].add(is, 1)
		byImage[imageOnNode(s, t)]++
		for _, id := range volumesOf(t) {
			mounts = append(mounts, id+string(t.Id))
		}
		for _, p := range PublishedBy(t) {
			ports = append(ports, p.String()+sep+string(t.Id))
		}
	}
	slices.Sort(mounts)
	for _, e := range mounts {
		u.byVolume.load(e, none{})
	}
	slices.Sort(ports)
	for _, e := range slices.Compact(ports) {
		u.byPort.load(e, none{})
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

// add adds by, or subtracts it if sign is -1.
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

// without returns ports minus others, which must all be contained.
func without(ports, others []*dv1.Port) []*dv1.Port {
	out := slices.Clone(ports)
	for _, o := range others {
		if i := slices.IndexFunc(out, func(p *dv1.Port) bool { return proto.Equal(p, o) }); i >= 0 {
			out = slices.Delete(out, i, i+1)
		}
	}
	return out
}

// taken returns what one task uses of its node.
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
