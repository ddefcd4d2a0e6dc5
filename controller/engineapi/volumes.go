package engineapi

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/volume"

	"github.com/drover/drover/controller/create"
	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/scheduler"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/volumes"
)

// volumeDir is where clients are shown that volumes are: docker's place, which no client of
// a fleet can enter, below the data folder of any node.
const volumeDir = "/var/lib/drover/volumes"

func mountpoint(v *dv1.Volume) string {
	return path.Join(volumeDir, hex.EncodeToString(v.Id), "_data")
}

// shownVolume returns a volume in docker's shape.
func shownVolume(snap *state.Snapshot, v *dv1.Volume) volume.Volume {
	out := volume.Volume{Name: v.Name, Driver: v.Driver, Scope: "local", CreatedAt: time.Unix(0, v.Created).UTC().Format(time.RFC3339), Mountpoint: mountpoint(v),
		Labels: maps.Clone(v.Labels), Options: v.Options}
	if out.Labels == nil && v.Home != "" {
		out.Labels = map[string]string{}
	}
	if v.Home != "" {
		out.Labels[create.LabelNode] = nodeNameIn(snap, v.Home)
	}
	if v.Moving != nil {
		out.Status = map[string]any{"moving": "to " + nodeNameIn(snap, v.Moving.To)}
	}
	return out
}

// nodeNameIn returns a node's name, or its id if it was removed.
func nodeNameIn(snap *state.Snapshot, id string) string {
	if n := snap.Node(id); n != nil {
		return n.Name
	}
	return id
}

func (s *server) listVolumes(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.state(w, r)
	if err != nil {
		return err
	}
	f, err := parseFilters(r, "dangling", "name", "driver", "label", "node")
	if err != nil {
		return err
	}
	keep, err := volumeFilter(snap, f)
	if err != nil {
		return err
	}
	out := volume.ListResponse{Volumes: []volume.Volume{}}
	for v := range snap.Volumes() {
		if keep(v) {
			out.Volumes = append(out.Volumes, shownVolume(snap, v))
		}
	}
	return answer(w, http.StatusOK, out)
}

// volumeFilter compiles docker's filters of volumes; names match as they do there, by a
// regular expression or literally.
func volumeFilter(snap *state.Snapshot, f filters) (func(*dv1.Volume) bool, error) {
	var names []*regexp.Regexp
	for _, n := range f["name"] {
		re, err := regexp.Compile(n)
		if err != nil {
			re = regexp.MustCompile(regexp.QuoteMeta(n))
		}
		names = append(names, re)
	}
	dangling, err := f.boolean("dangling")
	if err != nil {
		return nil, err
	}
	return func(v *dv1.Volume) bool {
		shown := shownVolume(snap, v)
		return (names == nil || slices.ContainsFunc(names, func(re *regexp.Regexp) bool { return re.MatchString(v.Name) })) &&
			f.any("driver", func(d string) bool { return d == v.Driver }) &&
			f.any("node", func(n string) bool { return v.Home != "" && (n == v.Home || n == nodeNameIn(snap, v.Home)) }) &&
			f.all("label", hasLabel(shown.Labels)) &&
			!slices.ContainsFunc(f["label!"], hasLabel(shown.Labels)) &&
			(dangling == nil || *dangling == !inUse(snap, v))
	}, nil
}

// boolean returns the value of a filter that has one, nil if it is not set.
func (f filters) boolean(key string) (*bool, error) {
	vs := f[key]
	if len(vs) == 0 {
		return nil, nil
	}
	yes := slices.Contains(vs, "true") || slices.Contains(vs, "1")
	no := slices.Contains(vs, "false") || slices.Contains(vs, "0")
	if yes == no || len(vs) > 1 {
		return nil, refuse(http.StatusBadRequest, "invalid filter '%s=%s'", key, vs)
	}
	return &yes, nil
}

func inUse(snap *state.Snapshot, v *dv1.Volume) bool {
	for range snap.TasksOfVolume(v.Id) {
		return true
	}
	return false
}

// volume finds the volume of a request.
func (s *server) volume(w http.ResponseWriter, r *http.Request) (*state.Snapshot, *dv1.Volume, error) {
	name := r.PathValue("name")
	snap, err := s.stateWith(w, r, func(snap *state.Snapshot) bool { return snap.VolumeByName(name) != nil })
	if err != nil {
		return nil, nil, err
	}
	if v := snap.VolumeByName(name); v != nil {
		return snap, v, nil
	}
	return snap, nil, refuse(http.StatusNotFound, "get %s: no such volume", name)
}

func (s *server) inspectVolume(w http.ResponseWriter, r *http.Request) error {
	snap, v, err := s.volume(w, r)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, shownVolume(snap, v))
}

func (s *server) createVolume(w http.ResponseWriter, r *http.Request) error {
	var req volume.CreateRequest
	sent, err := readBody(r, &req)
	if err != nil {
		return err
	}
	if req.ClusterVolumeSpec != nil {
		return refuse(http.StatusServiceUnavailable, "This node is not a swarm manager. Volumes of Swarm are not available on a fleet")
	}
	v := &dv1.Volume{Id: make([]byte, 32), Name: req.Name, Driver: req.Driver, Options: req.DriverOpts, Labels: maps.Clone(req.Labels)}
	_, _ = rand.Read(v.Id) // it never fails
	delete(v.Labels, create.LabelNode)
	if v.Name == "" {
		v.Name = hex.EncodeToString(v.Id)
		if v.Labels == nil {
			v.Labels = map[string]string{}
		}
		v.Labels[volumes.LabelAnonymous] = ""
	}
	res, err := s.propose(w, r, sent, &dv1.Command{Of: &dv1.Command_CreateVolume{CreateVolume: &dv1.CreateVolume{
		Volume: v, Contact: s.contact(r), On: scheduler.Split(r.Header.Get(wire.HeaderOn)),
	}}})
	if err != nil {
		return err
	}
	snap, err := s.Fleet.State(r.Context(), res.Index)
	if err != nil {
		return err
	}
	if len(res.Volumes) == 1 { // a repeated request is answered with the volume of the first
		v.Name = res.Volumes[0]
	}
	made := snap.VolumeByName(v.Name)
	if made == nil {
		return refuse(http.StatusConflict, "create %s: it was removed meanwhile", v.Name)
	}
	return answer(w, http.StatusCreated, shownVolume(snap, made))
}

func (s *server) removeVolume(w http.ResponseWriter, r *http.Request) error {
	snap, v, err := s.volume(w, r)
	if err != nil {
		if snap != nil && boolean(r.URL.Query(), "force") {
			w.WriteHeader(http.StatusNoContent)
			return nil
		}
		return s.doneBefore(w, r, snap, err)
	}
	_, err = s.propose(w, r, nil, &dv1.Command{Of: &dv1.Command_RemoveVolumes{RemoveVolumes: &dv1.RemoveVolumes{VolumeIds: [][]byte{v.Id}}}})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// pruneVolumes removes the anonymous volumes that no container mounts, or all such: those
// with options have nothing to free, as in docker.
func (s *server) pruneVolumes(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.state(w, r)
	if err != nil {
		return err
	}
	f, err := parseFilters(r, "all", "label", "label!")
	if err != nil {
		return err
	}
	all, err := f.boolean("all")
	if err != nil {
		return err
	}
	f["dangling"] = []string{"true"}
	if (all == nil || !*all) && apiVersion(r) >= 42 {
		f["label"] = append(f["label"], volumes.LabelAnonymous)
	}
	keep, err := volumeFilter(snap, f)
	if err != nil {
		return err
	}
	var found []*dv1.Volume
	for v := range snap.Volumes() {
		if !volumes.Mounted(v.Options) && keep(v) {
			found = append(found, v)
		}
	}
	sizes, _ := s.sizes(r.Context(), snap, found)
	report := volume.PruneReport{VolumesDeleted: []string{}}
	for len(found) > 0 {
		c := &dv1.RemoveVolumes{Unused: true}
		for _, v := range found {
			c.VolumeIds = append(c.VolumeIds, v.Id)
		}
		r := r.Clone(r.Context())
		if key := r.Header.Get(wire.HeaderKey); key != "" { // each entry has its own
			r.Header.Set(wire.HeaderKey, key+"-"+strconv.Itoa(len(found)))
		}
		res, err := s.propose(w, r, nil, &dv1.Command{Of: &dv1.Command_RemoveVolumes{RemoveVolumes: c}})
		if err != nil {
			return err
		}
		report.VolumesDeleted = append(report.VolumesDeleted, res.Volumes...)
		found = found[len(found)-min(int(res.Left), len(found)):]
	}
	slices.Sort(report.VolumesDeleted)
	for _, name := range report.VolumesDeleted {
		report.SpaceReclaimed += uint64(max(0, sizes[name]))
	}
	s.Fleet.Pruned(string(events.VolumeEventType), report.SpaceReclaimed)
	return answer(w, http.StatusOK, report)
}

// updateVolume refuses what docker has for volumes of Swarm only.
func (s *server) updateVolume(http.ResponseWriter, *http.Request) error {
	return refuse(http.StatusServiceUnavailable, "volume update only valid for cluster volumes, but swarm is unavailable")
}

// sizesWithin bounds how long homes are asked for sizes.
const sizesWithin = 20 * time.Second

// sizes asks the homes of volumes for their sizes in bytes, by name: -1 where a home is
// silent, and missing is its name. A volume without a home, or with a filesystem of its
// own, has -1 as well.
func (s *server) sizes(ctx context.Context, snap *state.Snapshot, all []*dv1.Volume) (sizes map[string]int64, missing []string) {
	ctx, cancel := context.WithTimeout(ctx, sizesWithin)
	defer cancel()
	sizes = map[string]int64{}
	homes := map[string][]*dv1.Volume{}
	for _, v := range all {
		sizes[v.Name] = -1
		switch {
		case volumes.Mounted(v.Options):
		case v.Home == "":
			sizes[v.Name] = 0
		default:
			homes[v.Home] = append(homes[v.Home], v)
		}
	}
	var mu sync.Mutex // guards sizes and missing
	var wg sync.WaitGroup
	for home, of := range homes {
		wg.Go(func() {
			got, err := s.sizesOf(ctx, home, of)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				missing = append(missing, nodeNameIn(snap, home))
				return
			}
			for _, v := range of {
				if n, ok := got[hex.EncodeToString(v.Id)]; ok {
					sizes[v.Name] = n
				}
			}
		})
	}
	wg.Wait()
	slices.Sort(missing)
	return sizes, missing
}

// maxSizes bounds a node's answer.
const maxSizes = 16 << 20

func (s *server) sizesOf(ctx context.Context, node string, of []*dv1.Volume) (map[string]int64, error) {
	ids := make([]string, 0, len(of))
	for _, v := range of {
		ids = append(ids, hex.EncodeToString(v.Id))
	}
	slices.Sort(ids)
	body, err := json.Marshal(ids)
	if err != nil {
		return nil, fmt.Errorf("asking for sizes: %w", err)
	}
	resp, err := fleet.Ask(ctx, s.Fleet, node, http.MethodPost, "/v1/volumes/sizes", body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		return nil, fromAgent(node, resp)
	}
	defer func() { _ = resp.Body.Close() }()
	var out map[string]int64
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxSizes)).Decode(&out); err != nil {
		return nil, fmt.Errorf("the sizes on node %s: %w", node, err)
	}
	return out, nil
}

// refCount returns how many containers mount a volume.
func refCount(snap *state.Snapshot, v *dv1.Volume) (n int64) {
	for range snap.TasksOfVolume(v.Id) {
		n++
	}
	return n
}
