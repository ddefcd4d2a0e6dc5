package engineapi

import (
	"net/http"

	"github.com/distribution/reference"
	"github.com/drover/drover/controller/state"
)

// findImage gives the digest that name (a reference, or a unique id prefix) stands for.
func findImage(snap *state.Snapshot, name string) (string, error) {
	shown := name
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		named = reference.TagNameOnly(named)
		shown = reference.FamiliarString(named)
		if t := snap.Tag(named.String()); t != nil {
			return t.Digest, nil
		}
		if d, ok := named.(reference.Digested); ok && snap.Image(d.Digest().String()) != nil {
			return d.Digest().String(), nil
		}
	}
	switch is := snap.ImagesByPrefix(name); {
	case name == "":
	case len(is) == 1:
		return is[0].Digest, nil
	case len(is) > 1:
		return "", refuse(http.StatusBadRequest, "multiple IDs found with provided prefix: %s", name)
	}
	return "", refuse(http.StatusNotFound, "No such image: %s", shown)
}
