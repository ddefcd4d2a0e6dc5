package spec

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/cap"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/fields"
	"github.com/drover/drover/pkg/securityopt"
)

// AllCapabilities are all capabilities of Linux.
func AllCapabilities() *specs.LinuxCapabilities { return capabilities(known()) }

func known() []string { return slices.Sorted(slices.Values(cap.Known())) } // cap.Known is unordered

// security sets capabilities and what confines the container: seccomp, whose default
// profile depends on the capabilities, AppArmor, and masked paths.
func security(s *specs.Spec, h *container.HostConfig, f Facts) error {
	opts, err := securityopt.Parse(h.SecurityOpt)
	if err != nil {
		return task.Refuse("%v", err)
	}
	if h.Privileged {
		privileged(s, h, f)
	} else if err := unprivileged(s, h, f); err != nil {
		return err
	}
	if h.MaskedPaths != nil {
		s.Linux.MaskedPaths = h.MaskedPaths
	}
	if h.ReadonlyPaths != nil {
		s.Linux.ReadonlyPaths = h.ReadonlyPaths
	}
	s.Process.NoNewPrivileges = opts.NoNewPrivileges
	if w := opts.WritableCgroups; w == nil && h.Privileged || w != nil && *w {
		writable(s, "cgroup")
	}
	for _, l := range opts.Labels {
		if l != "disable" && f.Node.SELinux { // without SELinux, docker ignores them too
			return task.Refuse("invalid --security-opt: label=%s: drover sets no SELinux labels yet", l)
		}
	}
	if s.Process.ApparmorProfile, err = appArmor(opts.AppArmor, h.Privileged, f.Node); err != nil {
		return err
	}
	s.Linux.Seccomp, err = filter(s, opts.Seccomp, h.Privileged, f.Node)
	return err
}

// privileged gives a container all of the agent's capabilities and all of the host's
// devices; devices that are named get another path.
func privileged(s *specs.Spec, h *container.HostConfig, f Facts) {
	s.Process.Capabilities = capabilities(slices.Clone(f.Node.Capabilities))
	s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: allAccess}}
	s.Linux.Devices = slices.Clone(f.Devices[""])
	for _, d := range h.Devices {
		if d.CgroupPermissions = allAccess; d.PathInContainer != d.PathOnHost {
			devices(s, f.Devices[d.PathOnHost], d)
		}
	}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	writable(s, "sysfs")
}

func unprivileged(s *specs.Spec, h *container.HostConfig, f Facts) error {
	s.Process.Capabilities = capabilities(granted(caps(h.CapAdd), caps(h.CapDrop)))
	s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, defaultDevices()...)
	for _, d := range h.Devices {
		devices(s, f.Devices[d.PathOnHost], d)
	}
	for _, rule := range h.DeviceCgroupRules {
		d, err := fields.DeviceRule(rule)
		if err != nil {
			return task.Refuse("%v", err)
		}
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, d)
	}
	return nil
}

// granted returns docker's default capabilities with some added and some dropped.
func granted(add, drop []string) []string {
	var out []string
	switch {
	case slices.Contains(add, "CAP_ALL"):
		out, add = known(), nil
	case !slices.Contains(drop, "CAP_ALL"):
		out = slices.Clone(defaultCapabilities)
	}
	for _, c := range add {
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return slices.DeleteFunc(out, func(c string) bool { return slices.Contains(drop, c) })
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

// devices adds what a mapping's path on the host refers to: one device, or those of a
// directory.
func devices(s *specs.Spec, found []specs.LinuxDevice, d container.DeviceMapping) {
	for _, dev := range found {
		switch {
		case d.PathInContainer == "":
		case dev.Path == d.PathOnHost:
			dev.Path = d.PathInContainer
		default: // in a directory
			dev.Path = filepath.Join(d.PathInContainer, strings.TrimPrefix(dev.Path, filepath.Clean(d.PathOnHost)))
		}
		s.Linux.Devices = append(s.Linux.Devices, dev)
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: dev.Type, Major: &dev.Major, Minor: &dev.Minor, Access: d.CgroupPermissions})
	}
}

// writable makes mounts of a type writable.
func writable(s *specs.Spec, kind string) {
	for i, m := range s.Mounts {
		if m.Type == kind {
			s.Mounts[i].Options = slices.Clone(m.Options)
			if j := slices.Index(m.Options, "ro"); j >= 0 {
				s.Mounts[i].Options[j] = "rw"
			}
		}
	}
}

// appArmor returns the profile if the kernel has AppArmor. If it hasn't, docker ignores
// all profiles; drover refuses one that was named.
func appArmor(name string, privileged bool, n Node) (string, error) {
	switch {
	case !n.AppArmor && name != "" && name != securityopt.Unconfined && name != securityopt.DefaultAppArmor:
		return "", task.Refuse("invalid --security-opt: apparmor=%s: this node has no AppArmor", name)
	case !n.AppArmor:
		return "", nil
	case name != "":
		return name, nil
	case privileged:
		return securityopt.Unconfined, nil
	}
	return securityopt.DefaultAppArmor, nil
}

// filter returns the seccomp filter: privileged containers have only one that was
// requested.
func filter(s *specs.Spec, profile string, privileged bool, n Node) (*specs.LinuxSeccomp, error) {
	named := profile != "" && profile != securityopt.BuiltinSeccomp
	switch {
	case profile == securityopt.Unconfined, profile == "" && privileged, !n.Seccomp && !named:
		return nil, nil
	case !n.Seccomp:
		return nil, task.Refuse("invalid --security-opt: seccomp is not enabled in your kernel, cannot run a custom seccomp profile")
	case named:
		out, err := seccomp.LoadProfile(profile, s)
		if err != nil {
			return nil, task.Refuse("invalid --security-opt seccomp: %v", err)
		}
		return out, nil
	}
	return seccomp.GetDefaultProfile(s)
}
