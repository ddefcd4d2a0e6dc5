package command

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/scheduler"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/mounts"
	"github.com/drover/drover/pkg/recent"
	"github.com/drover/drover/pkg/volumes"
)

// mounting is what a task mounts besides its own binds and tmpfs, and where the task may
// be: beside that, and beside the task whose network it shares.
type mounting struct {
	d       *decision
	task    []byte // id
	mounts  []*dv1.Mount
	volumes []*dv1.Volume // of mounts, each once; some are not there yet
	places  []place
}

// place is a node that a task must be on.
type place struct {
	node string
	why  string // volume data is on web-2
	pin  string // why other nodes are rejected; "" says why
}

// mounting resolves what a task of a spec mounts, in docker's order: what other tasks have,
// -v, --mount, and at what is left of its paths the volumes of request and image.
func (d *decision) mounting(task []byte, spec *dv1.Spec, r *container.CreateRequest) (*mounting, *dv1.Error) {
	m := &mounting{d: d, task: task}
	if e := m.join(r); e != nil {
		return nil, e
	}
	if r.HostConfig != nil {
		for _, from := range r.HostConfig.VolumesFrom {
			if e := m.from(from); e != nil {
				return nil, e
			}
		}
	}
	points, err := mounts.Of(r.HostConfig)
	if err != nil {
		return nil, refuse(dv1.Error_INVALID, "%v", err)
	}
	for _, p := range points {
		m.uncover(p.Target)
		if p.Type != mount.TypeVolume {
			continue
		}
		if e := m.volume(p); e != nil {
			return nil, e
		}
	}
	for _, to := range mounts.Uncovered(r.HostConfig, m.declared(spec, r)) {
		if slices.ContainsFunc(m.mounts, func(x *dv1.Mount) bool { return x.Target == to }) {
			continue
		}
		if wrong := mounts.CheckTarget(to); wrong != "" {
			return nil, refuse(dv1.Error_INVALID, "%s", wrong)
		}
		v := &dv1.Volume{}
		if e := m.use(v, to); e != nil {
			return nil, e
		}
		m.mounts = append(m.mounts, &dv1.Mount{VolumeId: v.Id, Target: to, Anonymous: true})
	}
	return m, nil
}

// join keeps a task with the one whose network it shares.
func (m *mounting) join(r *container.CreateRequest) *dv1.Error {
	if r.HostConfig == nil || !r.HostConfig.NetworkMode.IsContainer() {
		return nil
	}
	if e := m.d.haveNetworks(); e != nil {
		return e
	}
	t, e := FindTask(m.d.Snapshot, r.HostConfig.NetworkMode.ConnectedContainer())
	if e != nil {
		return e
	}
	m.places = append(m.places, place{node: t.NodeId, why: "the network of " + t.Name + " is on " + m.d.homeName(t.NodeId)})
	return nil
}

// declared returns the paths that the request or its image declare as volumes.
func (m *mounting) declared(spec *dv1.Spec, r *container.CreateRequest) map[string]struct{} {
	of := ofImage(m.d.Image(spec.Digest))
	if r.Config == nil || len(r.Volumes) == 0 {
		return of
	}
	out := maps.Clone(r.Volumes)
	maps.Copy(out, of)
	return out
}

// imageVolumes are the paths that the images which were used last declare as volumes, by
// digest.
var imageVolumes = recent.Map[string, map[string]struct{}]{Max: 1 << 20}

func ofImage(i *dv1.Image) map[string]struct{} {
	if i == nil {
		return nil
	}
	if of, ok := imageVolumes.Get(i.Digest); ok {
		return of
	}
	var image struct {
		Config struct{ Volumes map[string]struct{} } `json:"config"`
	}
	_ = json.Unmarshal(i.Config, &image) // an image without a readable config declares none
	imageVolumes.Put(i.Digest, image.Config.Volumes, len(i.Digest)+128+recent.Size(image.Config.Volumes))
	return image.Config.Volumes
}

// uncover drops what another task has at a path.
func (m *mounting) uncover(target string) {
	m.mounts = slices.DeleteFunc(m.mounts, func(x *dv1.Mount) bool { return x.Target == target })
}

// from adds what another task mounts.
func (m *mounting) from(raw string) *dv1.Error {
	ref, readOnly, err := mounts.ParseFrom(raw)
	if err != nil {
		return refuse(dv1.Error_INVALID, "%v", err)
	}
	t, e := FindTask(m.d.Snapshot, ref)
	if e != nil {
		return e
	}
	all := slices.Clone(t.Mounts)
	r, err := m.d.batch.request(m.d.Spec(t.SpecId).GetBody())
	if err != nil {
		return refuse(dv1.Error_INVALID, "%v", err)
	}
	points, err := mounts.Of(r.HostConfig)
	if err != nil {
		return refuse(dv1.Error_INVALID, "%v", err)
	}
	for _, p := range points {
		if p.Type == mount.TypeBind {
			all = append(all, &dv1.Mount{Source: p.Source, Target: p.Target, ReadOnly: p.ReadOnly, CreateSource: p.BindOptions != nil && p.BindOptions.CreateMountpoint,
				Propagation: propagation(p.BindOptions)})
		}
	}
	for _, x := range all {
		x = proto.CloneOf(x)
		x.ReadOnly, x.NoCopy, x.Mode = x.ReadOnly || readOnly, true, ""
		m.uncover(x.Target)
		m.mounts = append(m.mounts, x)
		if v := m.d.Volume(x.VolumeId); v != nil {
			m.add(v)
		}
	}
	m.places = append(m.places, place{node: t.NodeId, why: "the volumes of " + t.Name + " are on " + m.d.homeName(t.NodeId)})
	return nil
}

func propagation(o *mount.BindOptions) string {
	if o == nil {
		return ""
	}
	return string(o.Propagation)
}

// FindTask returns the task that another one's request means, as docker resolves it: full
// id, name, unique id prefix.
func FindTask(s *state.Snapshot, ref string) (*dv1.Task, *dv1.Error) {
	if id, err := hex.DecodeString(ref); err == nil && len(id) == 32 {
		if t := s.Task(id); t != nil {
			return t, nil
		}
	}
	if t := s.TaskByName(strings.TrimPrefix(ref, "/")); t != nil {
		return t, nil
	}
	switch ts := s.TasksByPrefix(ref); {
	case len(ts) == 1:
		return ts[0], nil
	case len(ts) > 1:
		return nil, refuse(dv1.Error_INVALID, "multiple IDs found with provided prefix: %s", ref)
	}
	// Not as what is not found: docker's client would pull the image.
	return nil, refuse(dv1.Error_INVALID, "No such container: %s", ref)
}

// volume adds a volume of -v or --mount, which is created unless it is there.
func (m *mounting) volume(p mounts.Point) *dv1.Error {
	v := &dv1.Volume{Name: p.Source}
	x := &dv1.Mount{Target: p.Target, ReadOnly: p.ReadOnly, Anonymous: p.Source == "", Mode: p.Mode}
	if o := p.VolumeOptions; o != nil {
		v.Labels = o.Labels
		x.NoCopy, x.Subpath = o.NoCopy, o.Subpath
		if o.DriverConfig != nil {
			v.Driver, v.Options = o.DriverConfig.Name, o.DriverConfig.Options
		}
	}
	if x.Mode == "" {
		x.Mode = "z" // as docker shows volumes, with SELinux or without
	}
	if e := m.use(v, p.Target); e != nil {
		return e
	}
	x.VolumeId = v.Id
	m.mounts = append(m.mounts, x)
	return nil
}

// use completes v: with the volume of its name, or as a new one, whose id follows from the
// task. Without a name it is an anonymous one.
func (m *mounting) use(v *dv1.Volume, target string) *dv1.Error {
	if v.Name == "" {
		v.Id = m.id("target", path.Clean(target))
		v.Name = hex.EncodeToString(v.Id)
		labels := map[string]string{volumes.LabelAnonymous: ""}
		for k, value := range v.Labels {
			labels[k] = value
		}
		v.Labels = labels
	} else {
		v.Id = m.id("name", v.Name)
	}
	for _, have := range m.volumes { // mounted twice
		if have.Name == v.Name {
			v.Id = have.Id
			return nil
		}
	}
	old, e := m.d.newVolume(v)
	if e != nil {
		return e
	}
	if old != nil {
		v.Id, v = old.Id, old
	}
	if v.Moving != nil {
		return refuse(dv1.Error_UNAVAILABLE, "volume %s is being moved to %s", v.Name, m.d.homeName(v.Moving.To))
	}
	if volumes.Rootly(v.Options) && m.d.notRoot() {
		return refuse(dv1.Error_FORBIDDEN, "volume %s is refused: the role user may not be root on a host, as a container with it could be", v.Name)
	}
	m.add(v)
	return nil
}

// id is that of a new volume: one that no other task's volume has.
func (m *mounting) id(kind, of string) []byte {
	h := sha256.New()
	for _, part := range [][]byte{m.task, []byte(kind), []byte(of)} {
		h.Write(part)
		h.Write([]byte{0})
	}
	return h.Sum(nil)
}

// add notes a volume of the mounts, and where it must be.
func (m *mounting) add(v *dv1.Volume) {
	if slices.ContainsFunc(m.volumes, func(have *dv1.Volume) bool { return have.Name == v.Name }) {
		return
	}
	m.volumes = append(m.volumes, v)
	if v.Home != "" {
		m.places = append(m.places, place{node: v.Home, why: "volume " + v.Name + " is on " + m.d.homeName(v.Home)})
	}
}

// agree refuses places on different nodes.
func agree(places []place) *dv1.Error {
	for _, p := range places {
		if p.node != places[0].node {
			return refuse(dv1.Error_UNAVAILABLE, "no node fits: %s, but %s", places[0].why, p.why)
		}
	}
	return nil
}

func pins(places []place) (out []scheduler.Pin) {
	for _, p := range places {
		out = append(out, scheduler.Pin{Node: p.node, Why: cmp.Or(p.pin, "excluded: "+p.why)})
	}
	return out
}

// beside returns a node where volumes are that belong together with the homeless ones of
// the mounts, "" if there is none.
func (m *mounting) beside() string {
	for _, v := range m.volumes {
		if v.Home == "" && volumes.HasHome(v.Options) {
			if node := m.d.HomeBeside(v.Labels); node != "" {
				return node
			}
		}
	}
	return ""
}

// settle records the volumes that are new, or that get their home by the task's placement.
func (m *mounting) settle(node string) {
	for _, v := range m.volumes {
		home := v.Home
		if home == "" && volumes.HasHome(v.Options) {
			home = node
		}
		if home != v.Home || m.d.Volume(v.Id) == nil {
			v = proto.CloneOf(v)
			v.Home = home
			m.d.add(&dv1.Effect{Of: &dv1.Effect_Volume{Volume: v}})
		}
	}
}
