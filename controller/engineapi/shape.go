package engineapi

import (
	"encoding/json"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/controller/create"
	"github.com/drover/drover/controller/images"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/recent"
)

// shape is what a spec and its image say about a container. It is decoded once and
// shared by all users: it must not be modified.
type shape struct {
	req    container.CreateRequest // Config and HostConfig are never nil
	config container.Config        // docker's merge of request and image
}

// maxShapes bounds the bytes of one generation of shapes.
const maxShapes = 32 << 20

// shapes are those that were used last. Safe for concurrent use.
type shapes struct {
	last recent.Map[shapeKey, *shape]
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
	if s, ok := c.last.Get(k); ok {
		return s
	}
	s := newShape(spec, image)
	c.last.Put(k, s, recent.Size(k)+recent.Size(s))
	return s
}

// shapeOf is the shape of a task.
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
