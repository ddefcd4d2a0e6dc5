package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type blobs map[digest.Digest][]byte

type blob struct{ *bytes.Reader }

func (blob) Close() error { return nil }

func (b blobs) ReaderAt(_ context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	x, ok := b[d.Digest]
	if !ok {
		return nil, fmt.Errorf("%s: %w", d.Digest, errdefs.ErrNotFound)
	}
	return blob{bytes.NewReader(x)}, nil
}

func (b blobs) put(s string) digest.Digest {
	d := digest.FromString(s)
	b[d] = []byte(s)
	return d
}

func TestPullsAreAnsweredAndNothingElse(t *testing.T) {
	store := blobs{}
	manifest := store.put(`{"schemaVersion":2,"config":{},"layers":[]}`)
	index := store.put(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)
	layer := store.put("layer")
	late := digest.FromString("late")
	secret := store.put(`{"schemaVersion":2,"config":{},"annotations":{}}`)
	m := New(Options{Store: store, Log: slog.New(slog.DiscardHandler),
		Tag: func(_ context.Context, ref string) (digest.Digest, error) {
			switch ref {
			case "docker.io/library/alpine:latest":
				return index, nil
			case "registry.lan/x/y:1":
				return late, nil
			case "docker.io/library/hidden:latest":
				return "", fmt.Errorf("hidden: %w", ErrPrivate)
			case "docker.io/library/mine:latest": // private, and of a task on this node
				return secret, nil
			case "docker.io/library/dark:latest":
				return "", errors.New("no controller answers")
			}
			return "", ErrUnknown
		},
		Missing: func(_ context.Context, _ string, d digest.Digest) error {
			if d != late {
				return errdefs.ErrNotFound
			}
			store[late] = []byte(`{"manifests":[]}`)
			return nil
		},
		May: func(_ *http.Request, d digest.Digest) error {
			if d == secret {
				return ErrPrivate
			}
			return nil
		}})
	s := httptest.NewServer(m)
	defer s.Close()
	for _, c := range []struct {
		method, path string
		code         int
		kind, body   string
	}{
		{"GET", "/v2/", 200, "", ""},
		{"GET", "/v2/library/alpine/manifests/latest", 200, ocispec.MediaTypeImageIndex, string(store[index])},
		{"HEAD", "/v2/alpine/manifests/latest", 200, ocispec.MediaTypeImageIndex, ""},
		{"GET", "/v2/library/alpine/manifests/" + manifest.String(), 200, ocispec.MediaTypeImageManifest, string(store[manifest])},
		{"GET", "/v2/library/alpine/blobs/" + layer.String(), 200, "application/octet-stream", "layer"},
		{"GET", "/v2/library/alpine/blobs/" + digest.FromString("no").String(), 404, "application/json", ""},
		{"GET", "/v2/library/alpine/manifests/" + layer.String(), 404, "application/json", ""},
		{"GET", "/v2/library/absent/manifests/latest", 404, "application/json", ""},
		{"GET", "/v2/library/hidden/manifests/latest", 403, "application/json", ""},
		{"GET", "/v2/library/mine/manifests/latest", 403, "application/json", ""},
		{"GET", "/v2/library/mine/manifests/" + secret.String(), 403, "application/json", ""},
		{"GET", "/v2/library/mine/blobs/" + secret.String(), 403, "application/json", ""},
		{"HEAD", "/v2/library/mine/blobs/" + secret.String(), 403, "", ""},
		{"GET", "/v2/library/dark/manifests/latest", 503, "application/json", ""},
		{"GET", "/v2/x/y/manifests/1?ns=registry.lan", 200, ocispec.MediaTypeImageIndex, `{"manifests":[]}`},
		{"GET", "/v2/../../etc/passwd/blobs/x", 404, "", ""},
		{"GET", "/", 404, "application/json", ""},
		{"PUT", "/v2/library/alpine/manifests/latest", 405, "application/json", ""},
		{"POST", "/v2/library/alpine/blobs/uploads/", 405, "application/json", ""},
		{"DELETE", "/v2/library/alpine/manifests/latest", 405, "application/json", ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, s.URL+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != c.code || c.kind != "" && resp.Header.Get("Content-Type") != c.kind || c.body != "" && string(b) != c.body {
			t.Errorf("%s %s: %d %s %q", c.method, c.path, resp.StatusCode, resp.Header.Get("Content-Type"), b)
		}
	}
	if m.Served() == 0 {
		t.Error("nothing was counted")
	}
}
