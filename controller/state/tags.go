package state

import (
	"iter"
	"slices"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

var tags = &kind[*dv1.Tag]{
	name:    "tag",
	key:     func(m *dv1.Tag) string { return m.Ref },
	indexes: []*index[*dv1.Tag]{tagsByImage},
}

var tagsByImage = &index[*dv1.Tag]{key: func(m *dv1.Tag) string { return m.Digest + sep }}

// Tag returns a tag, or nil.
func (s *Snapshot) Tag(ref string) *dv1.Tag { return tags.get(s, ref) }

// Tags yields all tags, sorted by reference.
func (s *Snapshot) Tags() iter.Seq[*dv1.Tag] { return tags.each(s, "") }

// TagsOf returns the tags of a digest, sorted.
func (s *Snapshot) TagsOf(digest string) []string {
	return slices.Collect(tags.keys(s, tagsByImage, digest+sep))
}
