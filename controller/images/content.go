package images

import (
	"encoding/json"
	"fmt"
	"slices"

	godigest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// verified builds the image for a digest from what a node reports of its pull. Nodes
// are trusted only by digest: manifests are the raw bytes that lead from the digest
// to the configuration. Sizes, which can't be verified, are taken as reported.
func verified(want string, said *dv1.Image, manifests [][]byte) (*dv1.Image, error) {
	if said.GetDigest() != want {
		return nil, fmt.Errorf("the node that pulled says it has %s instead of %s", said.GetDigest(), want)
	}
	blobs := map[godigest.Digest][]byte{}
	for _, b := range manifests {
		blobs[godigest.FromBytes(b)] = b
	}
	at := godigest.Digest(want)
	var m struct {
		Manifests []ocispec.Descriptor `json:"manifests"`
		Config    ocispec.Descriptor   `json:"config"`
	}
	if err := blob(blobs, at, &m); err != nil {
		return nil, err
	}
	if len(m.Manifests) > 0 {
		at = godigest.Digest(said.Manifest)
		if !slices.ContainsFunc(m.Manifests, func(d ocispec.Descriptor) bool { return d.Digest == at }) {
			return nil, fmt.Errorf("the node that pulled %s names a manifest %s, which is none of its", want, at)
		}
		m.Manifests = nil
		if err := blob(blobs, at, &m); err != nil {
			return nil, err
		}
	}
	if c := godigest.FromBytes(said.Config); c != m.Config.Digest {
		return nil, fmt.Errorf("the node that pulled %s sent a configuration %s instead of %s", want, c, m.Config.Digest)
	}
	var config ocispec.Image
	if err := json.Unmarshal(said.Config, &config); err != nil {
		return nil, fmt.Errorf("reading the configuration of %s: %w", want, err)
	}
	out := &dv1.Image{Digest: want, Manifest: at.String(), ConfigDigest: m.Config.Digest.String(), Config: said.Config, Size: max(0, said.Size), Pulled: said.Pulled}
	for _, d := range config.RootFS.DiffIDs {
		out.Layers = append(out.Layers, d.String())
	}
	return out, nil
}

func blob(all map[godigest.Digest][]byte, d godigest.Digest, to any) error {
	b, ok := all[d]
	if !ok {
		return fmt.Errorf("the node that pulled sent no manifest %s", d)
	}
	if err := json.Unmarshal(b, to); err != nil {
		return fmt.Errorf("reading manifest %s: %w", d, err)
	}
	return nil
}
