// Package images is a node's image store on containerd: what is on the node, and
// fetching what is not from other nodes or its registry. Which nodes those are is up to
// images/peers; serving content to others is up to images/registry.
package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync/atomic"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover/drover/agent/containerd"
	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/registry"
)

// Snapshotter holds images unpacked, and containers' writable layers.
const Snapshotter = "overlayfs"

// Options of a Store.
type Options struct {
	Containerd *client.Client
	Registry   *registry.Registry
	Peers      func(digest string) []*http.Client // nodes to try before the registry; nil: none
	Public     func(digest string) bool           // whether anybody may pull it from its registry; nil: no image is public
	Log        *slog.Logger                       // nil: none
}

// Store holds a node's images. In containerd's store they are named by the digest that a
// tag resolves to: tags are kept in raft, and so can't differ between nodes. It
// implements task.Images, and is safe for concurrent use.
type Store struct {
	o     Options
	c     *client.Client
	pulls keyed
	swept atomic.Bool // set by sweepPulls
	known cache
}

var _ task.Images = (*Store)(nil)

// New returns the store of o.Containerd, which need not answer yet.
func New(o Options) *Store {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Store{o: o, c: o.Containerd}
}

// Image is an image in the store, read once per digest. It must not be modified.
type Image struct {
	client.Image
	Config ocispec.Image

	proto *dv1.Image
	blobs map[string]bool // its parts that are here: index, manifest, configuration, layers
}

// Image returns an image that is complete and unpacked on this node, ErrNoImage
// otherwise.
func (s *Store) Image(ctx context.Context, dgst string) (*Image, error) {
	i, at := s.known.get(dgst)
	if i != nil {
		return i, nil
	}
	ci, err := s.c.GetImage(s.ctx(ctx), dgst)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("%s: %w", dgst, task.ErrNoImage)
	}
	if err != nil {
		return nil, fmt.Errorf("reading image %s: %w", dgst, err)
	}
	return s.readImage(ctx, dgst, ci, at)
}

func (s *Store) readImage(ctx context.Context, dgst string, ci client.Image, at uint64) (*Image, error) {
	ctx = s.ctx(ctx)
	cs := s.c.ContentStore()
	manifest, err := images.Manifest(ctx, cs, ci.Target(), platforms.Default())
	if err != nil {
		return nil, fmt.Errorf("reading the manifest of %s: %w", dgst, notHere(err))
	}
	b, err := content.ReadBlob(ctx, cs, manifest.Config)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration of %s: %w", dgst, notHere(err))
	}
	i := &Image{Image: ci}
	if err := json.Unmarshal(b, &i.Config); err != nil {
		return nil, fmt.Errorf("reading the configuration of %s: %w", dgst, err)
	}
	unpacked, err := ci.IsUnpacked(ctx, Snapshotter)
	if err != nil {
		return nil, fmt.Errorf("reading image %s: %w", dgst, err)
	}
	if !unpacked {
		return nil, fmt.Errorf("%s is not unpacked: %w", dgst, task.ErrNoImage)
	}
	size, err := ci.Usage(ctx, client.WithSnapshotUsage())
	if err != nil {
		return nil, fmt.Errorf("measuring image %s: %w", dgst, err)
	}
	mdesc, err := s.platformManifest(ctx, ci.Target())
	if err != nil {
		return nil, fmt.Errorf("reading the manifest of %s: %w", dgst, err)
	}
	i.proto = &dv1.Image{
		Digest: dgst, Manifest: mdesc.Digest.String(), ConfigDigest: manifest.Config.Digest.String(),
		Config: b, Size: size, Pulled: ci.Metadata().CreatedAt.UnixNano(),
	}
	i.blobs = map[string]bool{dgst: true, mdesc.Digest.String(): true, manifest.Config.Digest.String(): true}
	for _, l := range manifest.Layers {
		i.blobs[l.Digest.String()] = true
	}
	for _, d := range i.Config.RootFS.DiffIDs {
		i.proto.Layers = append(i.proto.Layers, d.String())
	}
	s.known.put(dgst, i, at)
	return i, nil
}

func (s *Store) ctx(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, containerd.Namespace)
}

// notHere treats an image with missing content as absent, so that a pull restores it.
func notHere(err error) error {
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("%w: %w", task.ErrNoImage, err)
	}
	return err
}

func (s *Store) platformManifest(ctx context.Context, d ocispec.Descriptor) (ocispec.Descriptor, error) {
	if images.IsManifestType(d.MediaType) {
		return d, nil
	}
	var best *ocispec.Descriptor
	children, err := images.Children(ctx, s.c.ContentStore(), d)
	if err != nil {
		return d, err
	}
	match := platforms.Default()
	for _, c := range children {
		if !images.IsManifestType(c.MediaType) || c.Platform == nil || !match.Match(*c.Platform) {
			continue
		}
		if best == nil || match.Less(*c.Platform, *best.Platform) {
			best = &c
		}
	}
	if best == nil {
		return d, fmt.Errorf("no manifest for %s", platforms.DefaultString())
	}
	return *best, nil
}

// maxManifest bounds what is read into memory.
const maxManifest = 4 << 20

// Manifest reads a manifest or index that was pulled.
func (s *Store) Manifest(ctx context.Context, dgst string) ([]byte, error) {
	ra, err := s.Content().ReaderAt(ctx, ocispec.Descriptor{Digest: digest.Digest(dgst)})
	if err != nil {
		return nil, err
	}
	defer func() { _ = ra.Close() }()
	if ra.Size() > maxManifest {
		return nil, fmt.Errorf("%s is over %d bytes", dgst, maxManifest)
	}
	b := make([]byte, ra.Size())
	_, err = io.ReadFull(content.NewReader(ra), b)
	return b, err
}

// Content returns the node's content store, in its namespace.
func (s *Store) Content() content.Provider { return provider{s} }

type provider struct{ s *Store }

// ReaderAt implements content.Provider.
func (p provider) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	return p.s.c.ContentStore().ReaderAt(p.s.ctx(ctx), d)
}

// Within reports whether a blob is part of a complete image on this node.
func (s *Store) Within(ctx context.Context, dgst, blob string) bool {
	i, err := s.Image(ctx, dgst)
	return err == nil && i.blobs[blob]
}

// Public reports whether a blob is part of an image that anybody may pull.
func (s *Store) Public(ctx context.Context, blob string) (bool, error) {
	all, err := s.c.ImageService().List(s.ctx(ctx), `labels."`+publicLabel+`"==1`)
	if err != nil {
		return false, fmt.Errorf("listing public images: %w", err)
	}
	for _, a := range all {
		if s.Within(ctx, a.Name, blob) {
			return true, nil
		}
	}
	return false, nil
}

// List implements task.Images.
func (s *Store) List(ctx context.Context) ([]*dv1.ImageStatus, error) {
	if err := s.sweepPulls(ctx); err != nil {
		return nil, err
	}
	all, err := s.c.ImageService().List(s.ctx(ctx))
	if err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	var out []*dv1.ImageStatus
	for _, a := range all {
		if a.Name != a.Target.Digest.String() {
			continue // a pull in progress
		}
		i, err := s.Image(ctx, a.Name)
		if errors.Is(err, task.ErrNoImage) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, &dv1.ImageStatus{Digest: a.Name, Size: i.proto.Size})
	}
	return out, nil
}

// Remove implements task.Images.
func (s *Store) Remove(ctx context.Context, dgst string) error {
	unlock, err := s.pulls.lock(ctx, dgst)
	if err != nil {
		return err
	}
	defer unlock()
	err = s.c.ImageService().Delete(s.ctx(ctx), dgst, images.SynchronousDelete())
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("removing image %s: %w", dgst, err)
	}
	s.known.drop(dgst) // after the removal, so that nobody caches it again
	return nil
}
