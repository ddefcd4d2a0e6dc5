package engineapi

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	randomimage "github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"google.golang.org/protobuf/encoding/protojson"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
)

// pushedImage is in a registry, for nodes to pull.
type pushedImage struct {
	v1.Image
	digest string
}

func pushed(t *testing.T, ref string) *pushedImage {
	t.Helper()
	img, err := randomimage.Image(64, 1)
	if err != nil {
		t.Fatal(err)
	}
	r, err := name.ParseReference(ref, name.Insecure)
	if err == nil {
		err = remote.Write(r, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return &pushedImage{img, h.String()}
}

// pulled answers a pull as an honest agent does.
func (i *pushedImage) pulled(t *testing.T, w http.ResponseWriter, _ *http.Request) {
	t.Helper()
	manifest, err := i.RawManifest()
	if err != nil {
		t.Error(err)
	}
	config, err := i.RawConfigFile()
	if err != nil {
		t.Error(err)
	}
	img, err := protojson.Marshal(&dv1.Image{Digest: i.digest, Manifest: i.digest, Config: config, Size: 7})
	if err != nil {
		t.Error(err)
	}
	e := json.NewEncoder(w)
	_ = e.Encode(bulk.PullLine{ID: "layer", Status: "Downloading", Current: 1, Total: 2})
	_ = e.Encode(bulk.PullLine{Image: img, Manifests: [][]byte{manifest}})
}
