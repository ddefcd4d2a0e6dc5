package faketask

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Images is an image store in memory, and the registry that it pulls from.
type Images struct {
	steps *steps

	mu     sync.Mutex            // guards the fields below
	here   map[string]*dv1.Image // by digest
	remote map[string]*dv1.Image
}

var _ task.Images = (*Images)(nil)

func newImages(s *steps) *Images {
	return &Images{steps: s, here: map[string]*dv1.Image{}, remote: map[string]*dv1.Image{}}
}

// Add puts an image into the store, and into the registry of Pull.
func (i *Images) Add(digest string) {
	i.AddRemote(digest)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.here[digest] = i.remote[digest]
}

// AddRemote puts an image into the registry of Pull.
func (i *Images) AddRemote(digest string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.remote[digest] = &dv1.Image{Digest: digest, Manifest: digest, Config: []byte("{}"), Size: 1}
}

func (i *Images) has(digest string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.here[digest] != nil
}

// Pull implements task.Images.
func (i *Images) Pull(ctx context.Context, ref, digest string, _ *task.Credentials, progress func(task.Progress)) (*dv1.Image, error) {
	if err := i.steps.take(ctx, "pull", ""); err != nil {
		return nil, err
	}
	i.mu.Lock()
	img := i.here[digest]
	if img == nil {
		img = i.remote[digest]
	}
	if img != nil {
		i.here[digest] = img
	}
	i.mu.Unlock()
	if img == nil {
		return nil, fmt.Errorf("%s@%s: %w", ref, digest, task.ErrNotFound)
	}
	progress(task.Progress{ID: "layer", Status: "Pull complete"})
	return img, nil
}

// List implements task.Images.
func (i *Images) List(context.Context) ([]*dv1.ImageStatus, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var out []*dv1.ImageStatus
	for _, d := range slices.Sorted(maps.Keys(i.here)) {
		out = append(out, &dv1.ImageStatus{Digest: d, Size: i.here[d].Size})
	}
	return out, nil
}

// Remove implements task.Images.
func (i *Images) Remove(_ context.Context, digest string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.here, digest)
	return nil
}

// Manifest returns a stand-in for the manifest of an image in the store.
func (i *Images) Manifest(_ context.Context, digest string) ([]byte, error) {
	if !i.has(digest) {
		return nil, fmt.Errorf("%s: %w", digest, task.ErrNoImage)
	}
	return []byte(`{"digest":"` + digest + `"}`), nil
}
