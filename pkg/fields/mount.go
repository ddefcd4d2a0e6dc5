package fields

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

func checkMounts(h *container.HostConfig) error {
	for _, b := range h.Binds {
		source, _, ok := strings.Cut(b, ":")
		switch {
		case !ok || source == "":
			return invalid("HostConfig.Binds", "invalid volume specification: '%s'", b)
		case !path.IsAbs(source):
			return unavailable("HostConfig.Binds", "named volumes are")
		}
	}
	for _, to := range slices.Sorted(maps.Keys(h.Tmpfs)) {
		if wrong := target(to); wrong != "" {
			return invalid("HostConfig.Tmpfs", "%s", wrong)
		}
	}
	for i := range h.Mounts {
		if err := checkMount(&h.Mounts[i]); err != nil {
			return err
		}
	}
	return nil
}

// kinds are the types of mounts, each with its field of options.
var kinds = []struct {
	of      mount.Type
	options string
	set     func(*mount.Mount) bool
	missing string // "": it is available
}{
	{mount.TypeBind, "BindOptions", func(m *mount.Mount) bool { return m.BindOptions != nil }, ""},
	{mount.TypeVolume, "VolumeOptions", func(m *mount.Mount) bool { return m.VolumeOptions != nil }, "volumes are"},
	{mount.TypeImage, "ImageOptions", func(m *mount.Mount) bool { return m.ImageOptions != nil }, "mounts of images are"},
	{mount.TypeTmpfs, "TmpfsOptions", func(m *mount.Mount) bool { return m.TmpfsOptions != nil }, ""},
	{mount.TypeCluster, "ClusterOptions", func(m *mount.Mount) bool { return m.ClusterOptions != nil }, "volumes of Swarm are"},
}

func checkMount(m *mount.Mount) error {
	wrong := func(field, words string) error {
		return invalid("HostConfig.Mounts[]."+field, "invalid mount config for type %q: %s", m.Type, words)
	}
	known := false
	for _, k := range kinds {
		if k.of != m.Type && k.set(m) {
			return wrong(k.options, "field "+k.options+" must not be specified")
		}
		known = known || k.of == m.Type
	}
	if m.Target == "" {
		return wrong("Target", "field Target must not be empty")
	}
	if why := target(m.Target); why != "" {
		return wrong("Target", why)
	}
	if !known {
		return wrong("Type", "mount type unknown")
	}
	for _, k := range kinds {
		if k.of == m.Type && k.missing != "" {
			return unavailable("HostConfig.Mounts[].Type", k.missing)
		}
	}
	switch {
	case m.Type == mount.TypeTmpfs && m.Source != "":
		return wrong("Source", "field Source must not be specified")
	case m.Type == mount.TypeBind && m.Source == "":
		return wrong("Source", "field Source must not be empty")
	case m.Type == mount.TypeBind && !path.IsAbs(m.Source):
		return wrong("Source", "invalid mount path: '"+m.Source+"' mount path must be absolute")
	}
	if o := m.BindOptions; o != nil && o.Propagation != "" && !slices.Contains(mount.Propagations, o.Propagation) {
		return wrong("BindOptions.Propagation", "invalid propagation mode: "+string(o.Propagation))
	}
	return nil
}

// target returns what is wrong with a path in a container, "" if nothing is.
func target(to string) string {
	switch {
	case path.Clean(to) == "/":
		return "invalid specification: destination can't be '/'"
	case !path.IsAbs(to):
		return "invalid mount path: '" + to + "' mount path must be absolute"
	}
	return ""
}

// Uncovered returns those volumes, of a request or its image, at whose paths the request
// mounts nothing itself. Clients list the targets of binds as volumes too.
func Uncovered(r *container.CreateRequest, volumes map[string]struct{}) []string {
	covered := map[string]bool{}
	if h := r.HostConfig; h != nil {
		for _, b := range h.Binds {
			if p := strings.Split(b, ":"); len(p) > 1 {
				covered[path.Clean(p[1])] = true
			}
		}
		for _, m := range h.Mounts {
			covered[path.Clean(m.Target)] = true
		}
		for to := range h.Tmpfs {
			covered[path.Clean(to)] = true
		}
	}
	var out []string
	for _, v := range slices.Sorted(maps.Keys(volumes)) {
		if !covered[path.Clean(v)] {
			out = append(out, v)
		}
	}
	return out
}
