package fields

import (
	"errors"
	"maps"
	"slices"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/drover/drover/pkg/mounts"
)

func checkMounts(h *container.HostConfig) error {
	for _, b := range h.Binds {
		if _, err := mounts.ParseBind(b); err != nil {
			return invalid("HostConfig.Binds", "%v", err)
		}
	}
	for _, to := range slices.Sorted(maps.Keys(h.Tmpfs)) {
		if wrong := mounts.CheckTarget(to); wrong != "" {
			return invalid("HostConfig.Tmpfs", "%s", wrong)
		}
	}
	for i := range h.Mounts {
		if err := checkMount(&h.Mounts[i]); err != nil {
			return err
		}
	}
	for _, from := range h.VolumesFrom {
		if _, _, err := mounts.ParseFrom(from); err != nil {
			return invalid("HostConfig.VolumesFrom", "%v", err)
		}
	}
	if _, err := mounts.Of(h); err != nil {
		return invalid("HostConfig.Mounts[].Target", "%v", err)
	}
	return nil
}

func checkMount(m *mount.Mount) error {
	var wrong *mounts.Error
	if errors.As(mounts.Check(m), &wrong) {
		return invalid("HostConfig.Mounts[]."+wrong.Field, "%v", wrong)
	}
	switch m.Type {
	case mount.TypeImage:
		return unavailable("HostConfig.Mounts[].Type", "mounts of images are")
	case mount.TypeCluster:
		return unavailable("HostConfig.Mounts[].Type", "volumes of Swarm are")
	}
	return nil
}
