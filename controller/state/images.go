package state

import (
	"iter"
	"slices"
	"strings"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

var images = &kind[*dv1.Image]{
	name: "image",
	key:  func(m *dv1.Image) string { return m.Digest },
}

// Image returns an image, or nil.
func (s *Snapshot) Image(digest string) *dv1.Image { return images.get(s, digest) }

// Images yields all images, sorted by digest.
func (s *Snapshot) Images() iter.Seq[*dv1.Image] { return images.each(s, "") }

// ImagesByPrefix returns the images whose digest starts with prefix, with or
// without "sha256:".
func (s *Snapshot) ImagesByPrefix(prefix string) []*dv1.Image {
	return slices.Collect(images.each(s, "sha256:"+strings.TrimPrefix(strings.ToLower(prefix), "sha256:")))
}
