package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/profiles/seccomp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/drover/drover/agent/task"
)

var update = flag.Bool("update", false, "write golden files anew")

// able is a node with all that a spec can ask for.
var able = Node{Name: "node", CgroupParent: "/drover/n", RecursiveReadOnly: true, AppArmor: true, SELinux: true, Seccomp: true,
	Capabilities: []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}, MaskedPaths: []string{"/proc/kcore", "/sys/firmware"}}

// planned is the spec that a node makes of a request.
func planned(n Node, change func(*container.CreateRequest), img *ocispec.ImageConfig) (*specs.Spec, error) {
	c := container.CreateRequest{Config: &container.Config{}, HostConfig: &container.HostConfig{}}
	if change != nil {
		change(&c)
	}
	id := strings.Repeat("0", 64)
	f := Facts{Node: n, ID: id, Dir: "/data/tasks/" + id, Netns: "/run/netns/" + id, User: specs.User{AdditionalGids: []uint32{0, 10}},
		Devices: map[string][]specs.LinuxDevice{
			"":          {{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}},
			"/dev/null": {{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}},
			"/dev/zero": {{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5}},
		}}
	if c.User != "" {
		f.User = specs.User{UID: 101, GID: 102, AdditionalGids: []uint32{102, 200, 77}}
	}
	return Plan(c, img, f)
}

// plan is planned where nothing is refused.
func plan(t *testing.T, n Node, change func(*container.CreateRequest)) *specs.Spec {
	t.Helper()
	s, err := planned(n, change, &ocispec.ImageConfig{Cmd: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// requests are some of each kind that a user can make.
var requests = map[string]func(*container.CreateRequest){
	"args": func(c *container.CreateRequest) { c.Entrypoint, c.Cmd = []string{"/entry", "-x"}, []string{"a", "b c"} },
	"env": func(c *container.CreateRequest) {
		c.Env, c.Hostname, c.WorkingDir = []string{"A=1", "PATH=/bin", "IMAGE", "B="}, "web", "/srv"
	},
	"domain":   func(c *container.CreateRequest) { c.Hostname, c.Domainname = "web", "example.org" },
	"terminal": func(c *container.CreateRequest) { c.Tty, c.HostConfig.ConsoleSize = true, [2]uint{24, 80} },
	"user":     func(c *container.CreateRequest) { c.User, c.HostConfig.GroupAdd = "web", []string{"logs", "77"} },
	"capabilities": func(c *container.CreateRequest) {
		c.HostConfig.CapAdd, c.HostConfig.CapDrop = []string{"net_admin", "CAP_SYS_TIME"}, []string{"CHOWN", "cap_mknod"}
	},
	"all added": func(c *container.CreateRequest) {
		c.HostConfig.CapAdd, c.HostConfig.CapDrop = []string{"ALL"}, []string{"SYS_ADMIN"}
	},
	"all dropped": func(c *container.CreateRequest) {
		c.HostConfig.CapAdd, c.HostConfig.CapDrop = []string{"NET_BIND_SERVICE"}, []string{"all"}
	},
	"privileged":    func(c *container.CreateRequest) { c.HostConfig.Privileged = true },
	"no privileges": func(c *container.CreateRequest) { c.HostConfig.SecurityOpt = []string{"no-new-privileges"} },
	"unconfined": func(c *container.CreateRequest) {
		c.HostConfig.SecurityOpt = []string{"seccomp=unconfined", "apparmor=unconfined"}
	},
	"host network": func(c *container.CreateRequest) { c.HostConfig.NetworkMode = "host" },
	"no network":   func(c *container.CreateRequest) { c.HostConfig.NetworkMode = "none" },
	"host namespaces": func(c *container.CreateRequest) {
		c.HostConfig.PidMode, c.HostConfig.IpcMode, c.HostConfig.UTSMode, c.HostConfig.CgroupnsMode = "host", "host", "host", "host"
	},
	"no ipc":           func(c *container.CreateRequest) { c.HostConfig.IpcMode = "none" },
	"private cgroups":  func(c *container.CreateRequest) { c.HostConfig.CgroupnsMode = "private" },
	"writable cgroups": func(c *container.CreateRequest) { c.HostConfig.SecurityOpt = []string{"writable-cgroups"} },
	"read-only": func(c *container.CreateRequest) {
		c.HostConfig.ReadonlyRootfs, c.HostConfig.Tmpfs = true, map[string]string{"/run": "size=1m,exec", "/tmp": ""}
	},
	"shm": func(c *container.CreateRequest) { c.HostConfig.ShmSize = 1 << 20 },
	"masks": func(c *container.CreateRequest) {
		c.HostConfig.MaskedPaths, c.HostConfig.ReadonlyPaths = []string{"/proc/keys"}, []string{}
	},
	"sysctls": func(c *container.CreateRequest) {
		c.HostConfig.Sysctls = map[string]string{"net.core.somaxconn": "1024", "net.ipv4.ip_unprivileged_port_start": "1024"}
	},
	"ulimits": func(c *container.CreateRequest) {
		c.HostConfig.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: 1024, Hard: 4096}, {Name: "core", Soft: 0, Hard: -1}}
	},
	"limits": func(c *container.CreateRequest) {
		h := c.HostConfig
		pids := int64(100)
		h.Memory, h.MemoryReservation, h.NanoCPUs, h.CPUShares, h.CpusetCpus, h.PidsLimit, h.OomScoreAdj = 64<<20, 32<<20, 1_500_000_000, 512, "0-1", &pids, 100
	},
	"cpu quota and swap": func(c *container.CreateRequest) {
		h := c.HostConfig
		off := true
		h.Memory, h.MemorySwap, h.OomKillDisable, h.CPUPeriod, h.CPUQuota = 64<<20, -1, &off, 50_000, 25_000
	},
	"binds": func(c *container.CreateRequest) {
		c.HostConfig.Binds = []string{"/srv:/mnt/a", "/usr:/mnt/a/b:ro", "/etc/hostname:/etc/hosts:rprivate,z"}
	},
	"mounts": func(c *container.CreateRequest) {
		c.HostConfig.Mounts = []mount.Mount{
			{Type: mount.TypeBind, Source: "/srv", Target: "/data", ReadOnly: true, BindOptions: &mount.BindOptions{NonRecursive: true}},
			{Type: mount.TypeTmpfs, Target: "/data/tmp", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1 << 20, Mode: 0o700, Options: [][]string{{"exec"}}}},
		}
	},
	"a mount over /dev": func(c *container.CreateRequest) { c.HostConfig.Binds = []string{"/srv:/dev", "/srv:/sys/fs/cgroup:ro"} },
	"device rules and annotations": func(c *container.CreateRequest) {
		c.HostConfig.DeviceCgroupRules = []string{"c 7:* rw"}
		c.HostConfig.Annotations = map[string]string{"com.example": "x", "io.containerd.runc.v2.group": "g"}
	},
	"a privileged device": func(c *container.CreateRequest) {
		c.HostConfig.Privileged, c.HostConfig.MaskedPaths = true, []string{"/proc/keys"}
		c.HostConfig.Devices = []container.DeviceMapping{{PathOnHost: "/dev/null", PathInContainer: "/dev/nil"}, {PathOnHost: "/dev/zero", PathInContainer: "/dev/zero"}}
	},
	"soft memory": func(c *container.CreateRequest) {
		none := int64(0)
		c.HostConfig.MemoryReservation, c.HostConfig.MemorySwappiness = 32<<20, &none
	},
	"devices": func(c *container.CreateRequest) {
		c.HostConfig.Devices = []container.DeviceMapping{{PathOnHost: "/dev/null", PathInContainer: "/dev/nothing", CgroupPermissions: "r"}, {PathOnHost: "/dev/zero", PathInContainer: "/dev/zero", CgroupPermissions: "rwm"}}
	},
}

// What containerd is told of each request, but for what is in docker's seccomp profile:
// of one of which nothing is asked all, of the others what is different then.
func TestPlans(t *testing.T) {
	usual := decoded(t, able, nil)
	golden(t, "default", usual)
	for name, change := range requests {
		golden(t, name, difference(usual, decoded(t, able, change)))
	}
	v2 := able
	v2.CgroupV2 = true
	golden(t, "cgroup v2", difference(usual, decoded(t, v2, nil)))
}

// decoded is a plan as JSON has it.
func decoded(t *testing.T, n Node, change func(*container.CreateRequest)) (out any) {
	t.Helper()
	img := &ocispec.ImageConfig{Cmd: []string{"sh"}, Env: []string{"IMAGE=yes", "B=2"}, WorkingDir: "/app"}
	s, err := planned(n, change, img)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := planned(n, change, img); !reflect.DeepEqual(s, again) {
		t.Error("two plans of one request differ")
	}
	if usual, err := seccomp.GetDefaultProfile(s); err == nil && reflect.DeepEqual(s.Linux.Seccomp, usual) {
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: "(docker's profile)"}
	}
	b, err := json.Marshal(s)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// difference is what b has otherwise than a, null where it has nothing.
func difference(a, b any) any {
	x, isMap := a.(map[string]any)
	y, too := b.(map[string]any)
	if !isMap || !too {
		return b
	}
	out := map[string]any{}
	for k := range x {
		if _, ok := y[k]; !ok {
			out[k] = nil
		}
	}
	for k, v := range y {
		if !reflect.DeepEqual(x[k], v) {
			out[k] = difference(x[k], v)
		}
	}
	return out
}

func golden(t *testing.T, name string, got any) {
	t.Helper()
	b, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, '\n')
	file := filepath.Join("testdata", strings.NewReplacer(" ", "-", "/", "").Replace(name)+".json")
	if *update {
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, b) {
		t.Errorf("%s is not as in %s (-update changes it):\n%s", name, file, b)
	}
}

func mountAt(s *specs.Spec, to string) (found []specs.Mount) {
	for _, m := range s.Mounts {
		if m.Destination == to {
			found = append(found, m)
		}
	}
	return found
}

func hasNamespace(s *specs.Spec, of specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == of })
}

func TestSysctls(t *testing.T) {
	const ports, ping, domain = "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range", "kernel.domainname"
	for what, c := range map[string]struct {
		change func(*container.CreateRequest)
		want   map[string]string
	}{
		"by default":         {nil, map[string]string{ports: "0", ping: "0 2147483647"}},
		"without network":    {func(c *container.CreateRequest) { c.HostConfig.NetworkMode = "none" }, map[string]string{ports: "0", ping: "0 2147483647"}},
		"the host's network": {func(c *container.CreateRequest) { c.HostConfig.NetworkMode = "host" }, nil},
		"the user's go first": {func(c *container.CreateRequest) {
			c.HostConfig.Sysctls = map[string]string{ports: "1024", "net.core.somaxconn": "9"}
		}, map[string]string{ports: "1024", ping: "0 2147483647", "net.core.somaxconn": "9"}},
		"a domain name": {func(c *container.CreateRequest) { c.Domainname = "example.org" }, map[string]string{ports: "0", ping: "0 2147483647", domain: "example.org"}},
	} {
		s := plan(t, able, c.change)
		if len(s.Linux.Sysctl) != len(c.want) {
			t.Errorf("%s: %v, want %v", what, s.Linux.Sysctl, c.want)
		}
		for k, v := range c.want {
			if s.Linux.Sysctl[k] != v {
				t.Errorf("%s: %s is %q, want %q", what, k, s.Linux.Sysctl[k], v)
			}
		}
		if s.Domainname != "" {
			t.Errorf("%s: runc before 1.2 refuses the field domainname", what)
		}
	}
}

func TestAUsersTermStays(t *testing.T) {
	for want, env := range map[string][]string{"TERM=xterm": nil, "TERM=vt100": {"TERM=vt100"}} {
		s := plan(t, able, func(c *container.CreateRequest) { c.Tty, c.Env = true, env })
		var got []string
		for _, v := range s.Process.Env {
			if strings.HasPrefix(v, "TERM=") {
				got = append(got, v)
			}
		}
		if !slices.Equal(got, []string{want}) || !s.Process.Terminal {
			t.Errorf("with %v: %v, a terminal: %v", env, got, s.Process.Terminal)
		}
	}
}

func TestSecurityOptions(t *testing.T) {
	const profile = `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`
	none := Node{Seccomp: true}
	seccomp := func(s *specs.Spec) string {
		switch {
		case s.Linux.Seccomp == nil:
			return "none"
		case len(s.Linux.Seccomp.Syscalls) == 1:
			return "theirs"
		}
		return "default"
	}
	for _, c := range []struct {
		opts       []string
		privileged bool
		f          Node
		seccomp    string
		appArmor   string
		nnp        bool
		refused    string
	}{
		{f: able, seccomp: "default", appArmor: "docker-default"},
		{f: none, seccomp: "default"},
		{f: able, privileged: true, seccomp: "none", appArmor: "unconfined"},
		{opts: []string{"seccomp=unconfined", "apparmor=unconfined"}, f: able, seccomp: "none", appArmor: "unconfined"},
		{opts: []string{"seccomp:unconfined"}, f: none, seccomp: "none"},
		{opts: []string{"seccomp=builtin", "apparmor=docker-default"}, f: none, seccomp: "default"},
		{opts: []string{"seccomp=" + profile, "no-new-privileges"}, f: able, seccomp: "theirs", appArmor: "docker-default", nnp: true},
		{opts: []string{"seccomp=" + profile, "no-new-privileges:true", "apparmor=mine"}, privileged: true, f: able, seccomp: "theirs", appArmor: "mine", nnp: true},
		{opts: []string{"label=disable"}, f: able, seccomp: "default", appArmor: "docker-default"},
		{opts: []string{"label=type:x"}, f: none, seccomp: "default"},
		{opts: []string{"label=type:x"}, f: able, refused: "label=type:x"},
		{opts: []string{"apparmor=mine"}, f: none, refused: "apparmor=mine: this node has no AppArmor"},
		{opts: []string{"seccomp={"}, f: able, refused: "seccomp"},
		{opts: []string{`seccomp={"architectures":["SCMP_ARCH_X86"],"archMap":[{}],"defaultAction":"x"}`}, f: able, refused: "both 'architectures' and 'archMap'"},
		{f: Node{}, seccomp: "none"},
		{opts: []string{"seccomp=builtin"}, f: Node{}, seccomp: "none"},
		{opts: []string{"seccomp=" + profile}, f: Node{}, refused: "seccomp is not enabled in your kernel"},
		{opts: []string{"nonsense=1"}, f: able, refused: `invalid --security-opt 2: "nonsense=1"`},
		{opts: []string{"nonsense=1"}, privileged: true, f: able, refused: `invalid --security-opt 2: "nonsense=1"`},
	} {
		s, err := planned(c.f, func(r *container.CreateRequest) {
			r.HostConfig.SecurityOpt, r.HostConfig.Privileged = c.opts, c.privileged
		}, &ocispec.ImageConfig{Cmd: []string{"true"}})
		if c.refused != "" {
			var se *task.StartError
			if !errors.As(err, &se) || se.Code != 125 || !strings.Contains(se.Message, c.refused) {
				t.Errorf("%q: %v, want 125: %q", c.opts, err, c.refused)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", c.opts, err)
			continue
		}
		if got := seccomp(s); got != c.seccomp || s.Process.ApparmorProfile != c.appArmor || s.Process.NoNewPrivileges != c.nnp {
			t.Errorf("%q, privileged %v: seccomp %s, AppArmor %q, no new privileges %v; want %s, %q, %v", c.opts, c.privileged,
				got, s.Process.ApparmorProfile, s.Process.NoNewPrivileges, c.seccomp, c.appArmor, c.nnp)
		}
	}
	cgroup := func(privileged bool, opts ...string) string {
		s := plan(t, able, func(r *container.CreateRequest) { r.HostConfig.SecurityOpt, r.HostConfig.Privileged = opts, privileged })
		return mountAt(s, "/sys/fs/cgroup")[0].Options[0]
	}
	if got := []string{cgroup(false), cgroup(true), cgroup(false, "writable-cgroups"), cgroup(true, "writable-cgroups=false")}; !slices.Equal(got, []string{"ro", "rw", "rw", "ro"}) {
		t.Errorf("cgroups are %v", got)
	}
}

func TestBinds(t *testing.T) {
	const dir = "/srv"
	old := Node{}
	for _, c := range []struct {
		mode    string
		f       Node
		want    []string
		refused bool
	}{
		{"", able, []string{"rbind", "rprivate"}, false},
		{":ro", able, []string{"rbind", "rro", "rprivate"}, false},
		{":ro", old, []string{"rbind", "ro", "rprivate"}, false},
		{":rw,z,cached", able, []string{"rbind", "rprivate"}, false},
		{":delegated", able, []string{"rbind", "rprivate"}, false},
		{":consistent,ro", able, []string{"rbind", "rro", "rprivate"}, false},
		{":private,Z", able, []string{"rbind", "private"}, false},
		{":ro,rw", able, nil, true},
		{":cached,delegated", able, nil, true},
		{":ro,", able, nil, true},
		{":sticky", able, nil, true},
	} {
		s, err := planned(c.f, func(r *container.CreateRequest) { r.HostConfig.Binds = []string{dir + ":/mnt" + c.mode} }, &ocispec.ImageConfig{Cmd: []string{"true"}})
		if c.refused {
			if err == nil || !strings.Contains(err.Error(), "invalid mode: "+c.mode[1:]) {
				t.Errorf("%s: %v", c.mode, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := mountAt(s, "/mnt"); len(got) != 1 || !slices.Equal(got[0].Options, c.want) || s.Linux.RootfsPropagation != "" {
			t.Errorf("%s: %v, root %q; want %v", c.mode, got, s.Linux.RootfsPropagation, c.want)
		}
	}
	long := func(f Node, m mount.Mount) ([]string, error) {
		m.Type, m.Target = mount.TypeBind, "/mnt"
		s, err := planned(f, func(r *container.CreateRequest) { r.HostConfig.Mounts = []mount.Mount{m} }, &ocispec.ImageConfig{Cmd: []string{"true"}})
		if err != nil {
			return nil, err
		}
		return mountAt(s, "/mnt")[0].Options, nil
	}
	for _, c := range []struct {
		m    mount.Mount
		f    Node
		want string // options, or what it is refused with
	}{
		{mount.Mount{Source: dir, ReadOnly: true, BindOptions: &mount.BindOptions{NonRecursive: true}}, able, "bind,rro,rprivate"},
		{mount.Mount{Source: dir, ReadOnly: true, BindOptions: &mount.BindOptions{ReadOnlyNonRecursive: true}}, able, "rbind,ro,rprivate"},
		{mount.Mount{Source: dir, ReadOnly: true, BindOptions: &mount.BindOptions{ReadOnlyForceRecursive: true}}, able, "rbind,rro,rprivate"},
		{mount.Mount{Source: dir, ReadOnly: true, BindOptions: &mount.BindOptions{ReadOnlyForceRecursive: true}}, old, "rro is not supported"},
		{mount.Mount{Source: dir, BindOptions: &mount.BindOptions{Propagation: "sideways"}}, able, "invalid propagation mode: sideways"},
		{mount.Mount{Source: dir, BindOptions: &mount.BindOptions{Propagation: "rslave"}}, able, "rbind,rslave"},
	} {
		got, err := long(c.f, c.m)
		if err != nil && !strings.Contains(err.Error(), c.want) || err == nil && strings.Join(got, ",") != c.want {
			t.Errorf("%+v: %v, %v; want %s", c.m, got, err, c.want)
		}
	}
	s := plan(t, able, func(r *container.CreateRequest) {
		r.HostConfig.Mounts = []mount.Mount{{Type: mount.TypeTmpfs, Target: "/t", ReadOnly: true, TmpfsOptions: &mount.TmpfsOptions{Mode: 0o700, SizeBytes: 64, Options: [][]string{{"exec"}}}}}
	})
	if got := strings.Join(mountAt(s, "/t")[0].Options, ","); got != "noexec,nosuid,nodev,ro,mode=700,size=64,exec" {
		t.Errorf("tmpfs: %s", got)
	}
}

func TestTheIPCNamespace(t *testing.T) {
	for mode, c := range map[container.IpcMode]struct {
		own bool
		shm string
	}{"": {true, "shm"}, "private": {true, "shm"}, "host": {false, "/dev/shm"}, "none": {true, ""}} {
		s := plan(t, able, func(r *container.CreateRequest) { r.HostConfig.IpcMode = mode })
		shm := mountAt(s, "/dev/shm")
		if hasNamespace(s, specs.IPCNamespace) != c.own || len(shm) > 1 || (len(shm) == 1) != (c.shm != "") || len(shm) == 1 && shm[0].Source != c.shm {
			t.Errorf("%q: own namespace %v, /dev/shm %v", mode, hasNamespace(s, specs.IPCNamespace), shm)
		}
		if len(mountAt(s, "/dev/mqueue")) != 1 {
			t.Errorf("%q: no /dev/mqueue", mode)
		}
	}
	s := plan(t, able, func(r *container.CreateRequest) { r.HostConfig.ShmSize = 1 << 20 })
	if o := mountAt(s, "/dev/shm")[0].Options; !slices.Contains(o, "size=1048576") || slices.Contains(o, "size=65536k") {
		t.Errorf("a size of its own: %v", o)
	}
}

func TestMountsReplaceTheDefaultOnes(t *testing.T) {
	const dir = "/srv"
	s := plan(t, able, func(r *container.CreateRequest) {
		r.HostConfig.Binds, r.HostConfig.ReadonlyRootfs = []string{dir + ":/dev", dir + ":/sys/fs/cgroup:ro"}, true
	})
	for _, to := range []string{"/dev/pts", "/dev/shm", "/dev/mqueue"} {
		if len(mountAt(s, to)) != 0 {
			t.Errorf("%s is mounted over the user's /dev", to)
		}
	}
	for _, to := range []string{"/dev", "/sys/fs/cgroup"} {
		if m := mountAt(s, to); len(m) != 1 || m[0].Source != dir {
			t.Errorf("%s: %v", to, m)
		}
	}
	if m := mountAt(s, "/sys"); len(m) != 1 || !slices.Contains(m[0].Options, "ro") || !s.Root.Readonly {
		t.Errorf("of a read-only container: %v", m)
	}
}

func TestCgroupNamespaces(t *testing.T) {
	for _, v2 := range []bool{false, true} {
		n := able
		n.CgroupV2 = v2
		for mode, want := range map[container.CgroupnsMode]bool{"private": true, "host": false, "": v2} {
			s := plan(t, n, func(r *container.CreateRequest) { r.HostConfig.CgroupnsMode = mode })
			if got := hasNamespace(s, specs.CgroupNamespace); got != want || !strings.HasPrefix(s.Linux.CgroupsPath, "/drover/n/") {
				t.Errorf("v2 %v, %q: own namespace %v in %s, want %v", v2, mode, got, s.Linux.CgroupsPath, want)
			}
		}
	}
}

func TestUsersAreNamedByTheRequestOrTheImage(t *testing.T) {
	img := &ocispec.ImageConfig{User: "web"}
	for _, c := range []struct {
		user, want string
		img        *ocispec.ImageConfig
	}{{"", "", &ocispec.ImageConfig{}}, {"", "web", img}, {"0:0", "0:0", img}} {
		r := container.CreateRequest{Config: &container.Config{User: c.user}, HostConfig: &container.HostConfig{GroupAdd: []string{"logs"}}}
		if name, groups := User(r, c.img); name != c.want || !slices.Equal(groups, []string{"logs"}) {
			t.Errorf("%q of an image with %q: %q, %v", c.user, c.img.User, name, groups)
		}
	}
	if name, groups := User(container.CreateRequest{}, img); name != "web" || groups != nil {
		t.Errorf("an empty request: %q, %v", name, groups)
	}
}

func TestArgs(t *testing.T) {
	img := &ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}}
	for _, c := range []struct {
		entry, cmd []string
		img        *ocispec.ImageConfig
		want       string
	}{
		{nil, nil, img, "/entry serve"},
		{nil, []string{"list"}, img, "/entry list"},
		{[]string{"sh"}, nil, img, "sh"},
		{[]string{"sh"}, []string{"-c", "x"}, img, "sh -c x"},
		{[]string{""}, []string{"ls"}, img, "ls"},
		{[]string{}, nil, img, "serve"},
		{nil, nil, &ocispec.ImageConfig{}, ""},
	} {
		got, err := args(&container.Config{Entrypoint: c.entry, Cmd: c.cmd}, c.img)
		if strings.Join(got, " ") != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q %q: %q, %v; want %q", c.entry, c.cmd, got, err, c.want)
		}
	}
}

func TestHostnames(t *testing.T) {
	id := strings.Repeat("0", 64)
	for want, c := range map[string]container.CreateRequest{
		"000000000000": {Config: &container.Config{}},
		"web":          {Config: &container.Config{Hostname: "web"}, HostConfig: &container.HostConfig{NetworkMode: "host"}},
		"node":         {HostConfig: &container.HostConfig{NetworkMode: "host"}},
	} {
		if got := Hostname(c, id, "node"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// A folder of devices is mapped with what lies below it.
func TestDevicesOfAFolder(t *testing.T) {
	for path, want := range map[string]string{"": "/dev/snd/by-path/a /dev/snd/b", "/sound": "/sound/by-path/a /sound/b"} {
		s := base(able)
		devices(s, []specs.LinuxDevice{{Path: "/dev/snd/by-path/a", Type: "c"}, {Path: "/dev/snd/b", Type: "c"}},
			container.DeviceMapping{PathOnHost: "/dev/snd/", PathInContainer: path, CgroupPermissions: "r"})
		var got []string
		for _, d := range s.Linux.Devices {
			got = append(got, d.Path)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %v", path, got)
		}
	}
}

func TestMemory(t *testing.T) {
	const limit = 8 << 20
	twice, unlimited, reserved, none := int64(2*limit), int64(-1), int64(limit), int64(-1)
	swappiness, no := uint64(0), false
	for _, c := range []struct {
		body string
		want *specs.LinuxMemory
	}{
		{`{}`, nil},
		{`{"MemorySwappiness":-1,"OomKillDisable":false,"MemorySwap":-1}`, nil}, // as docker's command and its users say nothing
		{`{"Memory":8388608}`, &specs.LinuxMemory{Limit: &reserved, Swap: &twice}},
		{`{"Memory":8388608,"MemorySwap":-1}`, &specs.LinuxMemory{Limit: &reserved, Swap: &unlimited}},
		{`{"MemoryReservation":8388608}`, &specs.LinuxMemory{Reservation: &reserved}},
		{`{"MemorySwappiness":0}`, &specs.LinuxMemory{Swappiness: &swappiness}},
	} {
		var h container.HostConfig
		if err := json.Unmarshal([]byte(c.body), &h); err != nil {
			t.Fatal(err)
		}
		got, _ := json.Marshal(memory(&h))
		if want, _ := json.Marshal(c.want); string(got) != string(want) {
			t.Errorf("%s: %s, want %s", c.body, got, want)
		}
	}
	if m := memory(&container.HostConfig{Resources: container.Resources{OomKillDisable: &no, MemorySwappiness: &none}}); m != nil {
		t.Errorf("nothing asked for: %+v", m)
	}
}

// An annotation of containerd's would have the container run in another one's shim.
func TestAnnotationsThatSteerAreNotPassed(t *testing.T) {
	s := plan(t, able, func(r *container.CreateRequest) {
		r.HostConfig.Annotations = map[string]string{"com.example": "x", "io.containerd.runc.v2.group": "g", "io.kubernetes.cri.sandbox-id": "s"}
	})
	if len(s.Annotations) != 1 || s.Annotations["com.example"] != "x" {
		t.Errorf("annotations are %v", s.Annotations)
	}
}
