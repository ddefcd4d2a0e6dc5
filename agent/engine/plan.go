package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/drover/drover/agent/engine/spec"
	"github.com/drover/drover/agent/images"
	"github.com/drover/drover/agent/task"
)

// made is what containerd needs for one attempt of a container.
type made struct {
	root    []mount.Mount // its files
	spec    typeurl.Any
	command string // the first word of what it runs
}

// plan computes a container's spec from the current facts.
func (e *Engine) plan(ctx context.Context, s *prepared, snapshot string) (m made, err error) {
	if m.root, err = e.c.SnapshotService(images.Snapshotter).Mounts(ctx, snapshot); err != nil {
		return m, fmt.Errorf("inspecting the files of %s: %w", short(s.ID), err)
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
	planned, err := spec.Plan(s.Create, s.ImageConfig, f)
	if err != nil {
		return m, err
	}
	m.command = planned.Process.Args[0]
	m.spec, err = typeurl.MarshalAny(planned)
	return m, err
}

// withPlan makes a new container's first spec, so that what can't be done is refused
// when the container is prepared.
func (e *Engine) withPlan(s *prepared) client.NewContainerOpts {
	return func(ctx context.Context, _ *client.Client, c *containers.Container) error {
		m, err := e.plan(ctx, s, c.SnapshotKey)
		c.Spec = m.spec
		return err
	}
}

// replan plans an attempt that has no process yet, and updates containerd's spec where
// it differs from the last one. So containerd always has the spec of the running
// attempt, and what an interrupted start leaves is replaced by the next one.
func (e *Engine) replan(ctx context.Context, s prepared, c containers.Container) (made, error) {
	n, err := e.node()
	if err != nil {
		return made{}, err
	}
	if err := loadProfile(n); err != nil {
		return made{}, fmt.Errorf("starting %s: %w", short(s.ID), err)
	}
	if s.ImageConfig == nil { // prepared by an agent that did not keep it
		img, err := e.o.Images.Image(ctx, s.Digest)
		if errors.Is(err, task.ErrNoImage) { // then the stored spec is used, which was meant to last
			root, err := e.c.SnapshotService(images.Snapshotter).Mounts(ctx, c.SnapshotKey)
			return made{root: root}, err
		}
		if err != nil {
			return made{}, fmt.Errorf("starting %s: %w", short(s.ID), err)
		}
		s.ImageConfig = &img.Config.Config
	}
	m, err := e.plan(ctx, &s, c.SnapshotKey)
	if err != nil || bytes.Equal(m.spec.GetValue(), c.Spec.GetValue()) {
		return m, err
	}
	c.Spec = m.spec
	if _, err := e.c.ContainerService().Update(ctx, c, "spec"); err != nil {
		return m, fmt.Errorf("starting %s: changing its spec: %w", short(s.ID), err)
	}
	return m, nil
}
