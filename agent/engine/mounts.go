package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// mounts are docker's own files, then what the user asked for. Folders that -v
// names and that are missing on the host are made, as docker does.
func (e *Engine) mounts(id string, h *container.HostConfig) ([]specs.Mount, error) {
	var out []specs.Mount
	for to, name := range map[string]string{"/etc/hosts": hostsFile, "/etc/hostname": hostnameFile, "/etc/resolv.conf": resolvFile} {
		out = append(out, specs.Mount{Destination: to, Type: "bind", Source: filepath.Join(e.o.dir(id), name), Options: []string{"rbind", "rprivate"}})
	}
	if h.IpcMode.IsHost() {
		out = append(out, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: []string{"rbind", "rprivate"}})
	}
	for _, b := range h.Binds {
		m, err := bindOf(b)
		if err == nil {
			out, err = e.addMount(out, m)
		}
		if err != nil {
			return nil, err
		}
	}
	for to, opts := range h.Tmpfs {
		out = append(out, tmpfs(to, opts))
	}
	for _, m := range h.Mounts {
		var err error
		if out, err = e.addMount(out, m); err != nil {
			return nil, err
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

// bindOf reads -v's source:target[:mode].
func bindOf(b string) (mount.Mount, error) {
	p := strings.Split(b, ":")
	if len(p) < 2 || len(p) > 3 || !filepath.IsAbs(p[1]) {
		return mount.Mount{}, refused("invalid volume specification: '%s'", b)
	}
	if !filepath.IsAbs(p[0]) {
		return mount.Mount{}, refused("named volumes (%s) are not there yet; a folder of the host is named by its absolute path", p[0])
	}
	m := mount.Mount{Type: mount.TypeBind, Source: p[0], Target: p[1], BindOptions: &mount.BindOptions{CreateMountpoint: true}}
	if len(p) == 3 && !readMode(p[2], &m) {
		return mount.Mount{}, refused("invalid mode: %s", p[2])
	}
	return m, nil
}

// readMode takes a mode apart: of each kind at most one. Labels and how consistent
// a mount is mean nothing here, as they don't to docker on Linux without SELinux.
func readMode(mode string, m *mount.Mount) bool {
	kinds := map[string]int{}
	for _, f := range strings.Split(mode, ",") {
		switch f {
		case "":
			if mode != "" {
				return false
			}
		case "ro", "rw":
			kinds["rw"]++
			m.ReadOnly = f == "ro"
		case "z", "Z":
			kinds["label"]++
		case "nocopy":
			kinds["copy"]++
		case "consistent", "cached", "delegated":
			kinds["consistency"]++
		default:
			if !slices.Contains(propagations, mount.Propagation(f)) {
				return false
			}
			kinds["propagation"]++
			m.BindOptions.Propagation = mount.Propagation(f)
		}
	}
	for _, n := range kinds {
		if n > 1 {
			return false
		}
	}
	return true
}

var propagations = []mount.Propagation{mount.PropagationPrivate, mount.PropagationRPrivate, mount.PropagationShared,
	mount.PropagationRShared, mount.PropagationSlave, mount.PropagationRSlave}

func (e *Engine) addMount(out []specs.Mount, m mount.Mount) ([]specs.Mount, error) {
	switch m.Type {
	case mount.TypeBind:
		b, err := bind(m, e.facts())
		return append(out, b), err
	case mount.TypeTmpfs:
		t, err := tmpfsOf(m)
		return append(out, t), err
	}
	return nil, refused("mounts of type %q are not there yet", m.Type)
}

func bind(m mount.Mount, f facts) (specs.Mount, error) {
	o := m.BindOptions
	if o == nil {
		o = &mount.BindOptions{}
	}
	if err := source(m.Source, o.CreateMountpoint); err != nil {
		return specs.Mount{}, err
	}
	opts := []string{"rbind"}
	if o.NonRecursive {
		opts[0] = "bind"
	}
	if m.ReadOnly {
		ro, err := readOnly(o, f)
		if err != nil {
			return specs.Mount{}, err
		}
		opts = append(opts, ro)
	}
	prop := o.Propagation
	switch {
	case prop == "":
		prop = mount.PropagationRPrivate
	case !slices.Contains(propagations, prop):
		return specs.Mount{}, refused("invalid mount config for type \"bind\": invalid propagation mode: %s", prop)
	}
	if err := propagates(m.Source, prop); err != nil {
		return specs.Mount{}, err
	}
	return specs.Mount{Destination: m.Target, Type: "bind", Source: m.Source, Options: append(opts, string(prop))}, nil
}

// source is there, or is made where that was asked for.
func source(path string, make bool) error {
	_, err := os.Stat(path)
	if err == nil {
		return nil
	}
	if !make {
		return refused("invalid mount config for type \"bind\": bind source path does not exist: %s", path)
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return refused("error while creating mount source path '%s': %v", path, err)
	}
	return nil
}

// readOnly is recursive by default, where kernel and runc can do that.
func readOnly(o *mount.BindOptions, f facts) (string, error) {
	switch {
	case o.ReadOnlyNonRecursive && o.ReadOnlyForceRecursive:
		return "", refused("mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive")
	case o.ReadOnlyForceRecursive && !f.recursiveReadOnly:
		return "", refused("rro is not supported by this node's kernel (5.12 is needed) or runc")
	case o.ReadOnlyNonRecursive || !f.recursiveReadOnly:
		return "ro", nil
	}
	return "rro", nil
}

// propagates refuses what runc would leave out: mounts can be shared with a
// container only out of a mount that is shared itself.
func propagates(path string, p mount.Propagation) error {
	switch p {
	case mount.PropagationShared, mount.PropagationRShared, mount.PropagationSlave, mount.PropagationRSlave:
	default:
		return nil
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("looking at the mount of %s: %w", path, err)
	}
	all, err := mountinfo.GetMounts(mountinfo.ParentsFilter(real))
	if err != nil {
		return fmt.Errorf("looking at the mount of %s: %w", path, err)
	}
	var of *mountinfo.Info
	for _, m := range all { // the longest, and of those at one place the last
		if of == nil || len(m.Mountpoint) >= len(of.Mountpoint) {
			of = m
		}
	}
	if of == nil {
		return errors.New("can't find the mount point of " + path)
	}
	shared := strings.Contains(" "+of.Optional, " shared:")
	slave := strings.Contains(" "+of.Optional, " master:")
	switch {
	case shared:
	case p == mount.PropagationShared || p == mount.PropagationRShared:
		return refused("path %s is mounted on %s but it is not a shared mount", path, of.Mountpoint)
	case !slave:
		return refused("path %s is mounted on %s but it is not a shared or slave mount", path, of.Mountpoint)
	}
	return nil
}

func tmpfsOf(m mount.Mount) (specs.Mount, error) {
	var opts []string
	if m.ReadOnly {
		opts = append(opts, "ro")
	}
	if t := m.TmpfsOptions; t != nil {
		if t.Mode != 0 {
			opts = append(opts, fmt.Sprintf("mode=%o", t.Mode))
		}
		if t.SizeBytes > 0 {
			opts = append(opts, fmt.Sprintf("size=%d", t.SizeBytes))
		}
		for _, o := range t.Options {
			if len(o) != 1 || o[0] != "exec" && o[0] != "noexec" {
				return specs.Mount{}, refused("invalid mount config for type \"tmpfs\": invalid option: %s", strings.Join(o, "="))
			}
			opts = append(opts, o[0])
		}
	}
	return tmpfs(m.Target, strings.Join(opts, ",")), nil
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

// withMounts adds mounts in place of the default ones at the same path, and sets
// what they need of the root: a container whose root is private shares nothing.
func withMounts(mounts []specs.Mount, h *container.HostConfig) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
		mine := map[string]bool{}
		for _, m := range mounts {
			mine[filepath.Clean(m.Destination)] = true
			switch {
			case hasAny(m.Options, "shared", "rshared"):
				s.Linux.RootfsPropagation = "shared"
			case hasAny(m.Options, "slave", "rslave") && s.Linux.RootfsPropagation != "shared":
				s.Linux.RootfsPropagation = "rslave"
			}
		}
		s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool {
			return mine[m.Destination] || mine["/dev"] && strings.HasPrefix(m.Destination, "/dev/") || m.Destination == "/dev/shm" && h.IpcMode.IsNone()
		})
		for i, m := range s.Mounts {
			switch m.Destination {
			case "/proc", "/dev", "/dev/pts", "/dev/mqueue":
			case "/dev/shm":
				if h.ShmSize > 0 {
					m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return strings.HasPrefix(o, "size=") })
					s.Mounts[i].Options = append(m.Options, fmt.Sprintf("size=%d", h.ShmSize))
				}
			default:
				if h.ReadonlyRootfs && !slices.Contains(m.Options, "ro") {
					s.Mounts[i].Options = append(slices.Clone(m.Options), "ro")
				}
			}
		}
		s.Mounts = append(s.Mounts, mounts...)
		return nil
	}
}

func hasAny(list []string, of ...string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return slices.Contains(of, s) })
}
