package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/drover/drover/agent/engine/spec"
	"github.com/drover/drover/agent/images"
	"github.com/drover/drover/agent/task"
)

// made is what a shim needs for one attempt of a container.
type made struct {
	root    []mount.Mount // its files
	spec    []byte        // OCI runtime spec, as JSON
	command string        // the first word of what it runs
}

// plan computes a container's spec from the current facts.
func (e *Engine) plan(ctx context.Context, s *prepared) (m made, err error) {
	if m.root, err = e.root(ctx, s); err != nil {
		return m, err
	}
	f, err := e.facts(ctx, s, func(name string, groups []string) (u specs.User, err error) {
		err = mount.WithReadonlyTempMount(ctx, m.root, func(root string) error {
			u, err = lookUser(root, name, groups)
			return err
		})
		return u, err
	})
	if err != nil {
		return m, err
	}
	create, err := e.join(ctx, s.Spec, &f)
	if err != nil {
		return m, err
	}
	planned, err := spec.Plan(create, s.ImageConfig, f)
	if err != nil {
		return m, err
	}
	m.command = planned.Process.Args[0]
	if m.spec, err = json.Marshal(planned); err != nil {
		return m, fmt.Errorf("encoding the spec of %s: %w", short(s.ID), err)
	}
	return m, nil
}

// root returns the mounts of a container's files. They stay the same from its preparation
// on, and are asked for only once: a container can be started while containerd is away.
func (e *Engine) root(ctx context.Context, s *prepared) ([]mount.Mount, error) {
	if s.Root != nil && present(s.Root) {
		return s.Root, nil
	}
	root, err := e.c.SnapshotService(images.Snapshotter).Mounts(ctx, s.ID)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("the files of %s: %w", short(s.ID), task.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("inspecting the files of %s: %w", short(s.ID), err)
	}
	s.Root = root
	return root, nil
}

// present reports whether the folders of an overlay, or what a bind mount is of, exist.
func present(root []mount.Mount) bool {
	for _, m := range root {
		dirs := []string{m.Source}
		if m.Type == "overlay" {
			dirs = nil
			for _, o := range m.Options {
				name, value, _ := strings.Cut(o, "=")
				switch name {
				case "upperdir", "workdir", "lowerdir":
					dirs = append(dirs, strings.Split(value, ":")...)
				}
			}
		}
		for _, d := range dirs {
			if _, err := os.Stat(d); err != nil {
				return false
			}
		}
	}
	return true
}

// replan plans an attempt that has no process yet.
func (e *Engine) replan(ctx context.Context, s prepared) (made, error) {
	n, err := e.node()
	if err != nil {
		return made{}, err
	}
	if err := loadProfile(n); err != nil {
		return made{}, fmt.Errorf("starting %s: %w", short(s.ID), err)
	}
	if err := e.useVolumes(ctx, &s); err != nil {
		return made{}, err
	}
	if s.ImageConfig == nil { // prepared by an agent that did not keep it
		img, err := e.o.Images.Image(ctx, s.Digest)
		if errors.Is(err, task.ErrNoImage) {
			return e.firstPlan(ctx, s)
		}
		if err != nil {
			return made{}, fmt.Errorf("starting %s: %w", short(s.ID), err)
		}
		s.ImageConfig = &img.Config.Config
	}
	return e.plan(ctx, &s)
}

// firstPlan is the spec that a container was prepared with, by an agent that meant it to
// last and recorded it in containerd.
func (e *Engine) firstPlan(ctx context.Context, s prepared) (m made, err error) {
	c, err := e.c.ContainerService().Get(ctx, s.ID)
	if errdefs.IsNotFound(err) {
		return m, fmt.Errorf("%s: %w", short(s.ID), task.ErrNotFound)
	}
	if err != nil {
		return m, fmt.Errorf("starting %s: %w", short(s.ID), err)
	}
	m.spec = c.Spec.GetValue()
	m.root, err = e.root(ctx, &s)
	return m, err
}
