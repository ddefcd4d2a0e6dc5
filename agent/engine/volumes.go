package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/continuity/fs"
	dockermount "github.com/moby/moby/api/types/mount"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/volumes"
)

// volumesOf returns the volumes that a task mounts, each once.
func volumesOf(s task.Spec) (out []task.Volume) {
	for _, m := range s.Mounts {
		if m.Volume != nil && !slices.ContainsFunc(out, func(v task.Volume) bool { return v.ID == m.Volume.ID }) {
			out = append(out, *m.Volume)
		}
	}
	return out
}

// holdVolumes records the volumes of all tasks that an earlier agent prepared.
func (e *Engine) holdVolumes() error {
	ids, err := os.ReadDir(e.o.tasks())
	if err != nil {
		return fmt.Errorf("reading tasks: %w", err)
	}
	for _, d := range ids {
		s, err := e.readSpec(d.Name())
		if err == nil {
			err = e.o.Volumes.Hold(s.ID, volumesOf(s.Spec))
		}
		if err != nil { // List tells of it
			e.o.Log.Warn("the volumes of a task are unknown", "task", short(d.Name()), "err", err)
		}
	}
	return nil
}

// seedVolumes copies what the image has at the places of empty volumes into them.
func (e *Engine) seedVolumes(ctx context.Context, s task.Spec, root []mount.Mount) error {
	for _, m := range s.Mounts {
		if m.Volume == nil || m.NoCopy {
			continue
		}
		err := e.o.Volumes.Seed(ctx, s.ID, *m.Volume, m.Subpath, func(copy func(dir string) error) error {
			return mount.WithReadonlyTempMount(ctx, root, func(files string) error {
				dir, err := fs.RootPath(files, m.Target)
				if err != nil {
					return err
				}
				if fi, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) || err == nil && !fi.IsDir() {
					return nil
				} else if err != nil {
					return err
				}
				return copy(dir)
			})
		})
		if err := refused(ctx, err); err != nil {
			return err
		}
	}
	return nil
}

// refused returns an error of a volume as docker's refusal, unless the agent is ending.
func refused(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	return task.Refuse("%v", err)
}

// useVolumes readies the volumes of a task that is about to start, and notes where they are.
func (e *Engine) useVolumes(ctx context.Context, s *prepared) error {
	return e.useVolumesAs(ctx, s.ID, s, func(m task.Mount) {
		e.o.VolumeEvent(s.ID, m.Volume.Name, "mount", map[string]string{"driver": volumes.Local, "container": s.ID, "destination": m.Target,
			"read/write": strconv.FormatBool(!m.ReadOnly), "propagation": ""})
	})
}

// useVolumesAs does the same for a user other than the task itself.
func (e *Engine) useVolumesAs(ctx context.Context, user string, s *prepared, used func(task.Mount)) error {
	s.sources = nil
	for i, m := range s.Mounts {
		v := m.Volume
		if v == nil {
			s.sources = append(s.sources, m.Source)
			continue
		}
		err := e.o.Volumes.Use(ctx, user, *v)
		source := e.o.Volumes.Path(v.ID)
		if err == nil && m.Subpath != "" {
			source, err = e.o.Volumes.Pin(user, i, *v, m.Subpath)
		}
		if err != nil {
			return refused(ctx, fmt.Errorf("error while mounting volume '%s': %w", v.Name, err))
		}
		s.sources = append(s.sources, source)
		used(m)
	}
	return nil
}

// unuseVolumes ends what useVolumes began.
func (e *Engine) unuseVolumes(ctx context.Context, id string) error {
	left, err := e.o.Volumes.Unuse(ctx, id)
	for _, name := range left {
		e.o.VolumeEvent(id, name, "unmount", map[string]string{"driver": volumes.Local, "container": id})
	}
	return err
}

// mountsOf returns a task's mounts as binds, of where its volumes are or will be. It refuses
// paths that the host can't provide.
func (e *Engine) mountsOf(s *prepared) (out []dockermount.Mount, err error) {
	for i, m := range s.Mounts {
		b := dockermount.Mount{Type: dockermount.TypeBind, Target: m.Target, ReadOnly: m.ReadOnly, BindOptions: &dockermount.BindOptions{Propagation: dockermount.Propagation(m.Propagation)}}
		switch {
		case i < len(s.sources):
			b.Source = s.sources[i]
		case m.Volume != nil:
			b.Source = e.o.Volumes.Path(m.Volume.ID)
		default:
			b.Source = m.Source
		}
		if m.Volume == nil {
			if err := source(b.Source, m.CreateSource); err != nil {
				return nil, err
			}
			if err := propagates(b.Source, b.BindOptions.Propagation); err != nil {
				return nil, err
			}
		}
		out = append(out, b)
	}
	return out, nil
}
