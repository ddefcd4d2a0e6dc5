// Package mounts reads the mounts of docker's create request: -v, --mount, --volumes-from
// and --volume-driver, as docker's parser for Linux does. It is pure. Which node has what
// is mounted is up to others.
package mounts

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

// Point is where something is mounted: what a request asks for in docker's form.
type Point struct {
	mount.Mount        // Target is clean
	Mode        string // of -v, as it was sent
}

// Propagations are the modes of a bind.
var propagations = []mount.Propagation{mount.PropagationPrivate, mount.PropagationRPrivate, mount.PropagationShared,
	mount.PropagationRShared, mount.PropagationSlave, mount.PropagationRSlave}

// Of returns the mounts of -v and --mount, in this order, but for volumes of the image and
// those without a source that are listed in Config.Volumes. Two at one path are an error.
func Of(h *container.HostConfig) ([]Point, error) {
	if h == nil {
		return nil, nil
	}
	var out []Point
	seen := map[string]bool{}
	for _, b := range h.Binds {
		p, err := ParseBind(b)
		if err != nil {
			return nil, err
		}
		for to := range h.Tmpfs {
			seen[p.Target] = seen[p.Target] || path.Clean(to) == p.Target
		}
		if p.Type == mount.TypeVolume {
			o := mount.VolumeOptions{}
			if p.VolumeOptions != nil {
				o = *p.VolumeOptions
			}
			if h.VolumeDriver != "" {
				o.DriverConfig = &mount.Driver{Name: h.VolumeDriver}
			}
			p.VolumeOptions = &o
		}
		out = append(out, p)
	}
	for _, m := range h.Mounts {
		if err := Check(&m); err != nil {
			return nil, err
		}
		m.Target = path.Clean(m.Target)
		out = append(out, Point{Mount: m})
	}
	for _, p := range out {
		if seen[p.Target] {
			return nil, fmt.Errorf("Duplicate mount point: %s", p.Target) //nolint:staticcheck // docker's words
		}
		seen[p.Target] = true
	}
	return out, nil
}

// ParseBind parses -v's [source:]target[:mode].
func ParseBind(raw string) (Point, error) {
	invalid := fmt.Errorf("invalid volume specification: '%s'", raw)
	arr := strings.SplitN(raw, ":", 4)
	p := Point{}
	switch len(arr) {
	case 1:
		p.Target = arr[0]
	case 2:
		if validMode(arr[1]) { // without a source there is no mode
			return p, invalid
		}
		p.Source, p.Target = arr[0], arr[1]
	case 3:
		p.Source, p.Target, p.Mode = arr[0], arr[1], arr[2]
	default:
		return p, invalid
	}
	if arr[0] == "" {
		return p, invalid
	}
	if !validMode(p.Mode) {
		return p, fmt.Errorf("invalid mode: %s", p.Mode)
	}
	words := strings.Split(p.Mode, ",")
	p.Type, p.ReadOnly = mount.TypeVolume, slices.Contains(words, "ro")
	if path.IsAbs(p.Source) {
		p.Type, p.Source = mount.TypeBind, path.Clean(p.Source)
		p.BindOptions = &mount.BindOptions{CreateMountpoint: true}
	} else if slices.Contains(words, "nocopy") {
		p.VolumeOptions = &mount.VolumeOptions{NoCopy: true}
	}
	for _, w := range words {
		if !slices.Contains(propagations, mount.Propagation(w)) {
			continue
		}
		if p.BindOptions == nil {
			return p, fmt.Errorf("%w: invalid mount config for type \"volume\": field BindOptions must not be specified", invalid)
		}
		p.BindOptions.Propagation = mount.Propagation(w)
	}
	if err := Check(&p.Mount); err != nil {
		return p, fmt.Errorf("%w: %w", invalid, err)
	}
	p.Target = path.Clean(p.Target)
	return p, nil
}

// validMode reports whether a mode has known words, and at most one of each kind.
func validMode(mode string) bool {
	if mode == "" {
		return true
	}
	kinds := map[string]int{}
	for w := range strings.SplitSeq(mode, ",") {
		switch w {
		case "ro", "rw":
			kinds["rw"]++
		case "z", "Z":
			kinds["label"]++
		case "nocopy":
			kinds["copy"]++
		case "consistent", "cached", "delegated":
			kinds["consistency"]++
		default:
			if !slices.Contains(propagations, mount.Propagation(w)) {
				return false
			}
			kinds["propagation"]++
		}
	}
	return !slices.ContainsFunc(slices.Collect(maps.Values(kinds)), func(n int) bool { return n > 1 })
}

// kinds are the types of mounts, each with its field of options.
var kinds = []struct {
	of      mount.Type
	options string
	set     func(*mount.Mount) bool
}{
	{mount.TypeBind, "BindOptions", func(m *mount.Mount) bool { return m.BindOptions != nil }},
	{mount.TypeVolume, "VolumeOptions", func(m *mount.Mount) bool { return m.VolumeOptions != nil }},
	{mount.TypeImage, "ImageOptions", func(m *mount.Mount) bool { return m.ImageOptions != nil }},
	{mount.TypeTmpfs, "TmpfsOptions", func(m *mount.Mount) bool { return m.TmpfsOptions != nil }},
	{mount.TypeCluster, "ClusterOptions", func(m *mount.Mount) bool { return m.ClusterOptions != nil }},
}

// Error is what is wrong with a mount, in docker's words.
type Error struct {
	Field string // of mount.Mount
	Type  mount.Type
	Words string
}

func (e *Error) Error() string {
	return fmt.Sprintf("invalid mount config for type %q: %s", e.Type, e.Words)
}

// Check validates a mount of --mount, but for whether its source exists. Its error is an
// *Error.
func Check(m *mount.Mount) error {
	wrong := func(field, words string) error { return &Error{field, m.Type, words} }
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
	if why := CheckTarget(m.Target); why != "" {
		return wrong("Target", why)
	}
	switch m.Type {
	case mount.TypeTmpfs:
		if m.Source != "" {
			return wrong("Source", "field Source must not be specified")
		}
	case mount.TypeBind:
		return checkBind(m, wrong)
	case mount.TypeVolume:
		o := m.VolumeOptions
		switch {
		case o == nil || o.Subpath == "":
		case m.Source == "":
			return wrong("VolumeOptions.Subpath", "must not set Subpath when using anonymous volumes")
		case !filepath.IsLocal(o.Subpath):
			return wrong("VolumeOptions.Subpath", "subpath must be a relative path within the volume")
		}
	}
	if !known {
		return wrong("Type", "mount type unknown")
	}
	return nil
}

func checkBind(m *mount.Mount, wrong func(field, words string) error) error {
	switch {
	case m.Source == "":
		return wrong("Source", "field Source must not be empty")
	case !path.IsAbs(m.Source):
		return wrong("Source", "invalid mount path: '"+m.Source+"' mount path must be absolute")
	}
	if o := m.BindOptions; o != nil && o.Propagation != "" && !slices.Contains(propagations, o.Propagation) {
		return wrong("BindOptions.Propagation", "invalid propagation mode: "+string(o.Propagation))
	}
	return nil
}

// CheckTarget returns what is wrong with a path in a container, "" if nothing is.
func CheckTarget(to string) string {
	switch {
	case path.Clean(to) == "/":
		return "invalid specification: destination can't be '/'"
	case !path.IsAbs(to):
		return "invalid mount path: '" + to + "' mount path must be absolute"
	}
	return ""
}

// ParseFrom parses --volumes-from's container[:mode].
func ParseFrom(raw string) (ref string, readOnly bool, err error) {
	if raw == "" {
		return "", false, errors.New("volumes-from specification cannot be an empty string")
	}
	ref, mode, _ := strings.Cut(raw, ":")
	words := strings.Split(mode, ",")
	own := slices.ContainsFunc(words, func(w string) bool {
		return w == "nocopy" || slices.Contains(propagations, mount.Propagation(w))
	})
	if !validMode(mode) || own {
		return "", false, fmt.Errorf("invalid mode: %s", mode)
	}
	return ref, slices.Contains(words, "ro"), nil
}

// Uncovered returns those volumes, of a request or its image, at whose paths the request
// mounts nothing itself, sorted and clean. Clients list the targets of binds as volumes too.
func Uncovered(h *container.HostConfig, volumes map[string]struct{}) []string {
	covered := map[string]bool{}
	if h != nil {
		for _, b := range h.Binds {
			if p, err := ParseBind(b); err == nil {
				covered[p.Target] = true
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
	for v := range volumes {
		if to := path.Clean(v); !covered[to] {
			covered[to] = true
			out = append(out, to)
		}
	}
	slices.Sort(out)
	return out
}
