package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/sys/mountinfo"

	"github.com/drover/drover/agent/engine/spec"
	"github.com/drover/drover/agent/task"
)

// readyBinds creates missing directories of -v on the host, as docker does, and refuses
// binds that the host can't provide.
func readyBinds(h *container.HostConfig) error {
	all, err := spec.Binds(h)
	if err != nil {
		return err
	}
	for _, m := range all {
		o := m.BindOptions
		if o == nil {
			o = &mount.BindOptions{}
		}
		if err := source(m.Source, o.CreateMountpoint); err != nil {
			return err
		}
		if err := propagates(m.Source, o.Propagation); err != nil {
			return err
		}
	}
	return nil
}

// source ensures that a bind's source exists, creating it if that was requested.
func source(path string, make bool) error {
	_, err := os.Stat(path)
	if err == nil {
		return nil
	}
	if !make {
		return task.Refuse("invalid mount config for type \"bind\": bind source path does not exist: %s", path)
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return task.Refuse("error while creating mount source path '%s': %v", path, err)
	}
	return nil
}

// propagates refuses what runc would ignore: mounts can be shared with a container only
// if the mount that they are in is shared itself.
func propagates(path string, p mount.Propagation) error {
	switch p {
	case mount.PropagationShared, mount.PropagationRShared, mount.PropagationSlave, mount.PropagationRSlave:
	default:
		return nil
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("finding the mount of %s: %w", path, err)
	}
	all, err := mountinfo.GetMounts(mountinfo.ParentsFilter(real))
	if err != nil {
		return fmt.Errorf("finding the mount of %s: %w", path, err)
	}
	var of *mountinfo.Info
	for _, m := range all { // the longest, and of several at one place the last
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
		return task.Refuse("path %s is mounted on %s but it is not a shared mount", path, of.Mountpoint)
	case !slave:
		return task.Refuse("path %s is mounted on %s but it is not a shared or slave mount", path, of.Mountpoint)
	}
	return nil
}
