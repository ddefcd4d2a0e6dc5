// Package registry serves the node's content store by the OCI distribution API: to other
// nodes over their own connections, and to tools of this host on loopback, as a mirror.
// It accepts no pushes, and fetches nothing itself.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/distribution/distribution/v3/registry/api/errcode"
	v2 "github.com/distribution/distribution/v3/registry/api/v2"
	"github.com/distribution/reference"
	"github.com/gorilla/mux"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/net/netutil"

	upstream "github.com/drover/drover/pkg/registry"
)

// Options of New.
type Options struct {
	Store content.Provider
	// Tag returns the digest that a reference of the fleet names now; nil: only digests
	// are served.
	Tag func(ctx context.Context, ref string) (digest.Digest, error)
	// Missing is called for content that a tag names and that is not here, or may not be
	// read. It may fetch it; an error says why it didn't. nil: nothing is fetched.
	Missing func(ctx context.Context, ref string, d digest.Digest) error
	// May returns an error if a caller may not read what is here.
	May func(r *http.Request, d digest.Digest) error
	Log *slog.Logger
}

// Errors of Tag and May.
var (
	// ErrUnknown reports that the fleet has no such image.
	ErrUnknown = errors.New("manifest unknown")
	// ErrPrivate reports an image that is not known to be public.
	ErrPrivate = errors.New("this mirror serves public images only: pull private ones from their registry, or with drover pull")
)

// Registry serves the pulls of the distribution API. Safe for concurrent use.
type Registry struct {
	o      Options
	served atomic.Int64
}

// New returns a Registry.
func New(o Options) *Registry { return &Registry{o: o} }

// Served returns how many bytes of blobs and manifests were sent.
func (g *Registry) Served() int64 { return g.served.Load() }

// maxManifest bounds what is read to determine a manifest's type.
const maxManifest = 4 << 20

// ServeHTTP implements http.Handler.
func (g *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		refuse(w, errcode.ErrorCodeUnsupported.WithMessage("this mirror is there to pull from: push to your registry"))
		return
	}
	var m mux.RouteMatch
	if !v2.Router().Match(r, &m) || m.Route == nil {
		refuse(w, errcode.ErrorCodeNameUnknown.WithMessage(r.URL.Path+" is not known here"))
		return
	}
	name := m.Vars["name"]
	if ns := r.URL.Query().Get("ns"); ns != "" {
		name = ns + "/" + name
	}
	var err error
	switch m.Route.GetName() {
	case v2.RouteNameBase:
		w.WriteHeader(http.StatusOK)
	case v2.RouteNameManifest:
		err = g.manifest(w, r, name, m.Vars["reference"])
	case v2.RouteNameBlob:
		err = g.blob(w, r, digest.Digest(m.Vars["digest"]))
	default:
		err = errcode.ErrorCodeNameUnknown.WithMessage(r.URL.Path + " is not known here")
	}
	if err != nil {
		refuse(w, err)
	}
}

// manifest serves a manifest by digest, or by a tag of the fleet.
func (g *Registry) manifest(w http.ResponseWriter, r *http.Request, name, ref string) error {
	d, err := digest.Parse(ref)
	if err == nil {
		return g.serve(w, r, d, "")
	}
	if g.o.Tag == nil {
		return errcode.ErrorCodeManifestUnknown.WithMessage(ref + " is not known here")
	}
	named, err := reference.ParseNormalizedNamed(name + ":" + ref)
	if err != nil {
		return errcode.ErrorCodeNameInvalid.WithMessage(err.Error())
	}
	d, err = g.o.Tag(r.Context(), named.String())
	switch {
	case errors.Is(err, ErrUnknown):
		return errcode.ErrorCodeManifestUnknown.WithMessage(named.String() + " is not an image of this fleet")
	case errors.Is(err, ErrPrivate):
		return errcode.ErrorCodeDenied.WithMessage(err.Error())
	case err != nil:
		return errcode.ErrorCodeUnavailable.WithMessage(err.Error())
	}
	return g.serve(w, r, d, named.String())
}

// serve sends a manifest; tag is the name it was requested by, "" for none.
func (g *Registry) serve(w http.ResponseWriter, r *http.Request, d digest.Digest, tag string) error {
	ra, err := g.open(r, d)
	if err != nil && g.o.Missing != nil && tag != "" {
		if merr := g.o.Missing(r.Context(), tag, d); merr == nil {
			ra, err = g.open(r, d)
		} else if errdefs.IsNotFound(err) {
			err = merr
		}
	}
	if err != nil {
		return g.why(err, errcode.ErrorCodeManifestUnknown, d)
	}
	defer func() { _ = ra.Close() }()
	body := io.NewSectionReader(ra, 0, ra.Size())
	kind, err := mediaType(body)
	if err != nil {
		return errcode.ErrorCodeManifestUnknown.WithMessage(d.String() + " is no manifest")
	}
	g.send(w, r, d, kind, body)
	return nil
}

func (g *Registry) blob(w http.ResponseWriter, r *http.Request, d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return errcode.ErrorCodeBlobUnknown.WithMessage(d.String() + " is not known here")
	}
	ra, err := g.open(r, d)
	if err != nil {
		return g.why(err, errcode.ErrorCodeBlobUnknown, d)
	}
	defer func() { _ = ra.Close() }()
	g.send(w, r, d, "application/octet-stream", io.NewSectionReader(ra, 0, ra.Size()))
	return nil
}

func (g *Registry) send(w http.ResponseWriter, r *http.Request, d digest.Digest, kind string, body io.ReadSeeker) {
	h := w.Header()
	h.Set("Docker-Content-Digest", d.String())
	h.Set("Etag", strconv.Quote(d.String()))
	h.Set("Content-Type", kind)
	http.ServeContent(&counting{w, &g.served}, r, "", time.Time{}, body)
}

// why translates an error of open, or of Missing, into the API's codes.
func (g *Registry) why(err error, unknown errcode.ErrorCode, d digest.Digest) error {
	var no *denied
	switch {
	case errors.As(err, &no):
		return errcode.ErrorCodeDenied.WithMessage(d.String() + ": " + no.Error())
	case errdefs.IsNotFound(err):
		return unknown.WithMessage(d.String() + " is not on this node")
	}
	g.o.Log.Warn("content can't be read", "digest", d, "err", err)
	return errcode.ErrorCodeUnknown.WithMessage(err.Error())
}

// denied is an error of May.
type denied struct{ error }

func (g *Registry) open(r *http.Request, d digest.Digest) (content.ReaderAt, error) {
	ra, err := g.o.Store.ReaderAt(r.Context(), ocispec.Descriptor{Digest: d})
	if err != nil {
		return nil, err
	}
	if err := g.o.May(r, d); err != nil {
		_ = ra.Close()
		return nil, &denied{err}
	}
	return ra, nil
}

type counting struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// mediaType returns a manifest's media type, which the store doesn't keep.
func mediaType(r *io.SectionReader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxManifest))
	if err != nil {
		return "", err
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	return upstream.MediaType(b)
}

// Bounds of what tools of this host take from the process that runs its containers: any
// local account may connect.
const (
	maxConns    = 256
	idleTimeout = 10 * time.Second
)

// Serve serves tools of this host on l, which is on loopback, until ctx ends.
func (g *Registry) Serve(ctx context.Context, l net.Listener) error {
	l = netutil.LimitListener(l, maxConns)
	srv := &http.Server{Handler: g, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: idleTimeout, MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(g.o.Log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); ctx.Err() == nil {
		return fmt.Errorf("serving the mirror: %w", err)
	}
	return nil
}

func refuse(w http.ResponseWriter, err error) { _ = errcode.ServeJSON(w, err) }
