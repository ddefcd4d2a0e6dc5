package state

import (
	"iter"
	"slices"
	"strings"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Labels of which volumes with equal values belong together: a compose project, a session
// of testcontainers.
var together = []string{"com.docker.compose.project", "org.testcontainers.sessionId"}

var volumes = &kind[*dv1.Volume]{
	name:    "volume",
	key:     func(m *dv1.Volume) string { return string(m.Id) },
	indexes: []*index[*dv1.Volume]{volumesByName, volumesByHome, volumesByGroup},
	stamp:   func(m *dv1.Volume, index uint64) { m.Revision = index },
}

var (
	volumesByName = &index[*dv1.Volume]{unique: "name", key: func(m *dv1.Volume) string { return m.Name + sep }}
	volumesByHome = &index[*dv1.Volume]{key: func(m *dv1.Volume) string {
		if m.Home == "" {
			return ""
		}
		return m.Home + sep
	}}
	volumesByGroup = &index[*dv1.Volume]{key: func(m *dv1.Volume) string {
		if m.Home == "" {
			return ""
		}
		return group(m.Labels)
	}}
)

// group is the index entry of volumes that belong together, "" if the labels name no group.
func group(labels map[string]string) string {
	for _, l := range together {
		if v := labels[l]; v != "" {
			return l + sep + v + sep
		}
	}
	return ""
}

// Volume returns a volume, or nil.
func (s *Snapshot) Volume(id []byte) *dv1.Volume { return volumes.get(s, string(id)) }

// VolumeByName returns a volume, or nil.
func (s *Snapshot) VolumeByName(name string) *dv1.Volume {
	return volumes.first(s, volumesByName, name+sep)
}

// Volumes yields all volumes, sorted by name.
func (s *Snapshot) Volumes() iter.Seq[*dv1.Volume] {
	return func(yield func(*dv1.Volume) bool) {
		r := volumes.in(s)
		for e := range r.indexes[volumesByName.at].from("") {
			_, id, _ := strings.Cut(e, sep) // names have no sep
			if v := r.all.get(id); v != nil && !yield(v) {
				return
			}
		}
	}
}

// VolumesOfNode yields the volumes whose home is a node.
func (s *Snapshot) VolumesOfNode(node string) iter.Seq[*dv1.Volume] {
	return volumes.by(s, volumesByHome, node+sep)
}

// HomeBeside returns a node that has volumes which belong together with one of these
// labels, "" if there is none.
func (s *Snapshot) HomeBeside(labels map[string]string) string {
	g := group(labels)
	if g == "" {
		return ""
	}
	return volumes.first(s, volumesByGroup, g).GetHome()
}

// TasksOfVolume yields the tasks that mount a volume, sorted by id.
func (s *Snapshot) TasksOfVolume(id []byte) iter.Seq[*dv1.Task] {
	return func(yield func(*dv1.Task) bool) {
		for e := range tasks.in(s).total.(*usage).byVolume.from(string(id)) {
			if t := s.Task([]byte(e[len(id):])); t != nil && !yield(t) {
				return
			}
		}
	}
}

// volumesOf returns the ids of the volumes that a task mounts, each once.
func volumesOf(t *dv1.Task) (ids []string) {
	for _, m := range t.GetMounts() {
		if id := string(m.VolumeId); id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}
