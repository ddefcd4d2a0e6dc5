package engine

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/drover/drover/agent/containerd"
	"github.com/drover/drover/agent/network"
	"github.com/drover/drover/agent/task"
)

// able is a node with all that a spec can ask for.
var able = facts{recursiveReadOnly: true, appArmor: true, seLinux: true}

// planned is the spec that a node makes of a request.
func planned(t *testing.T, f facts, change func(*container.CreateRequest)) (*specs.Spec, error) {
	t.Helper()
	e := &Engine{o: Options{DataDir: t.TempDir(), NodeID: "n", HostName: "node", Network: new(network.Network)}, facts: func() facts { return f }}
	c := container.CreateRequest{Config: &container.Config{Cmd: []string{"true"}}, HostConfig: &container.HostConfig{}}
	if change != nil {
		change(&c)
	}
	opts, err := e.ociSpec(task.Spec{ID: strings.Repeat("0", 64), Create: c}, &ocispec.Image{})
	if err != nil {
		return nil, err
	}
	root := oci.WithRootFSPath(rootOf(t, map[string]string{"etc/passwd": passwdText, "etc/group": groupText}))
	ctx := namespaces.WithNamespace(context.Background(), containerd.Namespace)
	return oci.GenerateSpec(ctx, nil, &containers.Container{ID: "c"}, slices.Insert(opts, 0, root)...)
}

// plan is planned where nothing is refused.
func plan(t *testing.T, f facts, change func(*container.CreateRequest)) *specs.Spec {
	t.Helper()
	s, err := planned(t, f, change)
	if err != nil {
		t.Fatal(err)
	}
	return s
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
	none := facts{}
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
		f          facts
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
		{opts: []string{"nonsense=1"}, f: able, refused: `invalid --security-opt 2: "nonsense=1"`},
		{opts: []string{"nonsense=1"}, privileged: true, f: able, refused: `invalid --security-opt 2: "nonsense=1"`},
	} {
		s, err := planned(t, c.f, func(r *container.CreateRequest) {
			r.HostConfig.SecurityOpt, r.HostConfig.Privileged = c.opts, c.privileged
		})
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
	dir := t.TempDir()
	old := facts{}
	for _, c := range []struct {
		mode    string
		f       facts
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
		s, err := planned(t, c.f, func(r *container.CreateRequest) { r.HostConfig.Binds = []string{dir + ":/mnt" + c.mode} })
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
	long := func(f facts, m mount.Mount) ([]string, error) {
		m.Type, m.Target = mount.TypeBind, "/mnt"
		s, err := planned(t, f, func(r *container.CreateRequest) { r.HostConfig.Mounts = []mount.Mount{m} })
		if err != nil {
			return nil, err
		}
		return mountAt(s, "/mnt")[0].Options, nil
	}
	missing := filepath.Join(dir, "missing")
	for _, c := range []struct {
		m    mount.Mount
		f    facts
		want string // options, or what it is refused with
	}{
		{mount.Mount{Source: dir, ReadOnly: true, BindOptions: &mount.BindOptions{NonRecursive: true}}, able, "bind,rro,rprivate"},
		{mount.Mount{Source: dir, ReadOnly: true, BindOptions: &mount.BindOptions{ReadOnlyNonRecursive: true}}, able, "rbind,ro,rprivate"},
		{mount.Mount{Source: dir, ReadOnly: true, BindOptions: &mount.BindOptions{ReadOnlyForceRecursive: true}}, able, "rbind,rro,rprivate"},
		{mount.Mount{Source: dir, ReadOnly: true, BindOptions: &mount.BindOptions{ReadOnlyForceRecursive: true}}, old, "rro is not supported"},
		{mount.Mount{Source: dir, BindOptions: &mount.BindOptions{Propagation: "sideways"}}, able, "invalid propagation mode: sideways"},
		{mount.Mount{Source: missing}, able, "bind source path does not exist: " + missing},
		{mount.Mount{Source: missing, BindOptions: &mount.BindOptions{CreateMountpoint: true}}, able, "rbind,rprivate"},
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
	dir := t.TempDir()
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
	for mode, want := range map[container.CgroupnsMode]bool{"private": true, "host": false, "": unified()} {
		s := plan(t, able, func(r *container.CreateRequest) { r.HostConfig.CgroupnsMode = mode })
		if got := hasNamespace(s, specs.CgroupNamespace); got != want || !strings.HasPrefix(s.Linux.CgroupsPath, "/drover/n/") {
			t.Errorf("%q: own namespace %v in %s, want %v", mode, got, s.Linux.CgroupsPath, want)
		}
	}
}

func TestRootHasItsGroups(t *testing.T) {
	s := plan(t, able, func(r *container.CreateRequest) { r.HostConfig.GroupAdd = []string{"logs"} })
	if got := s.Process.User.AdditionalGids; !slices.Contains(got, 10) || !slices.Contains(got, 200) {
		t.Errorf("root's groups: %v", got)
	}
}
