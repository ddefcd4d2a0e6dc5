package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// How long a peer may take to begin an answer and to send it. A peer that is slower than
// the minimum rate for longer than the patience allows is abandoned for the next source.
const (
	peerHeader   = 3 * time.Second
	peerPatience = 5 * time.Second
	peerRate     = 64 << 10 // bytes a second
	maxManifest  = 4 << 20
)

// Peer is another node as a source of one pull. Nothing it sends is trusted but bytes
// with the requested digest: manifests are read whole before they are used, and a blob
// with another digest ends in an error. A peer that sent wrong bytes or timed out is not
// asked again.
type Peer struct {
	next http.RoundTripper

	mu  sync.Mutex // guards bad
	bad error
}

// NewPeer sends requests through c, a client of the node's port.
func NewPeer(c *http.Client) *Peer { return &Peer{next: c.Transport} }

// Client returns an HTTP client for Hosts.
func (p *Peer) Client() *http.Client { return &http.Client{Transport: p} }

// Failed returns why the peer is no longer asked, nil if it still is.
func (p *Peer) Failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bad
}

// fail returns an error that containerd's fetcher treats as final: otherwise it would
// resume in the middle of a blob at the next host, after bytes that nobody verified.
func (p *Peer) fail(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bad == nil {
		p.bad = err
	}
	return fmt.Errorf("a node that was asked for content: %v", err) //nolint:errorlint // see above
}

var errLate = errors.New("it did not answer in time")

// RoundTrip implements http.RoundTripper for the pulls of containerd's resolver: HEAD
// and GET of manifests and blobs by digest.
func (p *Peer) RoundTrip(r *http.Request) (*http.Response, error) {
	dir, last := path.Split(r.URL.Path)
	d, err := digest.Parse(last)
	manifest := strings.HasSuffix(dir, "/manifests/")
	if p.Failed() != nil || err != nil || !manifest && r.Method != http.MethodGet {
		return notFound(r), nil // the resolver tries the next host
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	req := r.Clone(ctx)
	req.Method = http.MethodGet
	req.Header.Del("Range") // a digest can only be verified from the first byte
	req.Header.Del("Accept-Encoding")
	late := time.AfterFunc(peerHeader, func() { cancel(errLate) })
	resp, err := p.next.RoundTrip(req)
	if err == nil && !late.Stop() {
		_ = resp.Body.Close()
		err = errLate
	}
	if err != nil {
		late.Stop()
		cancel(nil)
		if r.Context().Err() != nil {
			return nil, r.Context().Err()
		}
		_ = p.fail(err)
		return notFound(r), nil
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Encoding") != "" {
		_ = resp.Body.Close()
		cancel(nil)
		return notFound(r), nil
	}
	resp.Body = &peerBody{ReadCloser: resp.Body, p: p, ctx: r.Context(), cancel: cancel, verify: d.Verifier(), digest: d, waited: -peerPatience}
	if !manifest {
		return resp, nil
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	_ = resp.Body.Close()
	if err == nil && len(b) > maxManifest {
		err = p.fail(fmt.Errorf("%s is over %d bytes", d, maxManifest))
	}
	kind := ""
	if err == nil {
		kind, err = MediaType(b)
	}
	if r.Context().Err() != nil {
		return nil, r.Context().Err()
	}
	if err != nil {
		return notFound(r), nil
	}
	out := answer(r, http.StatusOK, b)
	out.Header.Set("Content-Type", kind)
	out.Header.Set("Docker-Content-Digest", d.String())
	return out, nil
}

// MediaType infers a manifest's media type from its content.
func MediaType(b []byte) (string, error) {
	var m struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
		Config    json.RawMessage   `json:"config"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return "", err
	}
	switch {
	case m.MediaType != "":
		return m.MediaType, nil
	case m.Manifests != nil:
		return ocispec.MediaTypeImageIndex, nil
	case m.Config != nil:
		return ocispec.MediaTypeImageManifest, nil
	}
	return "", errors.New("it is no manifest")
}

func notFound(r *http.Request) *http.Response { return answer(r, http.StatusNotFound, nil) }

func answer(r *http.Request, code int, b []byte) *http.Response {
	body := b
	if r.Method == http.MethodHead {
		body = nil
	}
	return &http.Response{
		Status: strconv.Itoa(code) + " " + http.StatusText(code), StatusCode: code, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Length": {strconv.Itoa(len(b))}}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(b)), Request: r,
	}
}

// peerBody is the body of a peer's response: checked against its digest, and against the
// time spent waiting for it.
type peerBody struct {
	io.ReadCloser
	p      *Peer
	ctx    context.Context // of the caller's request
	cancel context.CancelCauseFunc
	verify digest.Verifier
	digest digest.Digest
	waited time.Duration // less what its bytes, and the patience, allow
}

func (b *peerBody) Read(to []byte) (int, error) {
	began := time.Now()
	late := time.AfterFunc(max(0, -b.waited), func() { b.cancel(errLate); _ = b.ReadCloser.Close() })
	n, err := b.ReadCloser.Read(to)
	inTime := late.Stop()
	b.waited += time.Since(began) - time.Duration(n)*time.Second/peerRate
	b.waited = max(b.waited, -2*peerPatience) // fast bytes are no unlimited credit
	_, _ = b.verify.Write(to[:n])
	switch {
	case b.ctx.Err() != nil:
		return n, b.ctx.Err()
	case !inTime:
		return n, b.p.fail(errLate)
	case err == io.EOF && !b.verify.Verified():
		return n, b.p.fail(fmt.Errorf("what it sent for %s is something else", b.digest))
	case err != nil && err != io.EOF:
		return n, b.p.fail(err)
	}
	return n, err
}

func (b *peerBody) Close() error {
	b.cancel(nil)
	return b.ReadCloser.Close()
}
