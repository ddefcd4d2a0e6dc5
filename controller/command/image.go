package command

import (
	"encoding/hex"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/recent"
)

func normalize(s string) (reference.Named, *dv1.Error) {
	r, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return nil, refuse(dv1.Error_INVALID, "invalid reference format: %q", s)
	}
	return reference.TagNameOnly(r), nil
}

// reading is what a name says as a reference. It depends on the name only.
type reading struct {
	tag    string // normalized; "": the name is no reference
	digest string // "": it names none
	shown  string
}

// readings are those of the names that were looked up last: a create looks its image up
// twice, and reading a reference costs more than all else of that.
var readings = recent.Map[string, reading]{Max: 1 << 20}

func read(name string) reading {
	if r, ok := readings.Get(name); ok {
		return r
	}
	r := reading{shown: name}
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		named = reference.TagNameOnly(named)
		r.tag, r.shown = named.String(), reference.FamiliarString(named)
		if d, ok := named.(reference.Digested); ok {
			r.digest = d.Digest().String()
		}
	}
	readings.Put(name, r, 128+4*len(name))
	return r
}

// FindImage returns the digest that a name refers to, or docker's error: by
// reference, image id, or unique prefix of an image id.
func FindImage(snap *state.Snapshot, name string) (digest string, e *dv1.Error) {
	r := read(name)
	if r.tag != "" {
		if t := snap.Tag(r.tag); t != nil {
			return t.Digest, nil
		}
	}
	if r.digest != "" && snap.Image(r.digest) != nil {
		return r.digest, nil
	}
	if name != "" {
		switch found := snap.ImagesByPrefix(name); {
		case len(found) == 1:
			return found[0].Digest, nil
		case len(found) > 1:
			return "", refuse(dv1.Error_INVALID, "multiple IDs found with provided prefix: %s", name)
		}
	}
	return "", refuse(dv1.Error_NO_IMAGE, "No such image: %s", r.shown)
}

func (d *decision) commitImage(c *dv1.CommitImage) *dv1.Error {
	if c.Image.GetDigest() == "" {
		return refuse(dv1.Error_INVALID, "an image needs a digest")
	}
	img := proto.CloneOf(c.Image)
	if old := d.Image(img.Digest); old != nil {
		// What a digest refers to is immutable: only where it is found, and that it is
		// public, may be added.
		repos, public := append(img.RepoDigests, old.RepoDigests...), img.Public
		img = proto.CloneOf(old)
		img.Public = old.Public || public
		img.RepoDigests = slices.Compact(slices.Sorted(slices.Values(repos)))
	}
	if !proto.Equal(d.Image(img.Digest), img) {
		d.add(&dv1.Effect{Of: &dv1.Effect_Image{Image: img}})
	}
	for _, ref := range c.Refs {
		if e := d.tag(ref, img.Digest); e != nil {
			return e
		}
	}
	return nil
}

func (d *decision) tag(ref, digest string) *dv1.Error {
	n, e := normalize(ref)
	if e != nil {
		return e
	}
	if old := d.Tag(n.String()); old == nil || old.Digest != digest {
		d.add(&dv1.Effect{Of: &dv1.Effect_Tag{Tag: &dv1.Tag{Ref: n.String(), Digest: digest, Tagged: d.now}}})
	}
	return nil
}

func (d *decision) putTag(c *dv1.PutTag) *dv1.Error {
	digest, e := FindImage(d.Snapshot, c.Source)
	if e != nil {
		return e
	}
	if strings.Contains(c.Ref, "@") {
		return refuse(dv1.Error_INVALID, "refusing to create a tag with a digest reference")
	}
	return d.tag(c.Ref, digest)
}

func (d *decision) untag(c *dv1.Untag) *dv1.Error {
	want := c.Ref
	if want == "" {
		want = c.Digest
	}
	digest, e := FindImage(d.Snapshot, want)
	if e != nil {
		return e
	}
	all := d.TagsOf(digest)
	drop, shown, byRef := all, short(digest), false
	if n, err := reference.ParseNormalizedNamed(want); err == nil {
		n = reference.TagNameOnly(n)
		if slices.Contains(all, n.String()) {
			drop, shown, byRef = []string{n.String()}, reference.FamiliarString(n), true
		}
	}
	last := len(drop) == len(all)
	if e := d.inUse(c, digest, shown, byRef, last); e != nil {
		return e
	}
	for _, ref := range drop {
		d.add(&dv1.Effect{Of: &dv1.Effect_DeleteTag{DeleteTag: ref}})
		if n, err := reference.ParseNormalizedNamed(ref); err == nil {
			ref = reference.FamiliarString(n)
		}
		d.res.Untagged = append(d.res.Untagged, ref)
	}
	for range d.TasksOfImage(digest) {
		return nil // dangling, since a task still uses it
	}
	if last {
		d.add(&dv1.Effect{Of: &dv1.Effect_DeleteImage{DeleteImage: digest}})
		d.res.Deleted = []string{digest}
	}
	return nil
}

// inUse is docker's check, in docker's words (moby daemon/containerd/image_delete.go).
func (d *decision) inUse(c *dv1.Untag, digest, shown string, byRef, last bool) *dv1.Error {
	if !last {
		return nil
	}
	conflict := func(how, why string, a ...any) *dv1.Error {
		return refuse(dv1.Error_CONFLICT, "conflict: unable to delete %s ("+how+") - "+why, append([]any{shown}, a...)...)
	}
	var user *dv1.Task
	for t := range d.TasksOfImage(digest) {
		if user == nil || state.Live(t) {
			user = t
		}
	}
	if !byRef && !c.Force && len(d.TagsOf(digest)) > 1 && (user == nil || !state.Live(user)) {
		return conflict("must be forced", "image is referenced in multiple repositories")
	}
	if user == nil || (c.Force && !state.Live(user)) {
		return nil
	}
	how, what := "must be forced", "stopped"
	if state.Live(user) {
		how, what = "cannot be forced", "running"
	}
	if byRef {
		return conflict(how, "container %.12s is using its referenced image %s", hexed(user.Id), short(digest))
	}
	return conflict(how, "image is being used by %s container %.12s", what, hexed(user.Id))
}

func hexed(id []byte) string { return hex.EncodeToString(id) }

func short(digest string) string {
	s := strings.TrimPrefix(digest, "sha256:")
	return s[:min(12, len(s))]
}
