// Package images is the operations on the fleet's images, for any API: finding,
// pulling, tagging and removing. Which tags and images exist is decided in raft, and
// nodes hold the content; requests and responses are the API's.
package images

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/recent"
	"github.com/drover/drover/pkg/registry"
)

// Fleet reaches nodes, and knows which images they hold.
type Fleet interface {
	Observe(ctx context.Context, q fleet.Query) *fleet.Observations
	Agent(nodeID string) (*http.Client, error)
}

// Registry resolves references. See package registry.
type Registry interface {
	Resolve(ctx context.Context, ref string, c *registry.Credentials) (ocispec.Descriptor, error)
	Public(ctx context.Context, ref string, c *registry.Credentials) bool
}

// Proposer has commands decided in a caller's name. Errors of its Propose are
// returned unchanged.
type Proposer interface {
	Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error)
}

// Options configures New.
type Options struct {
	Fleet    Fleet
	Registry Registry
	Logger   *slog.Logger
	// Grant lets a node read an image's content from others; nil grants nothing.
	Grant func(node, digest string) ([]byte, error)
}

// Images is safe for concurrent use.
type Images struct{ o Options }

// New returns the operations on a fleet's images.
func New(o Options) *Images { return &Images{o} }

// Error refuses a request, in docker's words where it has some.
type Error struct {
	Kind    dv1.Error_Kind
	Message string
}

func (e *Error) Error() string { return e.Message }

func refuse(kind dv1.Error_Kind, format string, args ...any) error {
	return &Error{kind, fmt.Sprintf(format, args...)}
}

// decided returns the leader's refusal as an error, or nil.
func decided(res *dv1.CommandResult) error {
	if res.Error != nil {
		return &Error{res.Error.Kind, res.Error.Message}
	}
	return nil
}

// Find returns the digest that a name refers to. See command.FindImage.
func Find(snap *state.Snapshot, name string) (digest string, err error) {
	digest, e := command.FindImage(snap, name)
	if e != nil {
		return "", &Error{e.Kind, e.Message}
	}
	return digest, nil
}

// configs are the configurations that were decoded last: each create asks for one.
var configs = recent.Map[string, dockerspec.DockerOCIImage]{Max: 16 << 20}

// Config is an image's configuration, which must not be modified: it is shared. An
// image without a readable one has an empty one.
func Config(i *dv1.Image) dockerspec.DockerOCIImage {
	encoded := string(i.GetConfig())
	if c, ok := configs.Get(encoded); ok {
		return c
	}
	var c dockerspec.DockerOCIImage
	_ = json.Unmarshal(i.GetConfig(), &c)
	configs.Put(encoded, c, len(encoded)+recent.Size(c))
	return c
}

// Tag adds a name to the image that source refers to.
func (i *Images) Tag(ctx context.Context, by Proposer, snap *state.Snapshot, source, target string) error {
	digest, err := Find(snap, source)
	if err != nil {
		return err
	}
	named, err := reference.ParseNormalizedNamed(target)
	if err != nil {
		return refuse(dv1.Error_INVALID, "invalid reference format: %s", target)
	}
	res, err := by.Propose(ctx, &dv1.Command{Of: &dv1.Command_PutTag{PutTag: &dv1.PutTag{Ref: reference.TagNameOnly(named).String(), Source: digest}}})
	if err != nil {
		return err
	}
	return decided(res)
}
