// Package mirror is the node's content store as an OCI registry to pull from: for
// other nodes over their own connections, and for tools of this host on loopback.
// It takes no pushes, and fetches nothing itself.
package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/net/netutil"

	"github.com/drover/drover/pkg/registry"
)

// Options of New. Tag gives the digest that a fleet's reference names now; nil
// lets digests only be asked for. Missing is called for a digest that is not
// here, or may not be read: it may bring it, and says whether it did; nil never
// does. May says who may read what is here; an error is why not.
type Options struct {
	Store   content.Provider
	Tag     func(ctx context.Context, ref string) (digest.Digest, error)
	Missing func(ctx context.Context, ref string, d digest.Digest) error
	May     func(r *http.Request, d digest.Digest) error
	Log     *slog.Logger
}

// What Tag and May fail with.
var (
	// ErrUnknown: the fleet has no such image.
	ErrUnknown = errors.New("manifest unknown")
	// ErrPrivate: it isn't known that anybody may pull it.
	ErrPrivate = errors.New("this mirror serves public images only: pull private ones from their registry, or with drover pull")
)

// Mirror answers the OCI distribution API's pulls.
type Mirror struct {
	o      Options
	served atomic.Int64
}

// New makes a Mirror.
func New(o Options) *Mirror { return &Mirror{o: o} }

// Served is how many bytes of blobs were sent.
func (m *Mirror) Served() int64 { return m.served.Load() }

var route = regexp.MustCompile(`^/v2/([a-z0-9._/:-]+)/(manifests|blobs)/([A-Za-z0-9_+.:-]+)$`)

// maxManifest bounds what is read to tell a manifest's type.
const maxManifest = 4 << 20

// ServeHTTP implements http.Handler.
func (m *Mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this mirror is there to pull from: push to your registry")
		return
	}
	if r.URL.Path == "/v2/" || r.URL.Path == "/v2" {
		w.WriteHeader(http.StatusOK)
		return
	}
	p := route.FindStringSubmatch(r.URL.Path)
	if p == nil {
		refuse(w, http.StatusNotFound, "NAME_UNKNOWN", r.URL.Path+" is not known here")
		return
	}
	name, kind, ref := p[1], p[2], p[3]
	if ns := r.URL.Query().Get("ns"); ns != "" {
		name = ns + "/" + name
	}
	d, err := digest.Parse(ref)
	if err != nil && (kind == "blobs" || m.o.Tag == nil) {
		refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", ref+" is not known here")
		return
	}
	full := ""
	if err != nil {
		named, perr := reference.ParseNormalizedNamed(name + ":" + ref)
		if perr != nil {
			refuse(w, http.StatusBadRequest, "NAME_INVALID", perr.Error())
			return
		}
		full = named.String()
		if d, err = m.o.Tag(r.Context(), full); err != nil {
			if errors.Is(err, ErrUnknown) {
				refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", full+" is not an image of this fleet")
				return
			}
			if errors.Is(err, ErrPrivate) {
				refuse(w, http.StatusForbidden, "DENIED", err.Error())
				return
			}
			refuse(w, http.StatusServiceUnavailable, "UNAVAILABLE", err.Error())
			return
		}
	}
	m.blob(w, r, kind, full, d)
}

func (m *Mirror) blob(w http.ResponseWriter, r *http.Request, kind, full string, d digest.Digest) {
	ctx := r.Context()
	ra, err := m.open(r, d)
	if err != nil && m.o.Missing != nil && kind == "manifests" && full != "" {
		if merr := m.o.Missing(ctx, full, d); merr == nil {
			ra, err = m.open(r, d)
		} else if errdefs.IsNotFound(err) {
			err = merr
		}
	}
	var no *denied
	if errors.As(err, &no) {
		refuse(w, http.StatusForbidden, "DENIED", d.String()+": "+no.Error())
		return
	}
	if errdefs.IsNotFound(err) {
		refuse(w, http.StatusNotFound, strings.ToUpper(strings.TrimSuffix(kind, "s"))+"_UNKNOWN", d.String()+" is not on this node")
		return
	}
	if err != nil {
		m.o.Log.Warn("content could not be read", "digest", d, "err", err)
		refuse(w, http.StatusInternalServerError, "UNKNOWN", err.Error())
		return
	}
	defer func() { _ = ra.Close() }()
	h := w.Header()
	h.Set("Docker-Content-Digest", d.String())
	h.Set("Etag", strconv.Quote(d.String()))
	h.Set("Content-Type", "application/octet-stream")
	body := io.NewSectionReader(ra, 0, ra.Size())
	if kind == "manifests" {
		kindOf, err := mediaType(body)
		if err != nil {
			refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", d.String()+" is no manifest")
			return
		}
		h.Set("Content-Type", kindOf)
	}
	http.ServeContent(&counting{w, &m.served}, r, "", time.Time{}, body)
}

// denied is what May said.
type denied struct{ error }

func (m *Mirror) open(r *http.Request, d digest.Digest) (content.ReaderAt, error) {
	ra, err := m.o.Store.ReaderAt(r.Context(), ocispec.Descriptor{Digest: d})
	if err != nil {
		return nil, err
	}
	if err := m.o.May(r, d); err != nil {
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

// mediaType tells a manifest's, which the store doesn't keep.
func mediaType(r *io.SectionReader) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxManifest))
	if err != nil {
		return "", err
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	return registry.MediaType(b)
}

// Bounds of what tools of this host take of the process that runs its containers:
// everybody may connect who has an account here.
const (
	maxConns    = 256
	idleTimeout = 10 * time.Second
)

// Serve answers tools of this host on l, which is loopback, until ctx ends.
func (m *Mirror) Serve(ctx context.Context, l net.Listener) error {
	l = netutil.LimitListener(l, maxConns)
	srv := &http.Server{Handler: m, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: idleTimeout, MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(m.o.Log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); ctx.Err() == nil {
		return fmt.Errorf("serving the mirror: %w", err)
	}
	return nil
}

func refuse(w http.ResponseWriter, code int, kind, msg string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": kind, "message": msg}}})
}
