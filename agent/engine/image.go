package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/registry"
)

// snapshotter holds images unpacked and containers' writable layers.
const snapshotter = "overlayfs"

// progressEvery is how often a download is looked at.
const progressEvery = 100 * time.Millisecond

// image is what an image in the store is, read once per digest.
type image struct {
	client.Image
	proto  *dv1.Image
	config ocispec.Image
	blobs  map[string]bool // that it consists of here: index, manifest, configuration, layers
}

// imageCache keeps images that were read. What was read while one was removed is
// not kept: it may be that one, which is no more. The zero value is ready.
type imageCache struct {
	mu      sync.Mutex // guards the fields below
	m       map[string]*image
	removed uint64 // how many times something was
}

// get gives an image, nil if it isn't there, and what put wants to know of the moment
// at which reading it began.
func (c *imageCache) get(dgst string) (*image, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.m[dgst], c.removed
}

func (c *imageCache) put(dgst string, i *image, at uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at != c.removed {
		return
	}
	if c.m == nil {
		c.m = map[string]*image{}
	}
	c.m[dgst] = i
}

func (c *imageCache) drop(dgst string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removed++
	delete(c.m, dgst)
}

// sweepPulls forgets, once, pulls that an agent's end cut off: their names would keep
// content for ever that nobody can remove. It is called before anything is pulled.
func (e *Engine) sweepPulls(ctx context.Context) error {
	if e.swept.Load() {
		return nil
	}
	unlock, err := e.pulls.lock(ctx, "")
	if err != nil {
		return err
	}
	defer unlock()
	if e.swept.Load() {
		return nil
	}
	all, err := e.c.ImageService().List(e.ctx(ctx))
	if err != nil {
		return fmt.Errorf("listing images: %w", err)
	}
	for _, i := range all {
		if i.Name == i.Target.Digest.String() {
			continue
		}
		if err := e.c.ImageService().Delete(e.ctx(ctx), i.Name); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("removing what is left of a pull of %s: %w", i.Name, err)
		}
	}
	e.swept.Store(true)
	return nil
}

// Images in containerd's store are named by the digest that a tag names, so that
// tags, which raft keeps, never differ between nodes.

func (e *Engine) image(ctx context.Context, dgst string) (*image, error) {
	i, at := e.images.get(dgst)
	if i != nil {
		return i, nil
	}
	ci, err := e.c.GetImage(e.ctx(ctx), dgst)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("%s: %w", dgst, task.ErrNoImage)
	}
	if err != nil {
		return nil, fmt.Errorf("reading image %s: %w", dgst, err)
	}
	return e.readImage(ctx, dgst, ci, at)
}

func (e *Engine) readImage(ctx context.Context, dgst string, ci client.Image, at uint64) (*image, error) {
	ctx = e.ctx(ctx)
	cs := e.c.ContentStore()
	manifest, err := images.Manifest(ctx, cs, ci.Target(), platforms.Default())
	if err != nil {
		return nil, fmt.Errorf("reading the manifest of %s: %w", dgst, notHere(err))
	}
	b, err := content.ReadBlob(ctx, cs, manifest.Config)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration of %s: %w", dgst, notHere(err))
	}
	i := &image{Image: ci}
	if err := json.Unmarshal(b, &i.config); err != nil {
		return nil, fmt.Errorf("reading the configuration of %s: %w", dgst, err)
	}
	unpacked, err := ci.IsUnpacked(ctx, snapshotter)
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
	mdesc, err := e.platformManifest(ctx, ci.Target())
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
	for _, d := range i.config.RootFS.DiffIDs {
		i.proto.Layers = append(i.proto.Layers, d.String())
	}
	e.images.put(dgst, i, at)
	return i, nil
}

// notHere: content that is gone makes the image absent, and a pull brings it back.
func notHere(err error) error {
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("%w: %w", task.ErrNoImage, err)
	}
	return err
}

func (e *Engine) platformManifest(ctx context.Context, d ocispec.Descriptor) (ocispec.Descriptor, error) {
	if images.IsManifestType(d.MediaType) {
		return d, nil
	}
	var best *ocispec.Descriptor
	children, err := images.Children(ctx, e.c.ContentStore(), d)
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

// Pull implements task.Engine. Pulls of one digest follow each other, so that
// the second finds what the first brought.
func (e *Engine) Pull(ctx context.Context, ref, dgst string, auth *task.Credentials, progress func(task.Progress)) (*dv1.Image, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("pulling %s: %w", ref, err)
	}
	at, err := reference.WithDigest(reference.TrimNamed(named), digest.Digest(dgst))
	if err != nil {
		return nil, fmt.Errorf("pulling %s: %w", ref, err)
	}
	if err := e.sweepPulls(ctx); err != nil {
		return nil, err
	}
	unlock, err := e.pulls.lock(ctx, dgst)
	if err != nil {
		return nil, err
	}
	defer unlock()
	i, err := e.image(ctx, dgst)
	if errors.Is(err, task.ErrNoImage) {
		if i, err = e.fetch(ctx, at.String(), dgst, auth, progress); err == nil {
			return i.proto, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("pulling %s: %w", ref, err)
	}
	if err := e.markPublic(ctx, dgst, i); err != nil {
		return nil, err
	}
	for _, d := range i.proto.Layers {
		progress(task.Progress{ID: shortDigest(d), Status: "Already exists"})
	}
	return i.proto, nil
}

// maxManifest bounds what is read whole.
const maxManifest = 4 << 20

// Manifest reads a manifest, or an index, that was pulled.
func (e *Engine) Manifest(ctx context.Context, dgst string) ([]byte, error) {
	ra, err := e.Content().ReaderAt(ctx, ocispec.Descriptor{Digest: digest.Digest(dgst)})
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

// Content is the node's content store, in its namespace.
func (e *Engine) Content() content.Provider { return provider{e} }

type provider struct{ e *Engine }

// ReaderAt implements content.Provider.
func (p provider) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	return p.e.c.ContentStore().ReaderAt(p.e.ctx(ctx), d)
}

func (e *Engine) peers(dgst string) []*http.Client {
	if e.o.Peers == nil {
		return nil
	}
	return e.o.Peers(dgst)
}

func (e *Engine) fetch(ctx context.Context, at, dgst string, auth *task.Credentials, progress func(task.Progress)) (*image, error) {
	ctx, done, err := e.c.WithLease(e.ctx(ctx))
	if err != nil {
		return nil, err
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }()
	w := &watcher{c: e.c, say: progress, layers: map[digest.Digest]*layer{}}
	stop := w.run(ctx)
	err = e.fromAnywhere(ctx, at, dgst, auth, w)
	stop(err == nil)
	if err != nil {
		return nil, err
	}
	is := e.c.ImageService()
	pulled, err := is.Get(ctx, at)
	if err != nil {
		return nil, err
	}
	ours := images.Image{Name: dgst, Target: pulled.Target, Labels: pulled.Labels}
	if e.isPublic(dgst) {
		ours.Labels = maps.Clone(ours.Labels)
		if ours.Labels == nil {
			ours.Labels = map[string]string{}
		}
		ours.Labels[publicLabel] = "1"
	}
	if _, err := is.Create(ctx, ours); err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, err
	}
	if err := is.Delete(ctx, at); err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	_, read := e.images.get(dgst)
	ci, err := e.c.GetImage(ctx, dgst)
	if err != nil {
		return nil, err
	}
	return e.readImage(ctx, dgst, ci, read)
}

// fromAnywhere pulls from nodes that have the image and from its registry. A node
// that lies or hangs may spoil a try, but only one: the next goes without it.
func (e *Engine) fromAnywhere(ctx context.Context, at, dgst string, auth *task.Credentials, w *watcher) error {
	var peers []*registry.Peer
	for _, c := range e.peers(dgst) {
		peers = append(peers, registry.NewPeer(c))
	}
	cleaned := false
	for {
		var clients []*http.Client
		for _, p := range peers {
			clients = append(clients, p.Client())
		}
		_, err := e.c.Pull(ctx, at,
			client.WithResolver(docker.NewResolver(docker.ResolverOptions{Hosts: e.o.Registry.Hosts((*registry.Credentials)(auth), clients...)})),
			client.WithPullUnpack, client.WithPullSnapshotter(snapshotter), client.WithPlatformMatcher(platforms.Default()),
			client.WithImageHandlerWrapper(w.wrap))
		asked := len(peers)
		peers = slices.DeleteFunc(peers, func(p *registry.Peer) bool {
			bad := p.Failed()
			if bad != nil {
				e.o.Log.Warn("a node that was asked for an image's content is asked no more", "image", dgst, "err", bad)
			}
			return bad != nil
		})
		again := len(peers) < asked
		wrong := errdefs.IsFailedPrecondition(err) // bytes that an earlier pull left behind, too
		if err == nil || ctx.Err() != nil || !again && (!wrong || cleaned) {
			return err
		}
		// The next try would go on behind bytes that nobody vouches for.
		w.abort(ctx)
		cleaned = true
	}
}

// publicLabel marks images that anybody may pull from their registry. One that isn't
// known to be public is private.
const publicLabel = "io.drover.public"

func (e *Engine) isPublic(dgst string) bool { return e.o.Public != nil && e.o.Public(dgst) }

// markPublic marks an image that was pulled before it was known to be public.
func (e *Engine) markPublic(ctx context.Context, dgst string, i *image) error {
	if !e.isPublic(dgst) || i.Labels()[publicLabel] != "" {
		return nil
	}
	with := images.Image{Name: dgst, Labels: map[string]string{publicLabel: "1"}}
	if _, err := e.c.ImageService().Update(e.ctx(ctx), with, "labels."+publicLabel); err != nil {
		return fmt.Errorf("marking image %s as public: %w", dgst, err)
	}
	e.images.drop(dgst) // it is read anew, with its label
	return nil
}

// Within says whether a blob is part of an image that is here whole.
func (e *Engine) Within(ctx context.Context, dgst, blob string) bool {
	i, err := e.image(ctx, dgst)
	return err == nil && i.blobs[blob]
}

// Public says whether a blob is part of an image that anybody may pull.
func (e *Engine) Public(ctx context.Context, blob string) (bool, error) {
	all, err := e.c.ImageService().List(e.ctx(ctx), `labels."`+publicLabel+`"==1`)
	if err != nil {
		return false, fmt.Errorf("listing public images: %w", err)
	}
	for _, a := range all {
		if e.Within(ctx, a.Name, blob) {
			return true, nil
		}
	}
	return false, nil
}

// Images implements task.Engine.
func (e *Engine) Images(ctx context.Context) ([]*dv1.ImageStatus, error) {
	if err := e.sweepPulls(ctx); err != nil {
		return nil, err
	}
	all, err := e.c.ImageService().List(e.ctx(ctx))
	if err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	var out []*dv1.ImageStatus
	for _, a := range all {
		if a.Name != a.Target.Digest.String() {
			continue // a pull that has not ended
		}
		i, err := e.image(ctx, a.Name)
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

// RemoveImage implements task.Engine. Layers that containers stand on stay until
// these are removed.
func (e *Engine) RemoveImage(ctx context.Context, dgst string) error {
	unlock, err := e.pulls.lock(ctx, dgst)
	if err != nil {
		return err
	}
	defer unlock()
	err = e.c.ImageService().Delete(e.ctx(ctx), dgst, images.SynchronousDelete())
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("removing image %s: %w", dgst, err)
	}
	e.images.drop(dgst) // behind the removal: who looks now finds nothing
	return nil
}

// layer is one that a pull brings.
type layer struct {
	desc   ocispec.Descriptor
	status string
}

// watcher tells of a pull's layers in docker's words.
type watcher struct {
	c   *client.Client
	say func(task.Progress)

	mu     sync.Mutex // guards the fields below
	layers map[digest.Digest]*layer
	order  []*layer
	refs   map[string]bool // what containerd calls the content that it brings
}

func (w *watcher) wrap(h images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		w.mu.Lock()
		if w.refs == nil {
			w.refs = map[string]bool{}
		}
		w.refs[remotes.MakeRefKey(ctx, d)] = true
		w.mu.Unlock()
		children, err := h.Handle(ctx, d)
		for _, c := range children {
			if images.IsLayerType(c.MediaType) {
				w.add(ctx, c)
			}
		}
		return children, err
	})
}

// abortWithin bounds how long content is waited for that somebody writes.
const abortWithin = 2 * time.Second

// abort throws away what was begun and not ended. What another pull writes at the
// moment is that one's.
func (w *watcher) abort(ctx context.Context) {
	w.mu.Lock()
	refs := slices.Sorted(maps.Keys(w.refs))
	w.mu.Unlock()
	cs := w.c.ContentStore()
	for _, ref := range refs {
		if _, err := cs.Status(ctx, ref); err != nil {
			continue
		}
		// The try that ended may be about to let go of it; nobody else has it while
		// we do.
		soon, enough := context.WithTimeout(ctx, abortWithin)
		wr, err := content.OpenWriter(soon, cs, content.WithRef(ref))
		if err != nil {
			enough()
			continue
		}
		_ = cs.Abort(ctx, ref)
		_ = wr.Close()
		enough()
	}
}

func (w *watcher) add(ctx context.Context, d ocispec.Descriptor) {
	status := "Pulling fs layer"
	if _, err := w.c.ContentStore().Info(ctx, d.Digest); err == nil {
		status = "Already exists"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.layers[d.Digest] != nil {
		return
	}
	l := &layer{desc: d, status: status}
	w.layers[d.Digest] = l
	w.order = append(w.order, l)
	w.say(task.Progress{ID: shortDigest(d.Digest.String()), Status: status})
}

// run looks at the downloads until its result is called, with whether all went well.
func (w *watcher) run(ctx context.Context) func(ok bool) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(progressEvery)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				w.look(ctx)
			case <-quit:
				return
			}
		}
	}()
	return func(ok bool) {
		close(quit)
		<-done
		if !ok {
			return
		}
		for _, l := range w.order {
			switch l.status {
			case "Already exists", "Pull complete":
				continue
			case "Download complete":
			default:
				w.to(l, "Download complete", 0, 0)
			}
			w.to(l, "Pull complete", 0, 0)
		}
	}
}

func (w *watcher) look(ctx context.Context) {
	w.mu.Lock()
	order := append([]*layer(nil), w.order...)
	w.mu.Unlock()
	cs := w.c.ContentStore()
	for _, l := range order {
		if l.status != "Pulling fs layer" && l.status != "Downloading" {
			continue
		}
		if s, err := cs.Status(ctx, remotes.MakeRefKey(ctx, l.desc)); err == nil {
			w.to(l, "Downloading", s.Offset, l.desc.Size)
		} else if _, err := cs.Info(ctx, l.desc.Digest); err == nil {
			w.to(l, "Download complete", 0, 0)
		}
	}
}

func (w *watcher) to(l *layer, status string, cur, total int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l.status = status
	w.say(task.Progress{ID: shortDigest(l.desc.Digest.String()), Status: status, Current: cur, Total: total})
}

func shortDigest(d string) string {
	if _, err := digest.Parse(d); err == nil {
		d = digest.Digest(d).Encoded()
	}
	return short(d)
}

// keyed are locks by name.
type keyed struct {
	mu sync.Mutex // guards m
	m  map[string]chan struct{}
}

func (k *keyed) lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		k.mu.Lock()
		busy := k.m[name]
		if busy == nil {
			mine := make(chan struct{})
			if k.m == nil {
				k.m = map[string]chan struct{}{}
			}
			k.m[name] = mine
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.m, name)
				k.mu.Unlock()
				close(mine)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
