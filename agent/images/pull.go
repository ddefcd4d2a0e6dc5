package images

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/registry"
)

// Pull implements task.Images. Pulls of one digest are serialized, so that the second
// one finds what the first one fetched.
func (s *Store) Pull(ctx context.Context, ref, dgst string, auth *task.Credentials, progress func(task.Progress)) (*dv1.Image, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("pulling %s: %w", ref, err)
	}
	at, err := reference.WithDigest(reference.TrimNamed(named), digest.Digest(dgst))
	if err != nil {
		return nil, fmt.Errorf("pulling %s: %w", ref, err)
	}
	if err := s.sweepPulls(ctx); err != nil {
		return nil, err
	}
	unlock, err := s.pulls.lock(ctx, dgst)
	if err != nil {
		return nil, err
	}
	defer unlock()
	i, err := s.Image(ctx, dgst)
	if errors.Is(err, task.ErrNoImage) {
		if i, err = s.fetch(ctx, at.String(), dgst, auth, progress); err == nil {
			return i.proto, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("pulling %s: %w", ref, err)
	}
	if err := s.markPublic(ctx, dgst, i); err != nil {
		return nil, err
	}
	for _, d := range i.proto.Layers {
		progress(task.Progress{ID: shortDigest(d), Status: "Already exists"})
	}
	return i.proto, nil
}

func (s *Store) fetch(ctx context.Context, at, dgst string, auth *task.Credentials, progress func(task.Progress)) (*Image, error) {
	ctx, done, err := s.c.WithLease(s.ctx(ctx))
	if err != nil {
		return nil, err
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }()
	w := &watcher{c: s.c, report: progress, layers: map[digest.Digest]*layer{}}
	stop := w.run(ctx)
	err = s.fromAnywhere(ctx, at, dgst, auth, w)
	stop(err == nil)
	if err != nil {
		return nil, err
	}
	is := s.c.ImageService()
	pulled, err := is.Get(ctx, at)
	if err != nil {
		return nil, err
	}
	ours := images.Image{Name: dgst, Target: pulled.Target, Labels: pulled.Labels}
	if s.isPublic(dgst) {
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
	_, read := s.known.get(dgst)
	ci, err := s.c.GetImage(ctx, dgst)
	if err != nil {
		return nil, err
	}
	return s.readImage(ctx, dgst, ci, read)
}

// fromAnywhere pulls from nodes that hold the image and from its registry. A node that
// lies or hangs can spoil one attempt only: the next one goes without it.
func (s *Store) fromAnywhere(ctx context.Context, at, dgst string, auth *task.Credentials, w *watcher) error {
	var peers []*registry.Peer
	if s.o.Peers != nil {
		for _, c := range s.o.Peers(dgst) {
			peers = append(peers, registry.NewPeer(c))
		}
	}
	cleaned := false
	for {
		var clients []*http.Client
		for _, p := range peers {
			clients = append(clients, p.Client())
		}
		_, err := s.c.Pull(ctx, at,
			client.WithResolver(docker.NewResolver(docker.ResolverOptions{Hosts: s.o.Registry.Hosts((*registry.Credentials)(auth), clients...)})),
			client.WithPullUnpack, client.WithPullSnapshotter(Snapshotter), client.WithPlatformMatcher(platforms.Default()),
			client.WithImageHandlerWrapper(w.wrap))
		asked := len(peers)
		peers = slices.DeleteFunc(peers, func(p *registry.Peer) bool {
			bad := p.Failed()
			if bad != nil {
				s.o.Log.Warn("a node sent wrong content of an image, or none, and is not asked again", "image", dgst, "err", bad)
			}
			return bad != nil
		})
		again := len(peers) < asked
		wrong := errdefs.IsFailedPrecondition(err) // maybe bytes that an earlier pull left behind
		if err == nil || ctx.Err() != nil || !again && (!wrong || cleaned) {
			return err
		}
		// The next attempt would resume after bytes that nobody verified.
		w.abort(ctx)
		cleaned = true
	}
}

// publicLabel marks images that anybody may pull from their registry. An image not known
// to be public is private.
const publicLabel = "io.drover.public"

func (s *Store) isPublic(dgst string) bool { return s.o.Public != nil && s.o.Public(dgst) }

// markPublic marks an image that was pulled before it was known to be public.
func (s *Store) markPublic(ctx context.Context, dgst string, i *Image) error {
	if !s.isPublic(dgst) || i.Labels()[publicLabel] != "" {
		return nil
	}
	with := images.Image{Name: dgst, Labels: map[string]string{publicLabel: "1"}}
	if _, err := s.c.ImageService().Update(s.ctx(ctx), with, "labels."+publicLabel); err != nil {
		return fmt.Errorf("marking image %s as public: %w", dgst, err)
	}
	s.known.drop(dgst) // so that it is read again, with its label
	return nil
}

// sweepPulls removes, once, the records of pulls that the agent's death interrupted:
// they would keep content for ever that nobody can remove. It is called before anything
// is pulled.
func (s *Store) sweepPulls(ctx context.Context) error {
	if s.swept.Load() {
		return nil
	}
	unlock, err := s.pulls.lock(ctx, "")
	if err != nil {
		return err
	}
	defer unlock()
	if s.swept.Load() {
		return nil
	}
	all, err := s.c.ImageService().List(s.ctx(ctx))
	if err != nil {
		return fmt.Errorf("listing images: %w", err)
	}
	for _, i := range all {
		if i.Name == i.Target.Digest.String() {
			continue
		}
		if err := s.c.ImageService().Delete(s.ctx(ctx), i.Name); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("removing what is left of a pull of %s: %w", i.Name, err)
		}
	}
	s.swept.Store(true)
	return nil
}
