// Package peers knows the fleet's other nodes as sources of images: what the control
// plane and the gossip reported about who holds what, connections to them, and what they
// may read here. Pulling is up to agent/images, serving up to agent/images/registry.
package peers

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/drover/drover/agent/images/gossip"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/grant"
	"github.com/drover/drover/pkg/pki"
)

// Bounds of what is kept about other nodes.
const (
	maxAsked    = 3    // nodes that one pull tries before the registry
	maxSources  = 1024 // images about which something is known
	dialWithin  = 2 * time.Second
	listWithin  = 2 * time.Second
	gossipAgain = 5 * time.Second
)

// Options of New. Known verifies that a peer belongs to the fleet; Addr returns a
// member's address in the roster, by its URI ("" for none).
type Options struct {
	Cluster, Node string
	Addr          string     // host:port of this node's own port, which is skipped
	Files         *pki.Files // this node's identity
	Known         pki.Verify
	Where         func(uri string) string
	Conns         *pki.Conns // tracks the connections, so that those to a removed member are cut
	Bind          string     // host:port of the gossip; "" for none
	Advertise     string     // address at which other nodes reach it
	// Have lists the digests of the images on this node.
	Have func(ctx context.Context) ([]string, error)
	Log  *slog.Logger
}

// Source is what the control plane said about an image that this node needs.
type Source struct {
	Holders []string // addresses of nodes that hold it
	Grant   []byte   // the right to read it from them
	Public  bool     // anybody may pull it from its registry
}

// Peers are the other nodes. Safe for concurrent use.
type Peers struct {
	o       Options
	ctx     context.Context // of New
	joining sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	open    map[string]*bulk.Client
	sources map[string]Source // by digest
	order   []string          // of sources, oldest first
	gossip  *gossip.Gossip    // nil before there is a key
	failed  time.Time         // when the gossip last failed to start
	closed  bool
}

// New returns Peers without any knowledge yet. They announce this node's images until
// ctx ends.
func New(ctx context.Context, o Options) *Peers {
	return &Peers{o: o, ctx: ctx, open: map[string]*bulk.Client{}, sources: map[string]Source{}}
}

// Named records what the control plane said about an image, replacing what it said
// before.
func (p *Peers) Named(digest string, s Source) {
	if digest == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	old, ok := p.sources[digest]
	if !ok {
		if p.order = append(p.order, digest); len(p.order) > maxSources {
			delete(p.sources, p.order[0])
			p.order = p.order[1:]
		}
	}
	if len(s.Holders) == 0 {
		s.Holders = old.Holders
	}
	if len(s.Grant) == 0 {
		s.Grant = old.Grant
	}
	s.Public = s.Public || old.Public
	p.sources[digest] = s
}

// Public reports whether anybody may pull an image from its registry.
func (p *Peers) Public(digest string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sources[digest].Public
}

// Blobs reports which images on this node a blob is part of.
type Blobs interface {
	// Public reports whether a blob is part of an image that anybody may pull.
	Public(ctx context.Context, blob string) (bool, error)
	// Within reports whether a blob is part of an image on this node.
	Within(ctx context.Context, image, blob string) bool
}

// MayRead returns a check of what another node may read here: public images, and those
// that a controller granted it.
func (p *Peers) MayRead(b Blobs) func(*http.Request, digest.Digest) error {
	return func(r *http.Request, d digest.Digest) error {
		if ok, err := b.Public(r.Context(), d.String()); ok || err != nil {
			return err
		}
		who, _ := pki.PrincipalFrom(r.Context())
		image, err := p.Granted(r)
		if err != nil {
			return err
		}
		if !b.Within(r.Context(), image, d.String()) {
			return fmt.Errorf("%s was granted %s, which this is not part of", who.URI, image)
		}
		return nil
	}
}

// Granted returns what the caller of a request was granted to read, as it shows.
func (p *Peers) Granted(r *http.Request) (string, error) {
	who, _ := pki.PrincipalFrom(r.Context())
	shown, err := base64.StdEncoding.DecodeString(r.Header.Get(wire.HeaderGrant))
	if err != nil || len(shown) == 0 {
		return "", fmt.Errorf("%s has no grant for this", who.URI)
	}
	return grant.Check(p.o.Files, p.o.Known, shown, who.ID, time.Now())
}

// granted sends a grant with each request.
type granted struct {
	http.RoundTripper
	grant string
}

func (g granted) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(wire.HeaderGrant, g.grant)
	return g.RoundTripper.RoundTrip(r)
}

// Clients returns connections to nodes that hold an image, or announced so: those named
// by the control plane first.
func (p *Peers) Clients(digest string) (out []*http.Client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	from := p.sources[digest]
	addrs := slices.Clone(from.Holders)
	if p.gossip != nil {
		for _, id := range p.gossip.Holders(digest) {
			addrs = append(addrs, p.o.Where(pki.URI(p.o.Cluster, pki.KindNode, id)))
		}
	}
	for i, addr := range addrs {
		if addr == "" || addr == p.o.Addr || slices.Contains(addrs[:i], addr) {
			continue
		}
		out = append(out, p.client(addr, from.Grant))
		if len(out) == maxAsked {
			break
		}
	}
	return out
}

// Client returns a connection to the node at an address, which shows a grant.
func (p *Peers) Client(addr string, grant []byte) *http.Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.client(addr, grant)
}

// client must be called with mu held.
func (p *Peers) client(addr string, grant []byte) *http.Client {
	return &http.Client{Transport: granted{p.to(addr).HTTP().Transport, base64.StdEncoding.EncodeToString(grant)}}
}

// to must be called with mu held.
func (p *Peers) to(addr string) *bulk.Client {
	if c := p.open[addr]; c != nil {
		return c
	}
	conf := pki.PeerClientTLS(p.o.Files, wire.ALPNBulk, pki.All(pki.Kinds(pki.KindNode), p.o.Known, func(q pki.Principal) error {
		if at := p.o.Where(q.URI); at != addr {
			return fmt.Errorf("%s is at %s, not at %s", q.URI, at, addr)
		}
		return nil
	}))
	c := bulk.NewClient(func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialWithin)
		defer cancel()
		conn, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", addr)
		if t, ok := conn.(*tls.Conn); ok {
			return p.o.Conns.Wrap(t)
		}
		return conn, err
	})
	p.open[addr] = c
	return c
}

// Welcomed starts the gossip once there is a key, joins the nodes that the control plane
// names, and rotates keys.
func (p *Peers) Welcomed(w *dv1.Welcome) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.o.Bind == "" || len(w.GossipKeys) == 0 || p.closed {
		return
	}
	if p.gossip == nil {
		if time.Since(p.failed) < gossipAgain {
			return
		}
		g, err := gossip.Start(gossip.Options{Node: p.o.Node, Bind: p.o.Bind, Advertise: p.o.Advertise, Keys: w.GossipKeys,
			Files: p.o.Files, Known: p.o.Known, Have: p.have})
		if err != nil {
			p.failed = time.Now()
			p.o.Log.Warn("the gossip can't be started: pulls have fewer sources", "err", err)
			return
		}
		p.gossip = g
	} else if err := p.gossip.SetKeys(w.GossipKeys); err != nil {
		p.o.Log.Warn("the gossip's keys can't be changed", "err", err)
	}
	g, to := p.gossip, w.Peers
	p.joining.Go(func() {
		if err := g.Join(to); err != nil {
			p.o.Log.Debug("no node in the gossip answers", "err", err)
		}
	})
}

// Announce spreads that this node's images have changed.
func (p *Peers) Announce() {
	p.mu.Lock()
	g := p.gossip
	p.mu.Unlock()
	if g != nil {
		g.Announce()
	}
}

// have lists this node's images for the gossip, none if they can't be listed.
func (p *Peers) have() []string {
	ctx, cancel := context.WithTimeout(p.ctx, listWithin)
	defer cancel()
	all, err := p.o.Have(ctx)
	if err != nil {
		p.o.Log.Debug("this node's images can't be listed for the gossip", "err", err)
	}
	return all
}

// Close leaves the gossip and closes connections.
func (p *Peers) Close() {
	p.mu.Lock()
	g, open := p.gossip, p.open
	p.gossip, p.open, p.closed = nil, map[string]*bulk.Client{}, true
	p.mu.Unlock()
	if g != nil {
		g.Close()
	}
	p.joining.Wait()
	for _, c := range open {
		_ = c.Close()
	}
}
