package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/drover/drover/agent/task"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Files of a task that are mounted into its container.
const (
	hostsFile    = "hosts"
	hostnameFile = "hostname"
	resolvFile   = "resolv.conf"
)

// networkKind of a container.
type networkKind int

const (
	bridged networkKind = iota
	hosted
	isolated
)

func kindOf(c *container.CreateRequest) networkKind {
	if c.HostConfig == nil {
		return bridged
	}
	switch m := string(c.HostConfig.NetworkMode); m {
	case "host":
		return hosted
	case "none":
		return isolated
	}
	if c.Config != nil && c.NetworkDisabled {
		return isolated
	}
	return bridged
}

// ociSpec translates docker's create request for the image into options of
// containerd's spec. What can't be done here is a *task.StartError.
func (e *Engine) ociSpec(s task.Spec, img *ocispec.Image) ([]oci.SpecOpts, error) {
	c := s.Create
	if c.Config == nil {
		c.Config = &container.Config{}
	}
	if c.HostConfig == nil {
		c.HostConfig = &container.HostConfig{}
	}
	args, err := argsOf(c.Config, img)
	if err != nil {
		return nil, err
	}
	mounts, err := e.mounts(s.ID, c.HostConfig)
	if err != nil {
		return nil, err
	}
	cwd := c.WorkingDir
	if cwd == "" {
		cwd = img.Config.WorkingDir
	}
	if cwd == "" {
		cwd = "/"
	}
	user := c.User
	if user == "" {
		user = img.Config.User
	}
	o := []oci.SpecOpts{
		base, oci.WithCgroup(e.o.cgroup(s.ID)),
		oci.WithProcessArgs(args...), oci.WithProcessCwd(cwd), setEnv(envOf(&c, e.hostname(s), e.o.HostName, img)),
		oci.WithHostname(e.hostname(s)), oci.WithMounts(mounts), e.netns(s),
	}
	if c.Tty {
		o = append(o, oci.WithTTY, oci.WithTTYSize(int(c.HostConfig.ConsoleSize[1]), int(c.HostConfig.ConsoleSize[0])))
	}
	if c.Domainname != "" {
		o = append(o, oci.WithDomainname(c.Domainname))
	}
	o = append(o, withUser(user, c.HostConfig.GroupAdd))
	return append(append(o, namespacesOf(c.HostConfig)...), append(security(c.HostConfig), resources(c.HostConfig)...)...), nil
}

// base makes of containerd's default spec what docker's is.
func base(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
	s.Process.NoNewPrivileges = false
	s.Process.Rlimits = nil
	s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/run" })
	if !unified() { // docker: containers see the host's groups with v1, a namespace of their own with v2
		s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
	} else if !slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace }) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
		Options: []string{"ro", "nosuid", "noexec", "nodev"}})
	return nil
}

func (e *Engine) hostname(s task.Spec) string {
	if s.Create.Config != nil && s.Create.Hostname != "" {
		return s.Create.Hostname
	}
	if kindOf(&s.Create) == hosted {
		return e.o.HostName
	}
	return short(s.ID)
}

// argsOf is the entrypoint and command, the image's where the request has none.
func argsOf(c *container.Config, img *ocispec.Image) ([]string, error) {
	entry, cmd := []string(c.Entrypoint), []string(c.Cmd)
	if len(entry) == 0 {
		if len(cmd) == 0 {
			cmd = img.Config.Cmd
		}
		if c.Entrypoint == nil {
			entry = img.Config.Entrypoint
		}
	}
	if len(entry) == 1 && entry[0] == "" { // --entrypoint "" takes the image's away
		entry = nil
	}
	args := append(slices.Clone(entry), cmd...)
	if len(args) == 0 {
		return nil, &task.StartError{Code: 125, Message: "no command specified"}
	}
	return args, nil
}

func envOf(c *container.CreateRequest, host, node string, img *ocispec.Image) []string {
	env := []string{defaultPath, "HOSTNAME=" + host, "DROVER_NODE=" + node}
	if c.Tty {
		env = append(env, "TERM=xterm")
	}
	return mergeEnv(mergeEnv(env, img.Config.Env), c.Env)
}

// mergeEnv lets later variables replace earlier ones; a bare name removes one.
func mergeEnv(env, more []string) []string {
	env = slices.Clone(env)
	for _, v := range more {
		k, _, set := strings.Cut(v, "=")
		i := slices.IndexFunc(env, func(have string) bool { return strings.HasPrefix(have, k+"=") })
		switch {
		case i >= 0 && set:
			env[i] = v
		case i >= 0:
			env = slices.Delete(env, i, i+1)
		case set:
			env = append(env, v)
		}
	}
	return env
}

func setEnv(env []string) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
		s.Process.Env = env
		return nil
	}
}

// netns joins the namespace that the network makes at each start.
func (e *Engine) netns(s task.Spec) oci.SpecOpts {
	switch kindOf(&s.Create) {
	case hosted:
		return oci.WithHostNamespace(specs.NetworkNamespace)
	case isolated:
		return oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	return oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: e.o.Network.NetnsPath(s.ID)})
}

func namespacesOf(h *container.HostConfig) []oci.SpecOpts {
	var o []oci.SpecOpts
	if h.PidMode.IsHost() {
		o = append(o, oci.WithHostNamespace(specs.PIDNamespace))
	}
	if h.IpcMode.IsHost() {
		o = append(o, oci.WithHostNamespace(specs.IPCNamespace))
	}
	if h.UTSMode.IsHost() {
		o = append(o, oci.WithHostNamespace(specs.UTSNamespace), oci.WithHostname(""))
	}
	if h.CgroupnsMode.IsPrivate() {
		o = append(o, oci.WithNamespacedCgroup())
	}
	return o
}

// security sets capabilities and seccomp; the profile depends on the former.
func security(h *container.HostConfig) []oci.SpecOpts {
	if h.Privileged {
		return []oci.SpecOpts{oci.WithPrivileged, oci.WithAllDevicesAllowed, oci.WithHostDevices, oci.WithWriteableCgroupfs, oci.WithWriteableSysfs, noMasks}
	}
	var o []oci.SpecOpts
	add, drop := caps(h.CapAdd), caps(h.CapDrop)
	if slices.Contains(drop, "CAP_ALL") {
		o = append(o, oci.WithCapabilities(nil))
		drop = nil
	}
	if slices.Contains(add, "CAP_ALL") {
		o = append(o, oci.WithAllKnownCapabilities)
		add = nil
	}
	o = append(o, oci.WithAddedCapabilities(add), oci.WithDroppedCapabilities(drop), oci.WithDefaultUnixDevices)
	profile := seccomp.WithDefaultProfile()
	for _, opt := range h.SecurityOpt {
		switch strings.Replace(opt, ":", "=", 1) {
		case "no-new-privileges", "no-new-privileges=true":
			o = append(o, oci.WithNoNewPrivileges)
		case "seccomp=unconfined":
			profile = oci.WithSeccompUnconfined
		}
	}
	for _, d := range h.Devices {
		o = append(o, oci.WithDevices(d.PathOnHost, d.PathInContainer, d.CgroupPermissions))
	}
	if h.MaskedPaths != nil {
		o = append(o, oci.WithMaskedPaths(h.MaskedPaths))
	}
	if h.ReadonlyPaths != nil {
		o = append(o, oci.WithReadonlyPaths(h.ReadonlyPaths))
	}
	return append(o, profile)
}

func noMasks(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	return nil
}

func caps(names []string) []string {
	var out []string
	for _, n := range names {
		n = strings.ToUpper(n)
		if !strings.HasPrefix(n, "CAP_") {
			n = "CAP_" + n
		}
		out = append(out, n)
	}
	return out
}

func resources(h *container.HostConfig) []oci.SpecOpts {
	return []oci.SpecOpts{func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
		r := s.Linux.Resources
		if h.Memory > 0 {
			swap := h.MemorySwap
			if swap == 0 {
				swap = 2 * h.Memory // docker's default
			}
			r.Memory = &specs.LinuxMemory{Limit: &h.Memory, Swap: &swap, DisableOOMKiller: h.OomKillDisable}
			if h.MemoryReservation > 0 {
				r.Memory.Reservation = &h.MemoryReservation
			}
		}
		cpu := &specs.LinuxCPU{Cpus: h.CpusetCpus, Mems: h.CpusetMems}
		if h.CPUShares > 0 {
			shares := uint64(h.CPUShares)
			cpu.Shares = &shares
		}
		quota, period := h.CPUQuota, uint64(max(0, h.CPUPeriod))
		if h.NanoCPUs > 0 {
			period = 100_000
			quota = h.NanoCPUs * int64(period) / 1e9
		}
		if quota != 0 {
			cpu.Quota = &quota
		}
		if period != 0 {
			cpu.Period = &period
		}
		r.CPU = cpu
		if h.PidsLimit != nil && *h.PidsLimit != 0 {
			r.Pids = &specs.LinuxPids{Limit: h.PidsLimit}
		}
		for _, u := range h.Ulimits {
			s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{
				Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
		}
		if h.OomScoreAdj != 0 {
			s.Process.OOMScoreAdj = &h.OomScoreAdj
		}
		s.Root.Readonly = h.ReadonlyRootfs
		if len(h.Sysctls) > 0 {
			s.Linux.Sysctl = h.Sysctls
		}
		for i := range s.Mounts {
			if s.Mounts[i].Destination == "/dev/shm" && h.ShmSize > 0 {
				s.Mounts[i].Options = slices.DeleteFunc(s.Mounts[i].Options, func(o string) bool { return strings.HasPrefix(o, "size=") })
				s.Mounts[i].Options = append(s.Mounts[i].Options, fmt.Sprintf("size=%d", h.ShmSize))
			}
		}
		return nil
	}}
}

// mounts are docker's own files, then what the user asked for. Folders that -v
// names and that are missing on the host are made, as docker does.
func (e *Engine) mounts(id string, h *container.HostConfig) ([]specs.Mount, error) {
	var out []specs.Mount
	for to, name := range map[string]string{"/etc/hosts": hostsFile, "/etc/hostname": hostnameFile, "/etc/resolv.conf": resolvFile} {
		out = append(out, specs.Mount{Destination: to, Type: "bind", Source: filepath.Join(e.o.dir(id), name), Options: []string{"rbind", "rprivate"}})
	}
	for _, b := range h.Binds {
		m, err := bind(b)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	for to, opts := range h.Tmpfs {
		out = append(out, tmpfs(to, opts))
	}
	for _, m := range h.Mounts {
		switch m.Type {
		case mount.TypeBind:
			if _, err := os.Stat(m.Source); err != nil {
				return nil, refused("invalid mount config for type \"bind\": bind source path does not exist: %s", m.Source)
			}
			o := []string{"rbind", "rprivate"}
			if m.ReadOnly {
				o = append(o, "ro")
			}
			out = append(out, specs.Mount{Destination: m.Target, Type: "bind", Source: m.Source, Options: o})
		case mount.TypeTmpfs:
			opts := ""
			if t := m.TmpfsOptions; t != nil && t.SizeBytes > 0 {
				opts = fmt.Sprintf("size=%d", t.SizeBytes)
			}
			out = append(out, tmpfs(m.Target, opts))
		default:
			return nil, refused("mounts of type %q are not there yet", m.Type)
		}
	}
	// A mount below another comes after it; the user's replaces ours.
	slices.SortStableFunc(out, func(a, b specs.Mount) int {
		return strings.Count(filepath.Clean(a.Destination), "/") - strings.Count(filepath.Clean(b.Destination), "/")
	})
	seen := map[string]int{}
	var uniq []specs.Mount
	for _, m := range out {
		if i, ok := seen[filepath.Clean(m.Destination)]; ok {
			uniq[i] = m
			continue
		}
		seen[filepath.Clean(m.Destination)] = len(uniq)
		uniq = append(uniq, m)
	}
	return uniq, nil
}

func bind(b string) (specs.Mount, error) {
	p := strings.Split(b, ":")
	if len(p) < 2 || len(p) > 3 || !filepath.IsAbs(p[1]) {
		return specs.Mount{}, refused("invalid volume specification: '%s'", b)
	}
	if !filepath.IsAbs(p[0]) {
		return specs.Mount{}, refused("named volumes (%s) are not there yet; a folder of the host is named by its absolute path", p[0])
	}
	if err := os.MkdirAll(p[0], 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		if _, serr := os.Stat(p[0]); serr != nil {
			return specs.Mount{}, refused("error while creating mount source path '%s': %v", p[0], err)
		}
	}
	o := []string{"rbind"}
	prop := "rprivate"
	if len(p) == 3 {
		for _, f := range strings.Split(p[2], ",") {
			switch f {
			case "ro":
				o = append(o, "ro")
			case "rw", "z", "Z", "":
			case "private", "rprivate", "shared", "rshared", "slave", "rslave":
				prop = f
			default:
				return specs.Mount{}, refused("invalid mode: %s", p[2])
			}
		}
	}
	return specs.Mount{Destination: p[1], Type: "bind", Source: p[0], Options: append(o, prop)}, nil
}

func tmpfs(to, opts string) specs.Mount {
	o := []string{"noexec", "nosuid", "nodev"}
	for _, f := range strings.Split(opts, ",") {
		if f != "" {
			o = append(o, f)
		}
	}
	return specs.Mount{Destination: to, Type: "tmpfs", Source: "tmpfs", Options: o}
}

func refused(format string, args ...any) error {
	return &task.StartError{Code: 125, Message: fmt.Sprintf(format, args...)}
}

// writeFiles makes hosts, hostname and resolv.conf as they are for ip ("" for
// none of its own). They are changed in place: a running container has them mounted.
func (e *Engine) writeFiles(s task.Spec, ip string) error {
	host := e.hostname(s)
	names := host
	if s.Create.Config != nil && s.Create.Domainname != "" {
		names = host + "." + s.Create.Domainname + " " + host
	}
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
	kind := kindOf(&s.Create)
	if kind == hosted {
		if b, err := os.ReadFile("/etc/hosts"); err == nil {
			hosts = string(b)
		}
	}
	h := s.Create.HostConfig
	if h == nil {
		h = &container.HostConfig{}
	}
	for _, x := range h.ExtraHosts {
		name, addr, ok := strings.Cut(x, ":")
		if !ok {
			continue
		}
		if addr == "host-gateway" {
			addr = e.o.Network.Gateway().String()
		}
		hosts += addr + "\t" + name + "\n"
	}
	if ip != "" {
		hosts += ip + "\t" + names + "\n"
	}
	for name, text := range map[string]string{hostsFile: hosts, hostnameFile: host + "\n", resolvFile: resolvConf("/", h, kind)} {
		if err := os.WriteFile(filepath.Join(e.o.dir(s.ID), name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("writing %s of %s: %w", name, short(s.ID), err)
		}
	}
	return nil
}
