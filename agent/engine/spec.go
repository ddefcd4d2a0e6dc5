package engine

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/profiles/seccomp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/fields"
	"github.com/drover/drover/pkg/securityopt"
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
		oci.WithHostname(e.hostname(s)), withMounts(mounts, c.HostConfig), e.netns(s), sysctls(&c), annotations(c.HostConfig.Annotations),
	}
	if c.Tty {
		o = append(o, terminal, oci.WithTTYSize(int(c.HostConfig.ConsoleSize[1]), int(c.HostConfig.ConsoleSize[0])))
	}
	o = append(o, withUser(user, c.HostConfig.GroupAdd))
	confined, err := security(c.HostConfig, e.facts())
	if err != nil {
		return nil, err
	}
	return slices.Concat(o, namespacesOf(c.HostConfig), confined, resources(c.HostConfig)), nil
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
	switch {
	case h.CgroupnsMode.IsPrivate():
		o = append(o, oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.CgroupNamespace}))
	case h.CgroupnsMode.IsHost():
		o = append(o, oci.WithHostNamespace(specs.CgroupNamespace))
	}
	return o
}

// terminal, without the TERM that containerd's option puts behind the user's.
func terminal(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
	s.Process.Terminal = true
	return nil
}

// sysctls are docker's own, and the user's over them. In a network namespace of its
// own, anybody may listen on any port and send an ICMP echo.
func sysctls(c *container.CreateRequest) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
		all := map[string]string{}
		if c.Domainname != "" { // not the spec's field for it, which runc knows from 1.2 on only
			all["kernel.domainname"] = c.Domainname
		}
		if kindOf(c) != hosted {
			all["net.ipv4.ping_group_range"] = "0 2147483647"
			all["net.ipv4.ip_unprivileged_port_start"] = "0"
		}
		maps.Copy(all, c.HostConfig.Sysctls)
		if s.Linux.Sysctl = nil; len(all) > 0 {
			s.Linux.Sysctl = all
		}
		return nil
	}
}

// annotations are the user's, without those that would steer what runs the container.
func annotations(all map[string]string) oci.SpecOpts {
	users := maps.Clone(all)
	maps.DeleteFunc(users, func(k, _ string) bool { return fields.Reserved(k) })
	return oci.WithAnnotations(users)
}

// security sets capabilities and what confines them: seccomp, whose default profile
// depends on them, AppArmor, and paths.
func security(h *container.HostConfig, f facts) ([]oci.SpecOpts, error) {
	opts, err := securityopt.Parse(h.SecurityOpt)
	if err != nil {
		return nil, refused("%v", err)
	}
	var o []oci.SpecOpts
	if h.Privileged {
		o = privileged(h)
	} else if o, err = unprivileged(h); err != nil {
		return nil, err
	}
	if h.MaskedPaths != nil {
		o = append(o, oci.WithMaskedPaths(h.MaskedPaths))
	}
	if h.ReadonlyPaths != nil {
		o = append(o, oci.WithReadonlyPaths(h.ReadonlyPaths))
	}
	if opts.NoNewPrivileges {
		o = append(o, oci.WithNoNewPrivileges)
	}
	if w := opts.WritableCgroups; w == nil && h.Privileged || w != nil && *w {
		o = append(o, oci.WithWriteableCgroupfs)
	}
	for _, l := range opts.Labels {
		if l != "disable" && f.seLinux { // without SELinux they mean nothing, as to docker
			return nil, refused("invalid --security-opt: label=%s: drover sets no SELinux labels yet", l)
		}
	}
	profile, err := appArmor(opts.AppArmor, h.Privileged, f)
	if err != nil {
		return nil, err
	}
	return append(o, profile, filter(opts.Seccomp, h.Privileged)), nil
}

// privileged has all of the host's devices; those that are named get another path.
func privileged(h *container.HostConfig) []oci.SpecOpts {
	o := []oci.SpecOpts{oci.WithAllCurrentCapabilities, oci.WithAllDevicesAllowed, oci.WithHostDevices, oci.WithWriteableSysfs, noMasks}
	for _, d := range h.Devices {
		if d.PathInContainer != d.PathOnHost {
			o = append(o, oci.WithDevices(d.PathOnHost, d.PathInContainer, "rwm"))
		}
	}
	return o
}

func unprivileged(h *container.HostConfig) ([]oci.SpecOpts, error) {
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
	for _, d := range h.Devices {
		o = append(o, oci.WithDevices(d.PathOnHost, d.PathInContainer, d.CgroupPermissions))
	}
	for _, rule := range h.DeviceCgroupRules {
		d, err := fields.DeviceRule(rule)
		if err != nil {
			return nil, refused("%v", err)
		}
		o = append(o, func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, d)
			return nil
		})
	}
	return o, nil
}

// appArmor gives the profile where the kernel has AppArmor. Where it hasn't, docker
// leaves out all of them; here one that was named is refused.
func appArmor(name string, privileged bool, f facts) (oci.SpecOpts, error) {
	if !f.appArmor {
		if name != "" && name != securityopt.Unconfined && name != securityopt.DefaultAppArmor {
			return nil, refused("invalid --security-opt: apparmor=%s: this node has no AppArmor", name)
		}
		return oci.WithApparmorProfile(""), nil
	}
	switch {
	case name == "" && privileged:
		name = securityopt.Unconfined
	case name == "":
		name = securityopt.DefaultAppArmor
	}
	return oci.WithApparmorProfile(name), nil
}

// filter sets seccomp's: of privileged containers only one that was asked for.
func filter(profile string, privileged bool) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) (err error) {
		switch {
		case profile == securityopt.Unconfined, profile == "" && privileged:
			s.Linux.Seccomp = nil
		case profile == "", profile == securityopt.BuiltinSeccomp:
			s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s)
		default:
			if s.Linux.Seccomp, err = seccomp.LoadProfile(profile, s); err != nil {
				return refused("invalid --security-opt seccomp: %v", err)
			}
		}
		return err
	}
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
		r.Memory = memory(h)
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
		return nil
	}}
}

// memory is nil where nothing is asked for. A limit comes with twice as much for
// memory and swap together, as docker's does.
func memory(h *container.HostConfig) *specs.LinuxMemory {
	m := specs.LinuxMemory{}
	if h.Memory > 0 {
		swap := h.MemorySwap
		if swap == 0 {
			swap = 2 * h.Memory
		}
		m.Limit, m.Swap = &h.Memory, &swap
	}
	if h.MemoryReservation > 0 {
		m.Reservation = &h.MemoryReservation
	}
	if p := h.MemorySwappiness; p != nil && *p >= 0 { // -1 is what docker's command sends for none
		swappiness := uint64(*p)
		m.Swappiness = &swappiness
	}
	if h.OomKillDisable != nil && *h.OomKillDisable {
		m.DisableOOMKiller = h.OomKillDisable
	}
	if m == (specs.LinuxMemory{}) {
		return nil
	}
	return &m
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
