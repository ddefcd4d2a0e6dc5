package images

import (
	"encoding/json"
	"strings"
	"testing"

	godigest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

func jsonOf(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// made is an image as a node that pulled it tells of it: behind an index, or not.
func made(t *testing.T, cmd string, indexed bool) (*dv1.Image, [][]byte) {
	t.Helper()
	config := jsonOf(t, ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{cmd}}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []godigest.Digest{godigest.FromString(cmd)}}})
	manifest := jsonOf(t, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.Descriptor{Digest: godigest.FromBytes(config)}})
	img := &dv1.Image{Digest: godigest.FromBytes(manifest).String(), Manifest: godigest.FromBytes(manifest).String(), Config: config,
		ConfigDigest: godigest.FromBytes(config).String(), Layers: []string{godigest.FromString(cmd).String()}, Size: 7}
	if !indexed {
		return img, [][]byte{manifest}
	}
	index := jsonOf(t, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{{Digest: godigest.FromString("another platform")}, {Digest: godigest.FromBytes(manifest)}}})
	img.Digest = godigest.FromBytes(index).String()
	return img, [][]byte{index, manifest}
}

// Whatever a node says it pulled, it can't make a digest another image.
func TestANodeIsBelievedByDigestOnly(t *testing.T) {
	for _, indexed := range []bool{false, true} {
		honest, raw := made(t, "serve", indexed)
		got, err := verified(honest.Digest, honest, raw)
		if err != nil || got.ConfigDigest != honest.ConfigDigest || got.Manifest != honest.Manifest || len(got.Layers) != 1 || got.Size != 7 {
			t.Fatalf("an honest node's image is %v (%v)", got, err)
		}
		evil, evilRaw := made(t, "mine", indexed)
		for name, lie := range map[string]func(*dv1.Image) [][]byte{
			"another image": func(i *dv1.Image) [][]byte {
				i.Digest = evil.Digest
				i.Manifest = evil.Manifest
				i.Config = evil.Config
				return evilRaw
			},
			"another's configuration": func(i *dv1.Image) [][]byte { i.Config, i.ConfigDigest = evil.Config, evil.ConfigDigest; return raw },
			"another's manifest": func(i *dv1.Image) [][]byte {
				i.Manifest, i.Config = evil.Manifest, evil.Config
				return append(evilRaw, raw[0])
			},
			"no manifests":       func(*dv1.Image) [][]byte { return nil },
			"others' manifests":  func(*dv1.Image) [][]byte { return evilRaw },
			"junk for manifests": func(*dv1.Image) [][]byte { return [][]byte{[]byte("{junk!}")} },
			"no configuration":   func(i *dv1.Image) [][]byte { i.Config = nil; return raw },
			"its digest, and another's content": func(i *dv1.Image) [][]byte {
				i.Manifest, i.Config, i.ConfigDigest = evil.Manifest, evil.Config, evil.ConfigDigest
				return evilRaw
			},
		} {
			said, _ := made(t, "serve", indexed)
			sent := lie(said)
			if name == "another's manifest" && !indexed {
				continue // its own digest is its manifest: the config is refused above
			}
			if got, err := verified(honest.Digest, said, sent); err == nil {
				t.Errorf("%s (indexed %v): believed as %v", name, indexed, got)
			}
		}
		said, sent := made(t, "serve", indexed)
		said.Layers = []string{strings.Repeat("x", 71)}
		said.RepoDigests = []string{"docker.io/library/alpine@" + evil.Digest}
		if got, err := verified(honest.Digest, said, sent); err != nil || got.Layers[0] != honest.Layers[0] || len(got.RepoDigests) > 0 {
			t.Errorf("layers and repositories are taken from what a node says: %v (%v)", got, err)
		}
	}
}
