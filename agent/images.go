package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"github.com/opencontainers/go-digest"

	"github.com/drover/drover/agent/images"
	"github.com/drover/drover/agent/images/peers"
	"github.com/drover/drover/agent/images/registry"
	"github.com/drover/drover/agent/session"
	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/dial"
)

// openPeers starts without knowing any other node.
func (a *agent) openPeers() *peers.Peers {
	return peers.New(a.ctx, peers.Options{
		Cluster: a.ClusterID, Node: a.NodeID, Addr: a.addr, Files: a.files, Known: a.fleet.known, Where: a.fleet.addr, Conns: &a.fleet.dialed,
		Bind: a.Gossip, Advertise: a.Advertise, Have: a.digests, Log: a.Logger,
	})
}

// digests returns those of the images on this node; none before the store is open.
func (a *agent) digests(ctx context.Context) (out []string, err error) {
	s := a.stored.Load()
	if s == nil {
		return nil, nil
	}
	all, err := s.List(ctx)
	for _, i := range all {
		out = append(out, i.Digest)
	}
	return out, err
}

// pulling records what a controller says along with a pull.
func (a *agent) pulling(r bulk.PullRequest) {
	a.peers.Named(r.Digest, peers.Source{Holders: r.Holders, Grant: r.Grant, Public: r.Public})
}

// serveMirror serves tools of this host. If another process has the port, containers run
// all the same.
func (a *agent) serveMirror(s *images.Store) error {
	if a.Mirror == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(a.Mirror)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("mirror-listen %q is not a loopback address with a port", a.Mirror)
	}
	m := registry.New(registry.Options{Store: s.Content(), Log: a.Logger, Tag: a.tag, Missing: func(ctx context.Context, ref string, d digest.Digest) error {
		_, err := a.images.Pull(ctx, ref, d.String(), nil, func(task.Progress) {})
		return err
	}, May: func(r *http.Request, d digest.Digest) error {
		ok, err := s.Public(r.Context(), d.String())
		if err == nil && !ok {
			err = registry.ErrPrivate
		}
		return err
	}})
	l, err := (&net.ListenConfig{}).Listen(a.ctx, "tcp", a.Mirror)
	if err != nil {
		a.Logger.Warn("the mirror can't be served", "err", err)
		return nil
	}
	a.parts.Go(func() error { return m.Serve(a.ctx, l) })
	return nil
}

// tagWithin bounds a request to the fleet.
const tagWithin = 5 * time.Second

// tag resolves a reference to a digest in the fleet.
func (a *agent) tag(ctx context.Context, ref string) (digest.Digest, error) {
	ctx, cancel := context.WithTimeout(ctx, tagWithin)
	defer cancel()
	tr := &http.Transport{DisableKeepAlives: true, DialTLSContext: dial.Dialer(a.toController("http/1.1"), a.controllers)}
	fleet := dv1connect.NewImagesClient(&http.Client{Transport: tr}, "https://controller", connect.WithReadMaxBytes(1<<20))
	resp, err := fleet.Resolve(ctx, connect.NewRequest(&dv1.ResolveImageRequest{Reference: ref}))
	var refused *connect.Error
	switch {
	case err == nil:
		a.peers.Named(resp.Msg.Digest, peers.Source{Holders: resp.Msg.Holders, Grant: resp.Msg.Grant, Public: resp.Msg.Public})
		return digest.Digest(resp.Msg.Digest), nil
	case !errors.As(err, &refused):
	case refused.Code() == connect.CodeNotFound:
		return "", registry.ErrUnknown
	case refused.Code() == connect.CodePermissionDenied:
		return "", fmt.Errorf("%w: %s", registry.ErrPrivate, refused.Message())
	}
	return "", fmt.Errorf("asking the fleet for %s: %w", ref, err)
}

// store is what controllers use of the image store.
type store interface {
	task.Images
	Manifest(ctx context.Context, digest string) ([]byte, error)
}

// reporting is an image store that reports its changes.
type reporting struct {
	store
	box     *session.Outbox
	changed func() // called when an image was added or removed
}

// Pull implements task.Puller.
func (r *reporting) Pull(ctx context.Context, ref, digest string, auth *task.Credentials, progress func(task.Progress)) (*dv1.Image, error) {
	i, err := r.store.Pull(ctx, ref, digest, auth, progress)
	if err == nil {
		r.box.Image(&dv1.ImageStatus{Digest: i.Digest, Size: i.Size})
		r.changed()
	}
	return i, err
}

// Remove implements task.Images.
func (r *reporting) Remove(ctx context.Context, digest string) error {
	err := r.store.Remove(ctx, digest)
	if err == nil {
		r.box.ImageGone(digest)
	}
	return err
}
