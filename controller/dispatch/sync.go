package dispatch

import (
	"bytes"
	"cmp"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// maxPart bounds a part of a sync, unless a single item is larger: well below an
// agent's message limit, and small enough to be stored before its controller seems
// silent.
const maxPart = 512 << 10

// sourceSize approximates what a part needs per image, which is mostly the grant.
const sourceSize = 2 << 10

// next returns what the agent lacks, in parts; none if it is up to date. Marks are
// taken before the state is read, so a state is never older than the index it is
// sent under.
func (t *term) next(s *session, full bool, sent uint64) []*dv1.Sync {
	dirty, index := s.takeDirty()
	if !full && len(dirty) == 0 {
		return nil
	}
	index = max(index, sent)
	var touched []string
	for _, d := range dirty {
		if network := d.network(); network != "" {
			touched = append(touched, network)
		}
	}
	var joined membership
	if full || len(touched) > 0 {
		joined = t.members(s, full, touched)
	}
	snap := t.o.Log.Snapshot()
	var tasks []*dv1.Task
	var tombs []*dv1.Tombstone
	if full {
		index = max(index, snap.Index())
		tasks = slices.Collect(snap.TasksOfNode(s.node))
		tombs = slices.Collect(snap.Tombstones(s.node))
	}
	for _, d := range dirty {
		if full || d.kind != markTask {
			continue
		}
		id := []byte(d.key)
		if task := snap.Task(id); task != nil && task.NodeId == s.node {
			tasks = append(tasks, task)
		}
		if tomb := snap.Tombstone(id); tomb.GetNodeId() == s.node {
			tombs = append(tombs, tomb)
		}
	}
	p := &parts{has: s.has, of: func() *dv1.Sync {
		return &dv1.Sync{Epoch: snap.Cluster().GetEpoch(), Term: t.o.Log.Term(), Index: index, Full: full}
	}}
	p.topology(snap, t, s, full, joined, dirty)
	// Tasks of one spec are adjacent, so that a spec is sent once, or again where a part
	// ends between them.
	slices.SortStableFunc(tasks, func(a, b *dv1.Task) int { return cmp.Or(bytes.Compare(a.SpecId, b.SpecId), bytes.Compare(a.Id, b.Id)) })
	for _, task := range tasks {
		p.task(&dv1.Assignment{Task: task, Endpoints: endpointsOf(snap, task.Id), Volumes: volumesOf(snap, task)}, snap.Spec(task.SpecId))
	}
	for _, tomb := range tombs {
		p.room(proto.Size(tomb))
		if len(tomb.VolumeId) > 0 {
			p.now.VolumesRemoved = append(p.now.VolumesRemoved, tomb)
		} else {
			p.now.Tombstones = append(p.now.Tombstones, tomb)
		}
	}
	s.has = nil
	return p.end()
}

// volumesOf returns the volumes that a task mounts, each once.
func volumesOf(snap *state.Snapshot, t *dv1.Task) (out []*dv1.Volume) {
	for _, m := range t.Mounts {
		if v := snap.Volume(m.VolumeId); v != nil && !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

// parts builds a sync.
type parts struct {
	has  map[string]bool  // ids of specs that are left out
	of   func() *dv1.Sync // returns an empty part
	done []*dv1.Sync
	now  *dv1.Sync
	size int
	spec *dv1.Spec // of the last task in now
}

func (p *parts) task(a *dv1.Assignment, spec *dv1.Spec) {
	size := proto.Size(a)
	if spec == nil || p.spec == spec && p.fits(size) {
		p.room(size)
	} else {
		needs := !p.has[string(spec.Id)]
		if size += sourceSize; needs {
			size += proto.Size(spec)
		}
		p.room(size)
		if p.spec = spec; needs {
			p.now.Specs = append(p.now.Specs, spec)
		}
	}
	p.now.Tasks = append(p.now.Tasks, a)
}

func (p *parts) fits(size int) bool { return p.size == 0 || p.size+size <= maxPart }

// room makes room for size bytes, in a new part if the current one is full.
func (p *parts) room(size int) {
	if p.now != nil && !p.fits(size) {
		p.end()
	}
	if p.now == nil {
		p.now, p.size, p.spec = p.of(), 0, nil
		p.now.Part = uint32(len(p.done))
	}
	p.size += size + 8
}

func (p *parts) end() []*dv1.Sync {
	if p.now == nil && len(p.done) == 0 {
		p.room(0)
	}
	if p.now != nil {
		if n := len(p.done); n > 0 {
			p.done[n-1].More = true
		}
		p.done, p.now = append(p.done, p.now), nil
	}
	return p.done
}

// maxHolders bounds how many nodes a source names.
const maxHolders = 8

// sources returns what the node must know to fetch each image of a part, also of those
// whose spec is left out. Of what the node holds that is only whether it is public: a
// grant is a signature, and after an election everybody says hello.
func (t *term) sources(node string, part *dv1.Sync) (out []*dv1.Source) {
	snap := t.o.Log.Snapshot()
	first := map[string]bool{} // specs of tasks whose node may lack the image
	specs := slices.Clip(part.Specs)
	for i, a := range part.Tasks {
		switch {
		case part.Full && (i == 0 || !bytes.Equal(a.Task.SpecId, part.Tasks[i-1].Task.SpecId)): // not in part.Specs if the agent has it
			if spec := snap.Spec(a.Task.SpecId); spec != nil {
				specs = append(specs, spec)
			}
		case !part.Full && a.Task.Attempt <= 1:
			first[string(a.Task.SpecId)] = true
		}
	}
	has, of := t.reported.of(node), map[string]*dv1.Source{}
	for _, spec := range specs {
		d := spec.Digest
		if d == "" {
			continue
		}
		s := of[d]
		if s == nil {
			s = &dv1.Source{Digest: d, Public: snap.Image(d).GetPublic()}
			if t.o.Grant != nil && !has.holds(d) {
				var err error
				if s.Grant, err = t.o.Grant(node, d); err != nil {
					t.o.Logger.Warn("granting a node access to an image failed", "node", node, "image", d, "err", err)
				}
			}
			of[d] = s
			out = append(out, s)
		}
		if first[string(spec.Id)] && len(s.Holders) == 0 && !has.holds(d) {
			s.Holders = t.holders(snap, node, d)
		}
	}
	return out
}

// holders returns the addresses of some other nodes that hold an image.
func (t *term) holders(snap *state.Snapshot, node, digest string) (out []string) {
	for id := range t.reported.view().HoldersFrom(digest, node) {
		if len(out) == maxHolders {
			break
		}
		if n := snap.Node(id); id != node && n.GetAddr() != "" {
			out = append(out, n.Addr)
		}
	}
	return out
}
