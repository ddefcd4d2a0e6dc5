package agent

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/drover/drover/agent/gossip"
	"github.com/drover/drover/agent/images"
	"github.com/drover/drover/agent/mirror"
	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/dial"
	"github.com/drover/drover/pkg/grant"
	"github.com/drover/drover/pkg/pki"
)

// Bounds of what is kept of other nodes.
const (
	maxPeers    = 3    // nodes that one pull asks before the registry
	maxNamed    = 1024 // digests whose holders an assignment named
	peerWithin  = 2 * time.Second
	tagWithin   = 5 * time.Second
	gossipAgain = 5 * time.Second
)

// peers are the other nodes, as places to pull from.
type peers struct {
	a    *agent
	have atomic.Pointer[images.Store] // nil before there is one

	mu      sync.Mutex // guards the fields below
	open    map[string]*bulk.Client
	sources map[string]source // by digest, as assignments and pulls name them
	order   []string
	gossip  *gossip.Gossip
	failed  time.Time
	closed  bool
}

func newPeers(a *agent) *peers {
	return &peers{a: a, open: map[string]*bulk.Client{}, sources: map[string]source{}}
}

// source is what the control plane said of an image that this node is to have.
type source struct {
	holders []string // addresses
	grant   []byte   // to read it from them
	public  bool
}

// named keeps what was said of an image: what is said newly replaces what was.
func (p *peers) named(digest string, s source) {
	if digest == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	old, ok := p.sources[digest]
	if !ok {
		if p.order = append(p.order, digest); len(p.order) > maxNamed {
			delete(p.sources, p.order[0])
			p.order = p.order[1:]
		}
	}
	if len(s.holders) == 0 {
		s.holders = old.holders
	}
	if len(s.grant) == 0 {
		s.grant = old.grant
	}
	s.public = s.public || old.public
	p.sources[digest] = s
}

// pull keeps what a controller says with a pull.
func (p *peers) pull(r bulk.PullRequest) {
	p.named(r.Digest, source{r.Holders, r.Grant, r.Public})
}

func (p *peers) public(digest string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sources[digest].public
}

// may says whether another node may read what this one has: what is public, and
// what it was granted.
func (p *peers) may(e blobs) func(*http.Request, digest.Digest) error {
	return func(r *http.Request, d digest.Digest) error {
		if ok, err := e.Public(r.Context(), d.String()); ok || err != nil {
			return err
		}
		who, _ := pki.PrincipalFrom(r.Context())
		b, err := base64.StdEncoding.DecodeString(r.Header.Get(wire.HeaderGrant))
		if err != nil || len(b) == 0 {
			return fmt.Errorf("%s has no grant for this", who.URI)
		}
		image, err := grant.Check(p.a.files, p.a.fleet.known, b, who.ID, time.Now())
		if err != nil {
			return err
		}
		if !e.Within(r.Context(), image, d.String()) {
			return fmt.Errorf("%s was granted %s, which this is no part of", who.URI, image)
		}
		return nil
	}
}

// blobs is what may must know of the node's images.
type blobs interface {
	Public(ctx context.Context, blob string) (bool, error)
	Within(ctx context.Context, image, blob string) bool
}

// granted shows a grant with each request.
type granted struct {
	http.RoundTripper
	grant string
}

func (g granted) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(wire.HeaderGrant, g.grant)
	return g.RoundTripper.RoundTrip(r)
}

// clients gives connections to nodes that hold an image, or said so.
func (p *peers) clients(digest string) (out []*http.Client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	from := p.sources[digest]
	addrs := slices.Clone(from.holders)
	if p.gossip != nil {
		for _, id := range p.gossip.Holders(digest) {
			addrs = append(addrs, p.a.fleet.addr(id)) // where the control plane says it is
		}
	}
	for i, addr := range addrs {
		if addr == "" || addr == p.a.addr || slices.Contains(addrs[:i], addr) {
			continue
		}
		tr := granted{p.to(addr).HTTP().Transport, base64.StdEncoding.EncodeToString(from.grant)}
		out = append(out, &http.Client{Transport: tr})
		if len(out) == maxPeers {
			break
		}
	}
	return out
}

// to is called with mu held.
func (p *peers) to(addr string) *bulk.Client {
	if c := p.open[addr]; c != nil {
		return c
	}
	conf := pki.PeerClientTLS(p.a.files, wire.ALPNBulk, pki.All(pki.Kinds(pki.KindNode), p.a.fleet.known, func(q pki.Principal) error {
		if at := p.a.fleet.now.Load().Addr(q.URI); at != addr {
			return fmt.Errorf("%s is at %s, not at %s", q.URI, at, addr)
		}
		return nil
	}))
	c := bulk.NewClient(func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, peerWithin)
		defer cancel()
		conn, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", addr)
		if t, ok := conn.(*tls.Conn); ok {
			return p.a.fleet.visited.Wrap(t)
		}
		return conn, err
	})
	p.open[addr] = c
	return c
}

// tag asks the fleet which digest a reference names.
func (p *peers) tag(ctx context.Context, ref string) (digest.Digest, error) {
	ctx, cancel := context.WithTimeout(ctx, tagWithin)
	defer cancel()
	conf := p.a.toController("http/1.1")
	tr := &http.Transport{DisableKeepAlives: true, DialTLSContext: dial.Dialer(conf, p.a.controllers)}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://controller/drover/v1/tags?"+url.Values{"ref": {ref}}.Encode(), nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return "", fmt.Errorf("asking the fleet for %s: %w", ref, err)
	}
	defer func() { _ = resp.Body.Close() }()
	var a struct {
		Digest  string
		Holders []string
		Grant   []byte
		Public  bool
		Message string
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&a); err != nil {
		return "", fmt.Errorf("asking the fleet for %s: %w", ref, err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		p.named(a.Digest, source{a.Holders, a.Grant, a.Public})
		return digest.Digest(a.Digest), nil
	case http.StatusNotFound:
		return "", mirror.ErrUnknown
	case http.StatusForbidden:
		return "", fmt.Errorf("%w: %s", mirror.ErrPrivate, a.Message)
	}
	return "", fmt.Errorf("asking the fleet for %s: %s", ref, a.Message)
}

// news begins the gossip once there is a key, and gives it others.
func (p *peers) news(a *agent, w *dv1.Welcome) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a.Gossip == "" || len(w.GossipKeys) == 0 || p.closed {
		return
	}
	if p.gossip == nil {
		if time.Since(p.failed) < gossipAgain {
			return
		}
		g, err := gossip.Start(gossip.Options{Node: a.NodeID, Bind: a.Gossip, Advertise: a.Advertise, Keys: w.GossipKeys, Files: a.files, Known: a.fleet.known, Have: p.digests})
		if err != nil {
			p.failed = time.Now()
			a.Logger.Warn("there is no gossip: pulls know fewer nodes to ask", "err", err)
			return
		}
		p.gossip = g
	} else if err := p.gossip.Keys(w.GossipKeys); err != nil {
		a.Logger.Warn("the gossip's keys could not be changed", "err", err)
	}
	g, to := p.gossip, w.Peers
	a.parts.Go(func() error {
		if err := g.Join(to); err != nil {
			a.Logger.Debug("the gossip met nobody", "err", err)
		}
		return nil
	})
}

func (p *peers) tell() {
	p.mu.Lock()
	g := p.gossip
	p.mu.Unlock()
	if g != nil {
		g.Tell()
	}
}

func (p *peers) digests() (out []string) {
	e := p.have.Load()
	if e == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), peerWithin)
	defer cancel()
	all, err := e.List(ctx)
	if err != nil {
		return nil
	}
	for _, i := range all {
		out = append(out, i.Digest)
	}
	return out
}

func (p *peers) close() {
	p.mu.Lock()
	g, open := p.gossip, p.open
	p.gossip, p.open, p.closed = nil, map[string]*bulk.Client{}, true
	p.mu.Unlock()
	if g != nil {
		g.Close()
	}
	for _, c := range open {
		_ = c.Close()
	}
}

// serveMirror answers tools of this host. A port that somebody else has is no
// reason not to run containers.
func (a *agent) serveMirror(e *images.Store) error {
	if a.Mirror == "" {
		return nil
	}
	m := mirror.New(mirror.Options{Store: e.Content(), Log: a.Logger, Tag: a.peers.tag, Missing: func(ctx context.Context, ref string, d digest.Digest) error {
		_, err := a.images.Pull(ctx, ref, d.String(), nil, func(task.Progress) {})
		return err
	}, May: func(r *http.Request, d digest.Digest) error {
		ok, err := e.Public(r.Context(), d.String())
		if err == nil && !ok {
			err = mirror.ErrPrivate
		}
		return err
	}})
	host, _, err := net.SplitHostPort(a.Mirror)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("mirror-listen %q is not a loopback address with a port", a.Mirror)
	}
	l, err := net.Listen("tcp", a.Mirror)
	if err != nil {
		a.Logger.Warn("there is no mirror for other tools", "err", err)
		return nil
	}
	a.parts.Go(func() error { return m.Serve(a.ctx, l) })
	return nil
}
