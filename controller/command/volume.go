package command

import (
	"encoding/hex"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/scheduler"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/route"
	"github.com/drover/drover/pkg/volumes"
)

var volumeName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// checkVolumeName returns docker's error, nil for a valid name.
func checkVolumeName(name string) *dv1.Error {
	switch {
	case len(name) == 1:
		return refuse(dv1.Error_INVALID, "create %s: volume name is too short, names should be at least two alphanumeric characters", name)
	case !volumeName.MatchString(name):
		return refuse(dv1.Error_INVALID, `create %s: %q includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`, name, name)
	}
	return nil
}

// maxVolume bounds the bytes of a volume's record, which goes to its node with each task.
const maxVolume = 32 << 10

// createVolume makes a volume. Docker returns the one of that name if there is one, whatever
// its options and labels are.
func (d *decision) createVolume(c *dv1.CreateVolume) *dv1.Error {
	if c.Volume == nil || len(c.Volume.Id) != 32 || d.Volume(c.Volume.Id) != nil {
		return refuse(dv1.Error_INVALID, "a volume needs a new id of 32 bytes")
	}
	v := proto.CloneOf(c.Volume)
	old, e := d.newVolume(v)
	if e != nil {
		return e
	}
	d.res.Volumes = []string{v.Name}
	if old != nil {
		return nil
	}
	if v.Home, e = d.firstHome(v, c); e != nil {
		return e
	}
	d.add(&dv1.Effect{Of: &dv1.Effect_Volume{Volume: v}})
	return nil
}

// newVolume completes and validates a volume. old is the one that has its name, if any.
func (d *decision) newVolume(v *dv1.Volume) (old *dv1.Volume, e *dv1.Error) {
	if d.Level() < state.LevelVolumes {
		return nil, refuse(dv1.Error_UNAVAILABLE, "volumes have to wait until all controllers know them: drover controller ls shows which is older")
	}
	if e := checkVolumeName(v.Name); e != nil {
		return nil, e
	}
	if v.Driver != "" && v.Driver != volumes.Local {
		return nil, refuse(dv1.Error_NOT_FOUND, `create %s: error looking up volume plugin %s: plugin %q not found`, v.Name, v.Driver, v.Driver)
	}
	if old := d.VolumeByName(v.Name); old != nil {
		return old, nil
	}
	v.Driver, v.Created, v.Home, v.Moving = volumes.Local, d.now, "", nil
	if e := checkOptions(v); e != nil {
		return nil, e
	}
	if volumes.Rootly(v.Options) && d.notRoot() {
		return nil, refuse(dv1.Error_FORBIDDEN, "create %s: the options device and o are refused: the role user may not be root on a host, as a container with that volume could be", v.Name)
	}
	if proto.Size(v) > maxVolume {
		return nil, refuse(dv1.Error_INVALID, "create %s: its labels and options are larger than %d bytes", v.Name, maxVolume)
	}
	return nil, nil
}

// notRoot reports whether the command is of somebody who may not be root on a host. A
// controller that goes on with a run is not: who made the run was asked then.
func (d *decision) notRoot() bool { return route.User.Has(d.who) && !route.Admin.Has(d.who) }

// checkOptions validates the options of the driver local, in docker's words.
func checkOptions(v *dv1.Volume) *dv1.Error {
	invalid := func(format string, args ...any) *dv1.Error {
		return refuse(dv1.Error_INVALID, "create %s: "+format, append([]any{v.Name}, args...)...)
	}
	o := v.Options
	for _, k := range slices.Sorted(maps.Keys(o)) {
		if !slices.Contains([]string{"type", "o", "device", "size", volumes.LabelOn}, k) {
			return invalid("invalid option: %q", k)
		}
	}
	if o["type"] == "cifs" && o["device"] != "" {
		u, err := url.Parse(o["device"])
		if err != nil {
			return invalid("error parsing mount device url: %v", err)
		}
		if u.Port() != "" {
			return invalid("port not allowed in CIFS device URL, include 'port' in 'o='")
		}
	}
	if size, ok := o["size"]; ok {
		n, err := units.RAMInBytes(size)
		if err != nil {
			return invalid("%v", err)
		}
		if n > 0 {
			return invalid("quota size requested but no quota support")
		}
	}
	for _, needs := range [][2]string{{"device", "type"}, {"type", "device"}, {"o", "device"}, {"o", "type"}} {
		_, has := o[needs[0]]
		if _, ok := o[needs[1]]; has && !ok {
			return invalid("missing required option: %q", needs[1])
		}
	}
	if bad := volumes.Unmountable(o["o"]); bad != "" {
		return invalid("mount option %q is not available on a fleet", bad)
	}
	return nil
}

// firstHome returns the home of a volume that is created before it is used, usually "":
// constraints choose one, and a path in its options is the contact's.
func (d *decision) firstHome(v *dv1.Volume, c *dv1.CreateVolume) (string, *dv1.Error) {
	on := slices.Concat(scheduler.Split(v.Labels[volumes.LabelOn]), scheduler.Split(v.Options[volumes.LabelOn]), c.On)
	for _, o := range on {
		if err := scheduler.CheckConstraint(o); err != nil {
			return "", refuse(dv1.Error_INVALID, "create %s: %v", v.Name, err)
		}
	}
	switch {
	case !volumes.HasHome(v.Options):
		return "", nil
	case len(on) > 0:
		place := d.batch.place(scheduler.Group{Count: 1, On: on, Contact: c.Contact})
		if len(place.Nodes) == 0 {
			return "", refuse(dv1.Error_UNAVAILABLE, "create %s: %s", v.Name, place.Reason())
		}
		return place.Nodes[0], nil
	case v.Options["device"] != "" && d.Node(c.Contact) != nil:
		return c.Contact, nil
	}
	return "", nil
}

// removeVolumes removes volumes. The data goes once the home's agent has heard of it.
func (d *decision) removeVolumes(c *dv1.RemoveVolumes) *dv1.Error {
	seen := map[string]bool{}
	if !c.Unused {
		for _, id := range c.VolumeIds {
			if users := d.usersOf(id, nil); len(users) > 0 {
				return refuse(dv1.Error_CONFLICT, "remove %s: volume is in use - [%s]", d.Volume(id).GetName(), strings.Join(users, ", "))
			}
			if v := d.Volume(id); v.GetMoving() != nil {
				return refuse(dv1.Error_CONFLICT, "remove %s: volume is being moved to %s", v.Name, d.homeName(v.Moving.To))
			}
		}
	}
	names := make([]string, len(c.VolumeIds)) // of those that are removed
	left := d.some(len(names), func(i int) {
		id := c.VolumeIds[i]
		if v := d.Volume(id); v != nil && v.Moving == nil && !seen[string(id)] && len(d.usersOf(id, nil)) == 0 {
			seen[string(id)] = true
			d.dropVolume(v)
			names[i] = v.Name
		}
	})
	d.res.Left = uint32(left)
	d.res.Volumes = slices.DeleteFunc(names[:len(names)-left], func(name string) bool { return name == "" })
	return nil
}

// usersOf returns the hex ids of the tasks that mount a volume, but for those that this
// command removes.
func (d *decision) usersOf(volume []byte, without map[string]bool) (ids []string) {
	for t := range d.TasksOfVolume(volume) {
		if !without[string(t.Id)] {
			ids = append(ids, hex.EncodeToString(t.Id))
		}
	}
	return ids
}

// dropVolume removes a volume that no task mounts. Where a node has its data, a tombstone
// informs its agent.
func (d *decision) dropVolume(v *dv1.Volume) {
	d.dropData(v.Id, v.Home)
	d.add(&dv1.Effect{Of: &dv1.Effect_DeleteVolume{DeleteVolume: v.Id}})
}

// dropData has a node's agent delete the data of a volume.
func (d *decision) dropData(volume []byte, node string) {
	if d.Node(node) != nil {
		d.add(&dv1.Effect{Of: &dv1.Effect_Tombstone{Tombstone: &dv1.Tombstone{VolumeId: volume, NodeId: node, At: d.now}}})
	}
}

// dropAnonymous removes the anonymous volumes of a removed task that no other task mounts.
func (d *decision) dropAnonymous(t *dv1.Task) {
	for _, m := range t.Mounts {
		v := d.Volume(m.VolumeId)
		if v == nil || !m.Anonymous || d.without[string(v.Id)] || len(d.usersOf(v.Id, d.without)) > 0 {
			continue
		}
		d.without[string(v.Id)] = true
		d.dropVolume(v)
	}
}

// homeName returns how a node is shown, also one that was removed.
func (d *decision) homeName(node string) string {
	if n := d.Node(node); n != nil {
		return n.Name
	}
	return fmt.Sprintf("node %.12s, which was removed", node)
}
