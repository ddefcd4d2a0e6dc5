package task

import (
	"context"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Puller brings images to the node.
type Puller interface {
	// Pull brings digest's content for this platform and unpacks it, and returns
	// the image as raft keeps it. ref is where to get it from, auth the caller's
	// credentials (may be nil). progress is called as it goes, one call at a time,
	// and not after Pull returned. Pulling what is here is no error.
	Pull(ctx context.Context, ref, digest string, auth *Credentials, progress func(Progress)) (*dv1.Image, error)
}

// Images is a node's image store. Safe for concurrent use. Implementations: on
// containerd (agent/images) and in memory (agent/task/faketask); both pass
// enginetest.Images.
type Images interface {
	Puller
	// List returns every image that is here whole.
	List(ctx context.Context) ([]*dv1.ImageStatus, error)
	// Remove forgets an image. What containers stand on stays until these are
	// removed. Removing what isn't there is no error.
	Remove(ctx context.Context, digest string) error
}

// Credentials of a registry, for one pull.
type Credentials struct{ Username, Password, IdentityToken, ServerAddress string }

// Progress is one of docker's pull lines.
type Progress struct {
	ID             string // short layer id
	Status         string // Pulling fs layer, Downloading, Download complete, Extracting, Pull complete, Already exists
	Current, Total int64
}
