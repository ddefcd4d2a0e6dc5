package controller

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/encoding/protojson"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/grant"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
)

// upstream is a registry with one image, of which it answers what it names.
func upstream(t *testing.T) (name string, manifest, config []byte) {
	t.Helper()
	var err error
	if config, err = json.Marshal(ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"serve"}}}); err != nil {
		t.Fatal(err)
	}
	if manifest, err = json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.Descriptor{Digest: digest.FromBytes(config)}}); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			w.WriteHeader(http.StatusOK)
			return
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(manifest).String())
		w.Header().Set("Content-Length", strconv.Itoa(len(manifest)))
		if r.Method == http.MethodGet {
			_, _ = w.Write(manifest)
		}
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://"), manifest, config
}

// A node that pulls and then tells of another image than the one that the registry
// names fails the pull: the tag isn't made, and no digest becomes another image.
func TestALyingNodeDecidesNoTag(t *testing.T) {
	h := newHost(t)
	h.up()
	reg, manifest, config := upstream(t)
	evil := []byte(`{"config":{"Cmd":["mine"]}}`)
	answer := make(chan bulk.PullLine, 1)
	files := h.files(identity.AgentPKI(h.data))
	addr := h.bulkPort(files, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var p bulk.PullRequest
		if err := json.NewDecoder(r.Body).Decode(&p); err != nil || !p.Public {
			t.Errorf("the node was asked for %+v (%v)", p, err)
		}
		if d, err := grant.Check(files, pki.Kinds(pki.KindController), p.Grant, h.nodeID(), time.Now()); err != nil || d != p.Digest {
			t.Errorf("the pull of %s comes with a grant for %q (%v)", p.Digest, d, err)
		}
		_ = json.NewEncoder(w).Encode(<-answer)
	}))
	node, err := h.open(files, 1, addr)
	if err != nil {
		t.Fatal(err)
	}
	node.sync()
	image := func(i *dv1.Image) []byte {
		b, err := protojson.Marshal(i)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	want := digest.FromBytes(manifest).String()
	honest := &dv1.Image{Digest: want, Manifest: want, Config: config, ConfigDigest: digest.FromBytes(config).String()}
	pull := func(l bulk.PullLine) response {
		answer <- l
		return h.local("POST", "/v1.44/images/create?fromImage="+reg+"/web&tag=1", "")
	}
	for name, l := range map[string]bulk.PullLine{
		"another digest":        {Image: image(&dv1.Image{Digest: digest.FromString("x").String(), Config: evil}), Manifests: [][]byte{[]byte("x")}},
		"another configuration": {Image: image(&dv1.Image{Digest: want, Manifest: want, Config: evil, ConfigDigest: digest.FromBytes(evil).String()}), Manifests: [][]byte{manifest}},
		"no proof":              {Image: image(honest)},
	} {
		if r := pull(l); r.code != 200 || !strings.Contains(r.body, `"errorDetail"`) {
			t.Errorf("%s: %v", name, r)
		}
		for i := range h.c.node.Load().Snapshot().Images() {
			t.Errorf("%s: the fleet has image %v now", name, i)
		}
	}
	if r := pull(bulk.PullLine{Image: image(honest), Manifests: [][]byte{manifest}}); r.code != 200 || strings.Contains(r.body, `"errorDetail"`) {
		t.Fatalf("an honest node's pull: %v", r)
	}
	if i := h.c.node.Load().Snapshot().Image(want); !i.GetPublic() {
		t.Error("an image that anybody may pull is private")
	}
	if tag := h.c.node.Load().Snapshot().Tag(reg + "/web:1"); tag.GetDigest() != want {
		t.Fatalf("the tag is %v", tag)
	}
}

// A node is told of public images, and of private ones that it runs, with a grant;
// of others it learns nothing.
func TestANodeLearnsOnlyOfTheImagesItNeeds(t *testing.T) {
	h := newHost(t)
	h.up()
	files := h.files(identity.AgentPKI(h.data))
	put := func(name string, public bool) string {
		t.Helper()
		d := digest.FromString(name).String()
		h.propose(&dv1.Command{Of: &dv1.Command_CommitImage{CommitImage: &dv1.CommitImage{
			Image: &dv1.Image{Digest: d, Config: []byte("{}"), Public: public}, Refs: []string{name}}}})
		return d
	}
	open, secret := put("open", true), put("secret", false)
	ask := func(name string) (out struct {
		Digest string
		Public bool
		Grant  []byte
	}, code int) {
		t.Helper()
		r := h.keyed(files, name, dv1connect.ImagesResolveProcedure, `{"reference":"docker.io/library/`+name+`:latest"}`)
		if err := json.Unmarshal([]byte(r.body), &out); err != nil {
			t.Fatalf("%s: %v", name, r)
		}
		if r.code == http.StatusOK {
			if d, err := grant.Check(files, pki.Kinds(pki.KindController), out.Grant, h.nodeID(), time.Now()); err != nil || d != out.Digest {
				t.Errorf("%s comes with a grant for %q (%v)", name, d, err)
			}
		}
		return out, r.code
	}
	if a, code := ask("open"); code != http.StatusOK || a.Digest != open || !a.Public {
		t.Errorf("a public image: %d %+v", code, a)
	}
	if a, code := ask("secret"); code != http.StatusForbidden || a.Digest != "" || len(a.Grant) > 0 {
		t.Errorf("a private image: %d %+v", code, a)
	}
	node, err := h.open(files, 1, "127.0.0.1:7444")
	if err != nil {
		t.Fatal(err)
	}
	node.sync()
	h.create("mine", `{"Image":"secret","Cmd":["x"]}`)
	y := node.sync()
	if len(y.Sources) != 1 || y.Sources[0].Digest != secret || y.Sources[0].Public {
		t.Fatalf("the assignment's image: %v", y.Sources)
	}
	if d, err := grant.Check(files, pki.Kinds(pki.KindController), y.Sources[0].Grant, h.nodeID(), time.Now()); err != nil || d != secret {
		t.Errorf("the assignment comes with a grant for %q (%v)", d, err)
	}
	if a, code := ask("secret"); code != http.StatusOK || a.Digest != secret || a.Public {
		t.Errorf("a private image that it runs: %d %+v", code, a)
	}
}
