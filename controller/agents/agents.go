// Package agents holds this controller's connections to the agents' bulk ports, and
// probes nodes through them. What is sent over them is up to the caller.
package agents

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/pki"
)

const dialTimeout = 5 * time.Second

// ErrStopping refuses clients after Run has returned.
var ErrStopping = errors.New("this controller is stopping")

// Options configures New.
type Options struct {
	Files   *pki.Files // this controller's
	Member  pki.Verify // accepts nodes of the fleet; checked at each handshake
	Revoked pki.Verify // refuses revoked identities; checked on open connections
}

// Agents holds one HTTP client per node. It is safe for concurrent use.
type Agents struct {
	o       Options
	revoked chan struct{} // signalled when an identity was revoked

	mu     sync.Mutex // guards open and closed
	open   map[string]node
	closed bool
}

// node is the client of a node, and the address that it dials.
type node struct {
	addr   string
	client *bulk.Client
}

// New returns Agents without any connections. Run owns the connections.
func New(o Options) *Agents {
	return &Agents{o: o, revoked: make(chan struct{}, 1), open: map[string]node{}}
}

// Run closes the connections to revoked nodes, and all of them when ctx is done.
func (a *Agents) Run(ctx context.Context) error {
	for {
		select {
		case <-a.revoked:
			a.drop(func(id string) bool {
				return a.o.Revoked(pki.Principal{URI: pki.URI(a.o.Files.Principal.Cluster, pki.KindNode, id)}) != nil
			})
		case <-ctx.Done():
			a.mu.Lock()
			a.closed = true
			a.mu.Unlock()
			a.drop(func(string) bool { return true })
			return nil
		}
	}
}

// Committed is called with each entry's effects, once Options.Revoked reflects them.
// It never blocks.
func (a *Agents) Committed(effects []*dv1.Effect) {
	for _, e := range effects {
		if e.GetIdentity().GetRevoked() {
			select {
			case a.revoked <- struct{}{}:
			default:
			}
			return
		}
	}
}

// Client returns the node's client, which dials on first use. If the node's address
// has changed, it is a new client, and the connections to the old address are
// closed.
func (a *Agents) Client(n *dv1.Node) (*http.Client, error) {
	id, addr := n.GetId(), n.GetAddr()
	a.mu.Lock()
	old, ok := a.open[id]
	switch {
	case a.closed:
		a.mu.Unlock()
		return nil, ErrStopping
	case ok && old.addr == addr:
		a.mu.Unlock()
		return old.client.HTTP(), nil
	}
	c := a.dialer(id, addr)
	a.open[id] = node{addr, c}
	a.mu.Unlock()
	if ok {
		_ = old.client.Close()
	}
	return c.HTTP(), nil
}

func (a *Agents) dialer(id, addr string) *bulk.Client {
	config := pki.PeerClientTLS(a.o.Files, wire.ALPNBulk, pki.All(pki.Kinds(pki.KindNode), func(p pki.Principal) error {
		if p.ID != id {
			return fmt.Errorf("%s is node %s, not %s", addr, p.ID, id)
		}
		return a.o.Member(p)
	}))
	d := &tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: config}
	return bulk.NewClient(func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout) // includes the handshake
		defer cancel()
		conn, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("dialing node %s at %s: %w", id, addr, err)
		}
		return conn, nil
	})
}

// drop closes the connections to nodes that which selects.
func (a *Agents) drop(which func(id string) bool) {
	a.mu.Lock()
	var out []node
	for id, n := range a.open {
		if which(id) {
			out = append(out, n)
			delete(a.open, id)
		}
	}
	a.mu.Unlock()
	for _, n := range out {
		_ = n.client.Close()
	}
}
