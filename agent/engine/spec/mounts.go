package spec

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/mounts"
)

// Binds returns the host paths that a request mounts, with -v and --mount.
func Binds(h *container.HostConfig) ([]mount.Mount, error) {
	out, err := binds(h)
	for _, m := range h.Mounts {
		if m.Type == mount.TypeBind {
			out = append(out, m)
		}
	}
	return out, err
}

// binds returns the host paths that -v mounts; the others are volumes.
func binds(h *container.HostConfig) (out []mount.Mount, err error) {
	for _, b := range h.Binds {
		p, err := mounts.ParseBind(b)
		if err != nil {
			return nil, task.Refuse("%v", err)
		}
		if p.Type == mount.TypeBind {
			out = append(out, p.Mount)
		}
	}
	return out, nil
}

// wanted returns docker's own files, followed by what the user asked for.
func wanted(h *container.HostConfig, f Facts) ([]specs.Mount, error) {
	out := ownFiles(f.Dir)
	if h.IpcMode.IsHost() {
		out = append(out, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: []string{"rbind", "rprivate"}})
	}
	own, err := binds(h)
	if err != nil {
		return nil, err
	}
	for _, b := range slices.Concat(f.Mounts, own) {
		m, err := bind(b, f.Node)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	for _, to := range slices.Sorted(maps.Keys(h.Tmpfs)) {
		out = append(out, tmpfs(to, h.Tmpfs[to]))
	}
	for _, x := range h.Mounts {
		var m specs.Mount
		switch x.Type {
		case mount.TypeBind:
			m, err = bind(x, f.Node)
		case mount.TypeTmpfs:
			m, err = tmpfsOf(x)
		case mount.TypeVolume: // it is among the facts
			continue
		default:
			err = task.Refuse("mounts of type %q are not there yet", x.Type)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return inOrder(out), nil
}

// inOrder sorts a mount after those that it is below, and keeps only the last one at
// each path.
func inOrder(all []specs.Mount) (out []specs.Mount) {
	slices.SortStableFunc(all, func(a, b specs.Mount) int {
		return strings.Count(filepath.Clean(a.Destination), "/") - strings.Count(filepath.Clean(b.Destination), "/")
	})
	seen := map[string]int{}
	for _, m := range all {
		if i, ok := seen[filepath.Clean(m.Destination)]; ok {
			out[i] = m
			continue
		}
		seen[filepath.Clean(m.Destination)] = len(out)
		out = append(out, m)
	}
	return out
}

var propagations = []mount.Propagation{mount.PropagationPrivate, mount.PropagationRPrivate, mount.PropagationShared,
	mount.PropagationRShared, mount.PropagationSlave, mount.PropagationRSlave}

func bind(m mount.Mount, n Node) (specs.Mount, error) {
	o := m.BindOptions
	if o == nil {
		o = &mount.BindOptions{}
	}
	opts := []string{"rbind"}
	if o.NonRecursive {
		opts[0] = "bind"
	}
	if m.ReadOnly {
		ro, err := readOnly(o, n)
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
		return specs.Mount{}, task.Refuse("invalid mount config for type \"bind\": invalid propagation mode: %s", prop)
	}
	return specs.Mount{Destination: m.Target, Type: "bind", Source: m.Source, Options: append(opts, string(prop))}, nil
}

// readOnly is recursive by default, if kernel and runc support that.
func readOnly(o *mount.BindOptions, n Node) (string, error) {
	switch {
	case o.ReadOnlyNonRecursive && o.ReadOnlyForceRecursive:
		return "", task.Refuse("mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive")
	case o.ReadOnlyForceRecursive && !n.RecursiveReadOnly:
		return "", task.Refuse("rro is not supported by this node's kernel (5.12 is needed) or runc")
	case o.ReadOnlyNonRecursive || !n.RecursiveReadOnly:
		return "ro", nil
	}
	return "rro", nil
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
				return specs.Mount{}, task.Refuse("invalid mount config for type \"tmpfs\": invalid option: %s", strings.Join(o, "="))
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

// allMounts replaces default mounts at the same path with the container's, and sets the
// root propagation that they need: a container whose root is private shares nothing.
func allMounts(s *specs.Spec, h *container.HostConfig, f Facts) error {
	all, err := wanted(h, f)
	if err != nil {
		return err
	}
	mine := map[string]bool{}
	for _, m := range all {
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
				m.Options = slices.DeleteFunc(m.Options, func(o string) bool { return strings.HasPrefix(o, "size=") })
				s.Mounts[i].Options = append(m.Options, fmt.Sprintf("size=%d", h.ShmSize))
			}
		default:
			if h.ReadonlyRootfs && !slices.Contains(m.Options, "ro") {
				s.Mounts[i].Options = append(m.Options, "ro")
			}
		}
	}
	s.Mounts = append(s.Mounts, all...)
	return nil
}

func hasAny(list []string, of ...string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return slices.Contains(of, s) })
}
