package command

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

func newVolume(name string, change ...func(*dv1.CreateVolume)) *dv1.Command {
	c := &dv1.CreateVolume{Volume: &dv1.Volume{Id: id("v-" + name), Name: name}}
	for _, f := range change {
		f(c)
	}
	return &dv1.Command{Of: &dv1.Command_CreateVolume{CreateVolume: c}}
}

func options(kv ...string) func(*dv1.CreateVolume) {
	return func(c *dv1.CreateVolume) { c.Volume.Options = pairs(kv) }
}

func labelled(kv ...string) func(*dv1.CreateVolume) {
	return func(c *dv1.CreateVolume) { c.Volume.Labels = pairs(kv) }
}

func pairs(kv []string) map[string]string {
	m := map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return m
}

func removeVolumes(unused bool, names ...string) func(*fleet) *dv1.Command {
	return func(f *fleet) *dv1.Command {
		c := &dv1.RemoveVolumes{Unused: unused}
		for _, n := range names {
			c.VolumeIds = append(c.VolumeIds, f.store.Snapshot().VolumeByName(n).GetId())
		}
		return &dv1.Command{Of: &dv1.Command_RemoveVolumes{RemoveVolumes: c}}
	}
}

// mounting is a container with a host configuration, and constraints on its node.
func mountingTask(name, host string, on ...string) *dv1.Command {
	return create(name, `{"Image":"alpine","HostConfig":{`+host+`}}`, on...)
}

func removed(name string, volumes bool) *dv1.Command {
	return &dv1.Command{Of: &dv1.Command_Remove{Remove: &dv1.Remove{TaskId: id(name), Force: true, Volumes: volumes}}}
}

// shown are the volumes as name@home, by name; those with long names as anonymous.
func (f *fleet) shown() (out []string) {
	for v := range f.store.Snapshot().Volumes() {
		name := v.Name
		if len(name) == 64 {
			name = "anonymous"
		}
		out = append(out, name+"@"+v.Home)
	}
	slices.Sort(out)
	return out
}

func (f *fleet) has(what string, want ...string) {
	f.t.Helper()
	if got := f.shown(); !slices.Equal(got, want) {
		f.t.Errorf("%s: the volumes are %v, want %v", what, got, want)
	}
}

func TestAVolumeIsCreatedOnce(t *testing.T) {
	f := current(t, "a", "b")
	if r := f.ok(newVolume("data", labelled("k", "v"))); !r.Changed || !slices.Equal(r.Volumes, []string{"data"}) {
		t.Errorf("it is answered with %v", r)
	}
	v := f.store.Snapshot().VolumeByName("data")
	if v.Driver != "local" || v.Created == 0 || v.Home != "" || v.Labels["k"] != "v" || v.Revision != f.index {
		t.Errorf("it is %v", v)
	}
	again := newVolume("data", options("type", "tmpfs", "device", "tmpfs"))
	again.GetCreateVolume().Volume.Id = id("another")
	if r := f.ok(again); r.Changed || !slices.Equal(r.Volumes, []string{"data"}) {
		t.Errorf("docker returns the one that is there: %v", r)
	}
	for _, c := range []struct {
		cmd   *dv1.Command
		kind  dv1.Error_Kind
		words string
	}{
		{newVolume("x"), dv1.Error_INVALID, "create x: volume name is too short"},
		{newVolume(""), dv1.Error_INVALID, `includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed`},
		{newVolume("../etc"), dv1.Error_INVALID, `create ../etc: "../etc" includes invalid characters`},
		{newVolume("a/b"), dv1.Error_INVALID, "invalid characters"},
		{newVolume("-ab"), dv1.Error_INVALID, "invalid characters"},
		{newVolume("dd", func(c *dv1.CreateVolume) { c.Volume.Driver = "rexray" }), dv1.Error_NOT_FOUND, `error looking up volume plugin rexray: plugin "rexray" not found`},
		{newVolume("dd", func(c *dv1.CreateVolume) { c.Volume.Id = nil }), dv1.Error_INVALID, "new id"},
		{newVolume("dd", func(c *dv1.CreateVolume) { c.Volume.Id = id("v-data") }), dv1.Error_INVALID, "new id"},
		{newVolume("dd", options("color", "red")), dv1.Error_INVALID, `create dd: invalid option: "color"`},
		{newVolume("dd", options("type", "nfs")), dv1.Error_INVALID, `missing required option: "device"`},
		{newVolume("dd", options("device", "/x")), dv1.Error_INVALID, `missing required option: "type"`},
		{newVolume("dd", options("o", "bind")), dv1.Error_INVALID, `missing required option: "device"`},
		{newVolume("dd", options("type", "cifs", "device", "//x:445/s")), dv1.Error_INVALID, "port not allowed in CIFS device URL"},
		{newVolume("dd", options("size", "1g")), dv1.Error_INVALID, "quota size requested but no quota support"},
		{newVolume("dd", options("size", "much")), dv1.Error_INVALID, "invalid size: 'much'"},
		{newVolume("dd", options("type", "ext4", "device", "/x", "o", "ro,loop=/dev/loop0")), dv1.Error_INVALID, `mount option "loop=/dev/loop0"`},
		{newVolume("dd", labelled("k", strings.Repeat("x", maxVolume))), dv1.Error_INVALID, "larger than"},
		{newVolume("dd", labelled("io.drover.on", "node")), dv1.Error_INVALID, "invalid constraint"},
		{newVolume("dd", labelled("io.drover.on", "node==z")), dv1.Error_UNAVAILABLE, "0 of 2 nodes fit: 2 don't match node==z"},
	} {
		f.no(c.cmd, c.kind, c.words)
	}
	f.has("nothing else was made", "data@")
	old := newFleet(t, "10.0.0.0/8", "a")
	old.no(newVolume("data"), dv1.Error_UNAVAILABLE, "until all controllers know them")
}

func TestTheHomeOfAVolume(t *testing.T) {
	f := current(t, "a", "b", "c")
	contact := func(c *dv1.CreateVolume) { c.Contact = "n1" }
	f.ok(newVolume("first"))
	f.ok(newVolume("asked", labelled("io.drover.on", "node==b")))
	f.ok(newVolume("opted", options("io.drover.on", "node==c"), contact))
	f.ok(newVolume("path", options("type", "none", "o", "bind", "device", "/srv"), contact))
	f.ok(newVolume("shared", options("type", "nfs", "o", "addr=10.0.0.9", "device", ":/srv"), contact))
	f.ok(newVolume("memory", options("type", "tmpfs", "device", "tmpfs"), labelled("io.drover.on", "node==c")))
	f.has("created", "asked@n1", "first@", "memory@", "opted@n2", "path@n1", "shared@")
	// The first user fixes it, with the entry that places it.
	f.ok(mountingTask("one", `"Binds":["first:/x","new:/y:ro","shared:/z","memory:/m"]`, "node==c"))
	f.has("used", "asked@n1", "first@n2", "memory@", "new@n2", "opted@n2", "path@n1", "shared@")
	// It pins those that follow, whoever the contact is.
	if r := f.ok(mountingTask("two", `"Binds":["first:/x"]`)); r.NodeId != "n2" {
		t.Errorf("it is on %s, without its data", r.NodeId)
	}
	if r := f.ok(mountingTask("three", `"Mounts":[{"Type":"volume","Source":"asked","Target":"/x"}]`)); r.NodeId != "n1" {
		t.Errorf("it is on %s, without its data", r.NodeId)
	}
	f.no(mountingTask("four", `"Binds":["first:/x"]`, "node==a"), dv1.Error_UNAVAILABLE, "0 of 3 nodes fit: 2 excluded: volume first is on c, 1 don't match node==a")
	f.no(mountingTask("four", `"Binds":["first:/x","asked:/y"]`), dv1.Error_UNAVAILABLE, "no node fits: volume first is on c, but volume asked is on b")
	f.no(mountingTask("four", `"Binds":["first:/x","/srv:/y"]`), dv1.Error_UNAVAILABLE, "no node fits: volume first is on c, but the bind's source is on a, the contact")
	f.ok(&dv1.Command{Of: &dv1.Command_SetLiveness{SetLiveness: &dv1.SetLiveness{Nodes: []*dv1.Verdict{{NodeId: "n2", Liveness: dv1.Node_DOWN}}}}})
	f.no(mountingTask("four", `"Binds":["first:/x"]`), dv1.Error_UNAVAILABLE, "0 of 3 nodes fit: 2 excluded: volume first is on c, 1 down")
	f.no(&dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: "c"}}}, dv1.Error_CONFLICT, "2 containers")
	f.ok(removed("one", false))
	f.ok(removed("two", false))
	f.no(&dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: "c"}}}, dv1.Error_CONFLICT, "has the data of 3 volumes (")
	// A lost node takes no record of data along.
	f.ok(&dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: "c", Force: true}}})
	f.has("its node is gone", "asked@n1", "first@n2", "memory@", "new@n2", "opted@n2", "path@n1", "shared@")
	f.no(mountingTask("four", `"Binds":["first:/x"]`), dv1.Error_UNAVAILABLE, "2 excluded: volume first is on node n2, which was removed")
	f.ok(removeVolumes(false, "first")(f))
	if f.store.Snapshot().Tombstone(id("v-first")) != nil {
		t.Error("a removal waits for a node that is gone")
	}
}

func TestVolumesOfAProjectAreTogetherWhereTheyCan(t *testing.T) {
	f := current(t, "a", "b")
	shop, other := labelled("com.docker.compose.project", "shop"), labelled("org.testcontainers.sessionId", "shop")
	for _, v := range []string{"db", "cache", "full"} {
		f.ok(newVolume(v, shop))
	}
	f.ok(newVolume("test", other))
	f.ok(mountingTask("one", `"Binds":["db:/x"]`, "node==b"))
	if r := f.ok(mountingTask("two", `"Binds":["cache:/x"]`)); r.NodeId != "n1" {
		t.Errorf("it is on %s", r.NodeId)
	}
	if r := f.ok(mountingTask("three", `"Binds":["full:/x"]`, "node==a")); r.NodeId != "n0" {
		t.Errorf("it is on %s: it can't be there", r.NodeId)
	}
	if r := f.ok(mountingTask("four", `"Binds":["test:/x"]`)); r.NodeId != "n0" {
		t.Errorf("it is on %s, because of a volume of another group", r.NodeId)
	}
}

// mountsOf are a task's mounts in short.
func (f *fleet) mountsOf(name string) (out []string) {
	for _, m := range f.store.Snapshot().Task(id(name)).GetMounts() {
		what := m.Source
		if v := f.store.Snapshot().Volume(m.VolumeId); v != nil {
			if what = v.Name; what == hex.EncodeToString(v.Id) {
				what = "anonymous"
			}
		}
		s := what + ":" + m.Target
		for word, is := range map[string]bool{"ro": m.ReadOnly, "nocopy": m.NoCopy, "anonymous": m.Anonymous, "z": m.Mode == "z", "create": m.CreateSource, m.Subpath: m.Subpath != "", m.Propagation: m.Propagation != ""} {
			if is {
				s += " " + word
			}
		}
		words := strings.Fields(s)
		slices.Sort(words[1:])
		out = append(out, strings.Join(words, " "))
	}
	return out
}

func TestWhatATaskMounts(t *testing.T) {
	f := current(t, "a", "b")
	image := `{"config":{"Volumes":{"/var/lib/db":{},"/logs/":{}}}}`
	f.ok(&dv1.Command{Of: &dv1.Command_CommitImage{CommitImage: &dv1.CommitImage{Image: &dv1.Image{Digest: "sha256:22", Config: []byte(image)}, Refs: []string{"docker.io/library/db:latest"}}}})
	for _, c := range []struct {
		name, image, config, host string
		want                      []string
	}{
		{"plain", "alpine", ``, ``, nil},
		{"binds", "alpine", ``, `"Binds":["/srv:/srv","data:/data","data:/twice:ro","/anon"]`, []string{"data:/data z", "data:/twice ro", "anonymous:/anon anonymous z"}},
		{"mounts", "alpine", ``, `"Mounts":[{"Type":"volume","Source":"m1","Target":"/m/","ReadOnly":true,"VolumeOptions":{"NoCopy":true,"Subpath":"a/b"}},{"Type":"volume","Target":"/n"},{"Type":"tmpfs","Target":"/t"}]`,
			[]string{"m1:/m a/b nocopy ro z", "anonymous:/n anonymous z"}},
		{"declared", "alpine", `"Volumes":{"/v":{},"/data":{}}`, `"Binds":["data:/data"]`, []string{"data:/data z", "anonymous:/v anonymous"}},
		{"image", "db", `"Volumes":{"/v":{}}`, `"Tmpfs":{"/logs":""}`, []string{"anonymous:/v anonymous", "anonymous:/var/lib/db anonymous"}},
		{"covered", "db", ``, `"Binds":["/srv:/logs:ro,rslave","pg:/var/lib/db"]`, []string{"pg:/var/lib/db z"}},
		{"from", "alpine", ``, `"VolumesFrom":["covered","mounts:ro"]`,
			[]string{"pg:/var/lib/db nocopy", "/srv:/logs create nocopy ro rslave", "m1:/m a/b nocopy ro", "anonymous:/n anonymous nocopy ro"}},
		{"over", "alpine", ``, `"VolumesFrom":["mounts"],"Binds":["own:/n"]`, []string{"m1:/m a/b nocopy ro", "own:/n z"}},
	} {
		body := `{"Image":"` + c.image + `",` + c.config
		if c.config != "" {
			body += ","
		}
		cmd := create(c.name, body+`"HostConfig":{`+c.host+`}}`, "node==a")
		cmd.GetCreate().Spec.Image = c.image
		f.ok(cmd)
		if got := f.mountsOf(c.name); !slices.Equal(got, c.want) {
			t.Errorf("%s mounts %q, want %q", c.name, got, c.want)
		}
	}
	s := f.store.Snapshot()
	for v := range s.Volumes() {
		_, anonymous := v.Labels["com.docker.volume.anonymous"]
		if (len(v.Name) == 64) != anonymous || v.Home != "n0" || v.Driver != "local" {
			t.Errorf("%v", v)
		}
	}
	f.no(mountingTask("no", `"VolumesFrom":["nobody"]`), dv1.Error_INVALID, "No such container: nobody")
	f.no(mountingTask("no", `"VolumesFrom":["plain"]`, "node==b"), dv1.Error_UNAVAILABLE, "excluded: the volumes of plain are on a")
	f.no(mountingTask("no", `"Binds":["a/b:/x"]`), dv1.Error_INVALID, `"a/b" includes invalid characters`)
	f.no(mountingTask("no", `"Binds":["ab:/x","/y:/x"]`), dv1.Error_INVALID, "Duplicate mount point: /x")
	f.no(create("no", `{"Image":"alpine","Volumes":{"rel":{}}}`), dv1.Error_INVALID, "mount path must be absolute")
	f.ok(mountingTask("made", `"Mounts":[{"Type":"volume","Source":"opt","Target":"/x","VolumeOptions":{"Labels":{"k":"v"},"DriverConfig":{"Name":"local","Options":{"type":"tmpfs","device":"tmpfs","o":"size=1m"}}}}]`))
	if v := f.store.Snapshot().VolumeByName("opt"); v.Labels["k"] != "v" || v.Options["o"] != "size=1m" || v.Home != "" {
		t.Errorf("%v", v)
	}
}

func TestAVolumeInUseStays(t *testing.T) {
	f := current(t, "a", "b")
	f.ok(mountingTask("one", `"Binds":["data:/x","data:/y"]`))
	f.ok(mountingTask("two", `"VolumesFrom":["one"]`))
	ids := []string{hex.EncodeToString(id("one")), hex.EncodeToString(id("two"))}
	f.no(removeVolumes(false, "data")(f), dv1.Error_CONFLICT, "remove data: volume is in use - ["+strings.Join(ids, ", ")+"]")
	f.ok(newVolume("free"))
	if r := f.ok(removeVolumes(true, "data", "free", "free")(f)); !slices.Equal(r.Volumes, []string{"free"}) {
		t.Errorf("a prune removed %v", r.Volumes)
	}
	f.ok(removed("one", true)) // -v takes no named one
	f.no(removeVolumes(false, "data")(f), dv1.Error_CONFLICT, "["+ids[1]+"]")
	f.ok(removed("two", true))
	f.has("named ones stay", "data@n0")
	old := f.store.Snapshot().VolumeByName("data")
	f.ok(removeVolumes(false, "data")(f))
	f.has("it is removed")
	tomb := f.store.Snapshot().Tombstone(old.Id)
	if tomb.GetNodeId() != "n0" || tomb.At == 0 || len(tomb.TaskId) > 0 {
		t.Fatalf("its home is told %v", tomb)
	}
	// One of the same name is another volume, before its data is gone.
	f.ok(newVolume("data"))
	if v := f.store.Snapshot().VolumeByName("data"); slices.Equal(v.Id, old.Id) || v.Home != "" {
		t.Errorf("%v", v)
	}
	ack := func(node string) {
		f.ok(&dv1.Command{Of: &dv1.Command_AckTombstones{AckTombstones: &dv1.AckTombstones{NodeId: node, TaskIds: [][]byte{old.Id}}}})
	}
	if ack("n1"); f.store.Snapshot().Tombstone(old.Id) == nil {
		t.Error("another node has acknowledged it")
	}
	if ack("n0"); f.store.Snapshot().Tombstone(old.Id) != nil {
		t.Error("it is not acknowledged")
	}
	f.has("the new one stays", "data@")
}

func TestAnonymousVolumesGoWithTheirLastTask(t *testing.T) {
	f := current(t, "a")
	f.ok(mountingTask("one", `"Binds":["/x","data:/y"]`))
	f.ok(mountingTask("two", `"VolumesFrom":["one"]`))
	f.ok(mountingTask("named", `"Binds":["`+f.store.Snapshot().Volume(f.store.Snapshot().Task(id("one")).Mounts[0].VolumeId).Name+`:/z"]`))
	f.has("made", "anonymous@n0", "data@n0")
	f.ok(removed("one", true))
	f.ok(removed("two", true))
	f.has("it is in use", "anonymous@n0", "data@n0")
	f.ok(removed("named", true))
	f.has("who named it keeps it", "anonymous@n0", "data@n0")
	f.ok(mountingTask("plain", `"Binds":["/x"]`))
	f.ok(removed("plain", false))
	f.has("without -v all stay", "anonymous@n0", "anonymous@n0", "data@n0")
	f.ok(mountingTask("rm-it", `"Binds":["/x","/x2"]`))
	f.has("made", "anonymous@n0", "anonymous@n0", "anonymous@n0", "anonymous@n0", "data@n0")
	f.ok(start("rm-it"))
	f.report("n0", &dv1.TaskReport{TaskId: id("rm-it"), Attempt: 1, Started: 5, Exit: &dv1.Exit{Attempt: 1, At: 6}})
	f.has("--rm is as rm -v", "anonymous@n0", "anonymous@n0", "data@n0")
	n := 0
	for range f.store.Snapshot().Tombstones("n0") {
		n++
	}
	if n != 5+2 {
		t.Errorf("%d removals wait for the node, want those of 5 tasks and 2 volumes", n)
	}
}

func TestARunOverNodesHasVolumesOfItsOwn(t *testing.T) {
	f := current(t, "a", "b", "c")
	f.ok(each("job", `"Binds":["/data","/logs"]`))
	f.has("each task has its own", "anonymous@n0", "anonymous@n0", "anonymous@n1", "anonymous@n1", "anonymous@n2", "anonymous@n2")
	f.no(each("one", `"Binds":["new:/x"]`), dv1.Error_INVALID, "volume new has no node yet")
	f.ok(newVolume("data"))
	f.no(each("one", `"Binds":["data:/x"]`), dv1.Error_INVALID, "volume data has no node yet")
	f.ok(newVolume("home", labelled("io.drover.on", "node==b")))
	if r := f.ok(each("one", `"Binds":["home:/x"]`)); !slices.Equal(placed(r), []string{"one-1@n1"}) || !slices.Equal(rejected(r), []string{"2 excluded: volume home is on b"}) {
		t.Errorf("%v %v", placed(r), rejected(r))
	}
	f.ok(newVolume("shared", options("type", "nfs", "device", ":/x", "o", "addr=10.0.0.9")))
	if r := f.ok(each("all", `"Binds":["shared:/x"]`)); len(r.Placed) != 3 {
		t.Errorf("%v %v", placed(r), rejected(r))
	}
}

func TestManyVolumesAreRemovedInFurtherEntries(t *testing.T) {
	f := current(t, "a")
	const n = 1500
	var ids [][]byte
	for i := range n {
		name := fmt.Sprint("volume-", i)
		f.fill(newVolume(name, labelled("io.drover.on", "node==a")))
		ids = append(ids, id("v-"+name))
	}
	entries, gone := 0, map[string]bool{}
	for len(ids) > 0 && entries < 100 {
		r := f.ok(&dv1.Command{Of: &dv1.Command_RemoveVolumes{RemoveVolumes: &dv1.RemoveVolumes{VolumeIds: ids, Unused: true}}})
		entries++
		for _, name := range r.Volumes {
			gone[name] = true
		}
		ids = ids[len(ids)-int(r.Left):]
	}
	if entries < 2 || len(gone) != n || len(f.shown()) != 0 {
		t.Errorf("%d were removed in %d entries, %d are left", len(gone), entries, len(f.shown()))
	}
}

func TestARoleThatMayNotBeRootMakesNoVolumeOfAHost(t *testing.T) {
	f := current(t, "a")
	f.ok(&dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: &dv1.Identity{Uri: "spiffe://fleet/user/u", Roles: []string{"user"}}}}})
	for i, c := range []struct {
		opts []string
		free bool
	}{
		{nil, true},
		{[]string{"type", "tmpfs", "device", "tmpfs"}, true},
		{[]string{"type", "nfs", "device", ":/x", "o", "addr=10.0.0.9"}, true},
		{[]string{"type", "none", "device", "/", "o", "bind"}, false},
		{[]string{"type", "ext4", "device", "/dev/sda1"}, false},
		{[]string{"type", "overlay", "device", "overlay", "o", "lowerdir=/"}, false},
		{[]string{"type", "proc", "device", "proc"}, false},
		// A bind is one whatever its type says.
		{[]string{"type", "nfs", "device", "/", "o", "bind"}, false},
		{[]string{"type", "tmpfs", "device", "/", "o", "ro, rbind"}, false},
		{[]string{"type", "tmpfs", "device", "/", "o", "move"}, false},
		{[]string{"type", "tmpfs", "device", "/", "o", "remount"}, false},
		{[]string{"type", "tmpfs", "device", "/", "o", "bind="}, false},
	} {
		cmd := newVolume(fmt.Sprint("volume-", i), options(c.opts...))
		cmd.Principal = "spiffe://fleet/user/u"
		if e := f.do(cmd).Error; (e == nil) != c.free || e != nil && e.Kind != dv1.Error_FORBIDDEN {
			t.Errorf("%v: %v", c.opts, e)
		}
	}
	f.ok(newVolume("admins", options("type", "none", "device", "/srv", "o", "bind")))
	for who, kind := range map[string]dv1.Error_Kind{"spiffe://fleet/user/u": dv1.Error_FORBIDDEN, "spiffe://fleet/user/admin": 0} {
		cmd := mountingTask("uses-"+who[len(who)-1:], `"Binds":["admins:/x"]`)
		cmd.Principal = who
		if e := f.do(cmd).Error; e.GetKind() != kind || (e == nil) != (kind == 0) {
			t.Errorf("%s mounts an admin's volume of the host: %v", who, e)
		}
	}
	b, _ := json.Marshal(map[string]string{"type": "none", "o": "bind", "device": "/"})
	cmd := mountingTask("x", `"Mounts":[{"Type":"volume","Source":"root","Target":"/x","VolumeOptions":{"DriverConfig":{"Options":`+string(b)+`}}}]`)
	cmd.Principal = "spiffe://fleet/user/u"
	f.no(cmd, dv1.Error_FORBIDDEN, "may not be root on a host")
}
