package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// node answers as a test says.
type node func(*http.Request) (*http.Response, error)

func (n node) RoundTrip(r *http.Request) (*http.Response, error) { return n(r) }

// drip returns b in reads of a few bytes; after the last one it ends or hangs.
type drip struct {
	ctx   context.Context
	b     []byte
	n     int
	every time.Duration
	hangs bool
	shut  chan struct{}
}

func (d *drip) Read(p []byte) (int, error) {
	wait := d.every
	if len(d.b) == 0 {
		if !d.hangs {
			return 0, io.EOF
		}
		wait = 1000 * time.Hour
	}
	select {
	case <-time.After(wait):
	case <-d.shut:
		return 0, errors.New("closed")
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	}
	n := copy(p, d.b[:min(len(d.b), d.n)])
	d.b = d.b[n:]
	return n, nil
}

func (d *drip) Close() error {
	select {
	case <-d.shut:
	default:
		close(d.shut)
	}
	return nil
}

func sends(b string, n int, every time.Duration, hangs bool) node {
	return func(r *http.Request) (*http.Response, error) {
		resp := answer(r, http.StatusOK, []byte(b))
		resp.Body = &drip{r.Context(), []byte(b), n, every, hangs, make(chan struct{})}
		return resp, nil
	}
}

func ask(t *testing.T, p *Peer, method, path string) (*http.Response, []byte, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://agent/v2/x/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := p.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	_, err = io.CopyBuffer(struct{ io.Writer }{&b}, struct{ io.Reader }{resp.Body}, make([]byte, 1<<20)) // as containerd reads
	_ = resp.Body.Close()
	return resp, b.Bytes(), err
}

// However a peer fails, it does so in bounded time, with an error or as one that has
// nothing, and is asked no more; what is slow and honest is waited for.
func TestAPeerIsBelievedByDigestAndWaitedForInBounds(t *testing.T) {
	const manifest = `{"schemaVersion":2,"config":{},"layers":[]}`
	layer := strings.Repeat("layer", 100_000)
	of := func(s string) string { return digest.FromString(s).String() }
	silent := node(func(r *http.Request) (*http.Response, error) { <-r.Context().Done(); return nil, r.Context().Err() })
	for name, c := range map[string]struct {
		n            node
		method, path string
		code         int
		broken, bad  bool
		within       time.Duration
	}{
		"an honest manifest":         {sends(manifest, 100, 0, false), "GET", "manifests/" + of(manifest), 200, false, false, time.Second},
		"an honest manifest's head":  {sends(manifest, 100, 0, false), "HEAD", "manifests/" + of(manifest), 200, false, false, time.Second},
		"an honest layer":            {sends(layer, 1<<20, 0, false), "GET", "blobs/" + of(layer), 200, false, false, time.Second},
		"a slow layer":               {sends(layer, 100_000, time.Second, false), "GET", "blobs/" + of(layer), 200, false, false, time.Minute},
		"a silent one":               {silent, "GET", "manifests/" + of(manifest), 404, false, true, peerHeader},
		"a silent one's layer":       {silent, "GET", "blobs/" + of(layer), 404, false, true, peerHeader},
		"one that stops in between":  {sends(layer[:1000], 1000, 0, true), "GET", "blobs/" + of(layer), 200, true, true, 2 * peerPatience},
		"a manifest that never ends": {sends(manifest, 1, 0, true), "HEAD", "manifests/" + of(manifest), 404, false, true, 2 * peerPatience},
		"a drip":                     {sends(layer, 1, time.Second, false), "GET", "blobs/" + of(layer), 200, true, true, 2 * peerPatience},
		"a junk manifest":            {sends("{junk!}", 100, 0, false), "HEAD", "manifests/" + of(manifest), 404, false, true, time.Second},
		"another manifest":           {sends(`{"config":{}}`, 100, 0, false), "GET", "manifests/" + of(manifest), 404, false, true, time.Second},
		"a junk layer":               {sends(strings.Repeat("junk!", 100_000), 1<<20, 0, false), "GET", "blobs/" + of(layer), 200, true, true, time.Second},
		"a layer cut short":          {sends(layer[:4000], 1<<20, 0, false), "GET", "blobs/" + of(layer), 200, true, true, time.Second},
		"a head of a blob":           {silent, "HEAD", "blobs/" + of(layer), 404, false, false, time.Second},
		"a tag":                      {silent, "GET", "manifests/latest", 404, false, false, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := NewPeer(&http.Client{Transport: c.n})
				began := time.Now()
				resp, b, err := ask(t, p, c.method, c.path)
				if took := time.Since(began); took > c.within {
					t.Errorf("it took %v", took)
				}
				if resp.StatusCode != c.code || (err != nil) != c.broken || errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("answered with %d, read with %v", resp.StatusCode, err)
				}
				if bad := p.Failed() != nil; bad != c.bad {
					t.Errorf("is asked no more: %v (%v)", bad, p.Failed())
				}
				if c.bad {
					if resp, _, _ := ask(t, p, "GET", "blobs/"+of(layer)); resp.StatusCode != 404 {
						t.Errorf("asked again it answers with %d", resp.StatusCode)
					}
					return
				}
				if c.code == 200 && c.method == "GET" && digest.FromBytes(b).String() != c.path[strings.Index(c.path, "/")+1:] {
					t.Error("other bytes came")
				}
				if c.code == 200 && strings.HasPrefix(c.path, "manifests/") && (resp.Header.Get("Content-Type") != ocispec.MediaTypeImageManifest || resp.ContentLength != int64(len(manifest))) {
					t.Errorf("it is a %s of %d bytes", resp.Header.Get("Content-Type"), resp.ContentLength)
				}
			})
		})
	}
	t.Run("who asked left", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := NewPeer(&http.Client{Transport: sends(layer, 1, time.Hour, false)})
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/v2/x/blobs/"+of(layer), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := p.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := io.Copy(&bytes.Buffer{}, resp.Body); !errors.Is(err, context.Canceled) || p.Failed() != nil {
			t.Errorf("%v, and is asked no more: %v", err, p.Failed())
		}
		_ = resp.Body.Close()
	})
}
