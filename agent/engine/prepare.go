package engine

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/identity"

	"github.com/drover/drover/agent/images"
	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/failpoint"
)

// Prepare implements task.Runtime.
func (e *Engine) Prepare(ctx context.Context, s task.Spec) error {
	ctx = e.ctx(ctx)
	if err := e.o.Volumes.Hold(s.ID, volumesOf(s)); err != nil {
		return task.Refuse("%v", err)
	}
	img, err := e.o.Images.Image(ctx, s.Digest)
	if err != nil {
		return fmt.Errorf("preparing %s: %w", short(s.ID), err)
	}
	if err := os.MkdirAll(e.o.logDir(s.ID), 0o700); err != nil {
		return fmt.Errorf("preparing %s: %w", short(s.ID), err)
	}
	if err := e.writeFiles(s, nil, nil); err != nil {
		return err
	}
	failpoint.Here("engine.snapshot.before")
	p := prepared{Spec: s, ImageConfig: &img.Config.Config}
	if p.Root, err = e.snapshot(ctx, s, img); err != nil {
		return fmt.Errorf("preparing %s: %w", short(s.ID), err)
	}
	// What can't be done is refused now, although each attempt is planned anew.
	if _, err := e.plan(ctx, &p); err != nil {
		return fmt.Errorf("preparing %s: %w", short(s.ID), err)
	}
	failpoint.Here("engine.snapshot.after")
	if err := e.seedVolumes(ctx, s, p.Root); err != nil {
		return err
	}
	return e.writeSpec(p)
}

// snapshot creates a container's files. One that is there already is that of a
// preparation that was interrupted.
func (e *Engine) snapshot(ctx context.Context, s task.Spec, img *images.Image) ([]mount.Mount, error) {
	all := e.c.SnapshotService(images.Snapshotter)
	labels := map[string]string{labelRoot: time.Now().UTC().Format(time.RFC3339), labelCluster: e.o.ClusterID, labelTask: s.ID, labelName: s.Name, labelSpec: s.SpecHash}
	root, err := all.Prepare(ctx, s.ID, identity.ChainID(img.Config.RootFS.DiffIDs).String(), snapshots.WithLabels(labels))
	switch {
	case errdefs.IsNotFound(err): // the image was removed meanwhile
		return nil, fmt.Errorf("%w: %w", task.ErrNoImage, err)
	case !errdefs.IsAlreadyExists(err):
		return root, err
	}
	// Earlier agents protected it by a lease or a container's record in containerd.
	if _, err := all.Update(ctx, snapshots.Info{Name: s.ID, Labels: labels}, "labels"); err != nil {
		return nil, err
	}
	return all.Mounts(ctx, s.ID)
}
