package registry

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
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

// counter counts the connections that were accepted and are open.
type counter struct {
	net.Listener

	mu        sync.Mutex // guards the fields below
	open, top int
}

func (l *counter) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open++
	l.top = max(l.top, l.open)
	return &counted{Conn: c, closed: sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.open--
	})}, nil
}

type counted struct {
	net.Conn
	closed func()
}

func (c *counted) Close() error {
	c.closed()
	return c.Conn.Close()
}

// Anybody on the host may connect, and keep connections open: they take a bounded
// part of the agent's files and memory, and the next ones are answered as those end.
func TestConnectionsAreBounded(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &counter{Listener: inner}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- New(Options{Store: blobs{}, Log: slog.New(slog.DiscardHandler)}).Serve(ctx, l) }()
	defer func() { cancel(); <-done }()
	answered := make(chan net.Conn, 2*maxConns)
	for range 2 * maxConns {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		go func() {
			_, _ = io.WriteString(c, "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
			if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil {
				_ = resp.Body.Close()
				answered <- c
			}
		}()
	}
	var open []net.Conn
	for range maxConns {
		open = append(open, <-answered)
	}
	for _, c := range open {
		_ = c.Close()
		<-answered
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.top > maxConns {
		t.Fatalf("%d connections were open at a time, at most %d may be", l.top, maxConns)
	}
}
