package spec

import (
	"slices"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Files returns what a container sees of its host's files, a mount after those that it is
// below. own reports whether a mount is docker's own file rather than the user's.
func Files(h *container.HostConfig, f Facts) (all []specs.Mount, own func(specs.Mount) bool, err error) {
	all, err = wanted(h, f)
	all = slices.DeleteFunc(all, func(m specs.Mount) bool {
		return m.Type != "bind" || m.Destination == "/dev/shm" && m.Source == "/dev/shm"
	})
	files := ownFiles(f.Dir)
	own = func(m specs.Mount) bool {
		return slices.ContainsFunc(files, func(o specs.Mount) bool { return o.Source == m.Source && o.Destination == m.Destination })
	}
	return all, own, err
}
