package task

import (
	"context"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Puller fetches images for the node.
type Puller interface {
	// Pull fetches digest's content for this platform, unpacks it, and returns the image
	// as raft keeps it. ref is where to fetch it from, auth the caller's credentials (may
	// be nil). progress is called during the pull, one call at a time, and never after
	// Pull has returned. Pulling an image that is here is no error.
	Pull(ctx context.Context, ref, digest string, auth *Credentials, progress func(Progress)) (*dv1.Image, error)
}

// Images is a node's image store. Safe for concurrent use. Implementations are on
// containerd (agent/images) and in memory (agent/task/faketask); both pass
// enginetest.Images.
type Images interface {
	Puller
	// List returns every complete image on the node.
	List(ctx context.Context) ([]*dv1.ImageStatus, error)
	// Remove forgets an image. What containers are based on stays until they are removed.
	// A missing image is no error.
	Remove(ctx context.Context, digest string) error
}

// Credentials are those for a registry, for one pull.
type Credentials struct{ Username, Password, IdentityToken, ServerAddress string }

// Progress is one of docker's pull lines.
type Progress struct {
	ID             string // short layer id
	Status         string // Pulling fs layer, Downloading, Download complete, Extracting, Pull complete, Already exists
	Current, Total int64
}
