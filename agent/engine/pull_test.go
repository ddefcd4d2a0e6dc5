package engine_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover/drover/agent/task"
)

// peer is a node as a place to pull from, whatever address is asked.
func peer(t *testing.T, h http.HandlerFunc) *http.Client {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Transport: to{u}}
}

type to struct{ *url.URL }

func (d to) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Host, r.URL.Scheme = d.Host, d.Scheme
	return http.DefaultTransport.RoundTrip(r)
}

// Nodes that hang, send junk, or stop in between don't keep an image from coming out
// of the registry; and what they sent is in nobody's way later.
func TestLyingNodesDontStopAPull(t *testing.T) {
	w := newWorld(t)
	host, _, _ := strings.Cut(w.ref, "/")
	real := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
	honest := func(w http.ResponseWriter, r *http.Request) {
		r.Host = host
		real.ServeHTTP(w, r)
	}
	hangs := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	junk := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.Header().Set("Docker-Content-Digest", r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
		_, _ = io.WriteString(w, "{junk!}")
	}
	inBlobs := func(bad http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") {
				bad(w, r)
				return
			}
			honest(w, r)
		}
	}
	half := func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		honest(rec, r)
		b := rec.Body.Bytes()
		w.Header().Set("Content-Length", rec.Header().Get("Content-Length"))
		for i := range b[:len(b)/2] {
			b[i] ^= 1
		}
		_, _ = w.Write(b[:len(b)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	var peers []*http.Client
	w.images.Peers = func(string) []*http.Client { return peers }
	e := w.open(t)
	for _, c := range []struct {
		name string
		bad  []http.HandlerFunc
	}{
		{"junk", []http.HandlerFunc{junk}},
		{"junk layers", []http.HandlerFunc{inBlobs(junk)}},
		{"half of each layer, and wrong", []http.HandlerFunc{inBlobs(half)}},
		{"hangs", []http.HandlerFunc{hangs}},
		{"all of them", []http.HandlerFunc{junk, inBlobs(half), inBlobs(junk)}},
	} {
		peers = nil
		for _, h := range c.bad {
			peers = append(peers, peer(t, h))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
		if _, err := e.images.Pull(ctx, w.ref, w.dgst, nil, func(task.Progress) {}); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		cancel()
		if err := e.images.Remove(t.Context(), w.dgst); err != nil {
			t.Fatal(err)
		}
	}
	peers = []*http.Client{peer(t, honest)}
	if _, err := e.images.Pull(t.Context(), "gone.invalid/box:1", w.dgst, nil, func(task.Progress) {}); err != nil {
		t.Errorf("from an honest node alone: %v", err)
	}
}

// What an agent that was killed within a pull left behind is gone with the next
// one's first look.
func TestAPullThatWasCutOffPinsNothing(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	if _, err := e.images.Pull(t.Context(), w.ref, w.dgst, nil, func(task.Progress) {}); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(w.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ctx := namespaces.WithNamespace(t.Context(), "drover")
	whole, err := c.ImageService().Get(ctx, w.dgst)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ImageService().Create(ctx, images.Image{Name: w.ref + "@" + w.dgst, Target: whole.Target}); err != nil {
		t.Fatal(err)
	}
	again := w.open(t)
	if all, err := again.images.List(t.Context()); err != nil || len(all) != 1 {
		t.Fatalf("images: %v (%v)", all, err)
	}
	left, err := c.ImageService().List(ctx)
	if err != nil || len(left) != 1 || left[0].Name != w.dgst {
		t.Fatalf("containerd has %v (%v)", left, err)
	}
}

// Only an image that is known to be public is, with all it consists of, also when
// that is learnt later; what isn't part of it is not.
func TestAnImageIsPrivateUnlessItIsKnownToBePublic(t *testing.T) {
	w := newWorld(t)
	public := false
	w.images.Public = func(string) bool { return public }
	e := w.open(t)
	pull := func() {
		t.Helper()
		if _, err := e.images.Pull(t.Context(), w.ref, w.dgst, nil, func(task.Progress) {}); err != nil {
			t.Fatal(err)
		}
	}
	is := func(what, blob string, want bool) {
		t.Helper()
		if got, err := e.images.Public(t.Context(), blob); err != nil || got != want {
			t.Errorf("%s is public: %v (%v)", what, got, err)
		}
	}
	pull()
	raw, err := e.images.Manifest(t.Context(), w.dgst)
	if err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	layer, config := m.Layers[0].Digest.String(), m.Config.Digest.String()
	is("an image of which nothing is known", w.dgst, false)
	is("its layer", layer, false)
	for _, b := range []string{w.dgst, layer, config} {
		if !e.images.Within(t.Context(), w.dgst, b) {
			t.Errorf("%s is not part of the image", b)
		}
	}
	if other := "sha256:" + strings.Repeat("1", 64); e.images.Within(t.Context(), w.dgst, other) || e.images.Within(t.Context(), other, w.dgst) {
		t.Error("what isn't here is part of something")
	}
	public = true
	pull()
	is("an image that turned out to be public", w.dgst, true)
	is("its layer", layer, true)
	is("its configuration", config, true)
	if err := e.images.Remove(t.Context(), w.dgst); err != nil {
		t.Fatal(err)
	}
	is("an image that is gone", w.dgst, false)
	pull()
	is("one that was public from the start", config, true)
	is("something else", "sha256:"+strings.Repeat("1", 64), false)
}
