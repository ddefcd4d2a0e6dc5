package engineapi

import (
	"net/http"
	"slices"
	"time"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/volumes"
)

// oldUsage has the fields of system df from before API 1.52, which later clients may read
// as well.
type oldUsage struct {
	LayersSize int64
	Images     []image.Summary
	Containers []container.Summary
	Volumes    []volume.Volume
	BuildCache []build.CacheRecord
}

// diskUsage serves system df. The sizes of volumes are asked of their homes, and are -1
// where these are silent; the sizes of images are those that lists show.
func (s *server) diskUsage(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.state(w, r)
	if err != nil {
		return err
	}
	kinds := r.URL.Query()["type"]
	version := apiVersion(r)
	wants := func(kind system.DiskUsageObject) bool {
		return version < 42 || len(kinds) == 0 || slices.Contains(kinds, string(kind))
	}
	for _, k := range kinds {
		if version >= 42 && !slices.Contains([]system.DiskUsageObject{system.ContainerObject, system.ImageObject, system.VolumeObject, system.BuildCacheObject}, system.DiskUsageObject(k)) {
			return refuse(http.StatusBadRequest, "unknown object type: %s", k)
		}
	}
	var now system.DiskUsage
	if wants(system.ImageObject) {
		now.ImageUsage = imageUsage(snap)
	}
	if wants(system.ContainerObject) {
		if now.ContainerUsage, err = s.containerUsage(w, r, snap); err != nil {
			return err
		}
	}
	if wants(system.VolumeObject) {
		now.VolumeUsage = s.volumeUsage(w, r, snap)
	}
	if wants(system.BuildCacheObject) {
		now.BuildCacheUsage = &build.DiskUsage{}
	}
	verbose := boolean(r.URL.Query(), "verbose")
	if version >= 52 && verbose {
		return answer(w, http.StatusOK, now)
	}
	var old oldUsage
	if u := now.ImageUsage; u != nil {
		old.LayersSize, old.Images = u.TotalSize, append([]image.Summary{}, u.Items...)
	}
	if u := now.ContainerUsage; u != nil {
		old.Containers = append([]container.Summary{}, u.Items...)
	}
	if u := now.VolumeUsage; u != nil {
		old.Volumes = append([]volume.Volume{}, u.Items...)
	}
	if now.BuildCacheUsage != nil {
		old.BuildCache = []build.CacheRecord{}
	}
	if version < 52 {
		return answer(w, http.StatusOK, old)
	}
	if u := now.ImageUsage; u != nil { // they are in the older fields
		u.Items = nil
	}
	if u := now.ContainerUsage; u != nil {
		u.Items = nil
	}
	if u := now.VolumeUsage; u != nil {
		u.Items = nil
	}
	return answer(w, http.StatusOK, struct {
		oldUsage
		system.DiskUsage
	}{old, now})
}

func imageUsage(snap *state.Snapshot) *image.DiskUsage {
	u := &image.DiskUsage{}
	for i := range snap.Images() {
		sum := imageSummary(snap, i)
		u.Items = append(u.Items, sum)
		u.TotalCount++
		u.TotalSize += sum.Size
		if snap.TaskCountOfImage(i.Digest) > 0 {
			u.ActiveCount++
		} else {
			u.Reclaimable += sum.Size
		}
	}
	return u
}

func (s *server) containerUsage(w http.ResponseWriter, r *http.Request, snap *state.Snapshot) (*container.DiskUsage, error) {
	keep, err := s.newSieve(snap, filters{})
	if err != nil {
		return nil, err
	}
	views, seen := s.listed(r.Context(), snap, keep, 0)
	missing(w, seen)
	u, now := &container.DiskUsage{}, time.Now()
	for _, v := range views {
		u.Items = append(u.Items, summary(v, now))
		u.TotalCount++
		if st := v.state(); st == container.StateRunning || st == container.StatePaused {
			u.ActiveCount++
		}
	}
	return u, nil
}

// volumeUsage is of the volumes that take room of a node, as in docker.
func (s *server) volumeUsage(w http.ResponseWriter, r *http.Request, snap *state.Snapshot) *volume.DiskUsage {
	var all []*dv1.Volume
	for v := range snap.Volumes() {
		if !volumes.Mounted(v.Options) {
			all = append(all, v)
		}
	}
	sizes, silent := s.sizes(r.Context(), snap, all)
	for _, node := range silent {
		w.Header().Add(wire.HeaderWarning, "node "+node+" has not answered: the sizes of its volumes are unknown")
	}
	u := &volume.DiskUsage{}
	for _, v := range all {
		shown := shownVolume(snap, v)
		shown.UsageData = &volume.UsageData{Size: sizes[v.Name], RefCount: refCount(snap, v)}
		u.Items = append(u.Items, shown)
		u.TotalCount++
		u.TotalSize += max(0, shown.UsageData.Size)
		if shown.UsageData.RefCount > 0 {
			u.ActiveCount++
		} else {
			u.Reclaimable += max(0, shown.UsageData.Size)
		}
	}
	return u
}
