package engineapi

import (
	"encoding/json"
	"sync"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/controller/create"
	"github.com/drover/drover/controller/images"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// shape is what a spec and its image say about a container. It is decoded once and
// shared by all users: it must not be modified.
type shape struct {
	req    container.CreateRequest // Config and HostConfig are never nil
	config container.Config        // docker's merge of request and image
}

// maxShapes bounds the bytes of one generation of shapes.
const maxShapes = 32 << 20

// shapes caches recently used shapes in two generations: when the young one is full
// it becomes the old one, and what was in that is dropped. It is safe for concurrent
// use.
type shapes struct {
	mu         sync.Mutex // guards the fields below
	young, old map[shapeKey]*shape
	bytes      int // of young
}

// Specs and images are immutable, but an image may be added after its spec, or
// removed.
type shapeKey struct {
	spec   string
	pulled bool
}

// of returns the shape of a spec's containers, also for a nil spec.
func (c *shapes) of(snap *state.Snapshot, spec *dv1.Spec) *shape {
	image := snap.Image(spec.GetDigest())
	k := shapeKey{string(spec.GetId()), image != nil}
	c.mu.Lock()
	s, young := c.young[k]
	if !young {
		s = c.old[k]
	}
	c.mu.Unlock()
	if young {
		return s
	}
	if s == nil {
		s = newShape(spec, image)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.young == nil || c.bytes > maxShapes {
		c.old, c.young, c.bytes = c.young, map[shapeKey]*shape{}, 0
	}
	if _, have := c.young[k]; !have {
		c.young[k] = s
		c.bytes += 1<<10 + 4*(len(spec.GetBody())+len(image.GetConfig())) // approximate size of decoded JSON
	}
	return s
}

// shapeOf returns the shape of a task.
func (s *server) shapeOf(snap *state.Snapshot, t *dv1.Task) *shape {
	return s.shapes.of(snap, snap.Spec(t.SpecId))
}

func newShape(spec *dv1.Spec, image *dv1.Image) *shape {
	s := &shape{}
	_ = json.Unmarshal(spec.GetBody(), &s.req) // it was decoded before it was committed
	if s.req.Config == nil {
		s.req.Config = &container.Config{}
	}
	if s.req.HostConfig == nil {
		s.req.HostConfig = &container.HostConfig{}
	}
	s.config = *s.req.Config
	img := images.Config(image).Config
	create.Merge(&s.config, &img)
	return s
}
