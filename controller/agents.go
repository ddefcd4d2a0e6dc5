package controller

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/pki"
)

const dialTimeout = 5 * time.Second

// agents are the connections to agents' own ports, one a node.
type agents struct {
	files  *pki.Files
	verify pki.Verify

	mu     sync.Mutex // guards open and closed
	open   map[string]agent
	closed bool
}

type agent struct {
	addr   string
	client *bulk.Client
}

func newAgents(files *pki.Files, verify pki.Verify) *agents {
	return &agents{files: files, verify: verify, open: map[string]agent{}}
}

// client gives the node's HTTP client, which dials when it is first used.
func (a *agents) client(n *dv1.Node) (*http.Client, error) {
	id, addr := n.GetId(), n.GetAddr()
	a.mu.Lock()
	old, ok := a.open[id]
	switch {
	case a.closed:
		a.mu.Unlock()
		return nil, errors.New("this controller is stopping")
	case ok && old.addr == addr:
		a.mu.Unlock()
		return old.client.HTTP(), nil
	}
	c := a.dialer(id, addr)
	a.open[id] = agent{addr, c}
	a.mu.Unlock()
	if ok { // the node moved
		_ = old.client.Close()
	}
	return c.HTTP(), nil
}

func (a *agents) dialer(id, addr string) *bulk.Client {
	config := pki.PeerClientTLS(a.files, wire.ALPNBulk, pki.All(pki.Kinds(pki.KindNode), func(p pki.Principal) error {
		if p.ID != id {
			return fmt.Errorf("%s is node %s, not %s", addr, p.ID, id)
		}
		return a.verify(p)
	}))
	d := &tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: config}
	return bulk.NewClient(func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout) // the handshake too
		defer cancel()
		conn, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("dialing node %s at %s: %w", id, addr, err)
		}
		return conn, nil
	})
}

// drop ends the connections to the nodes that gone names.
func (a *agents) drop(gone func(id string) bool) {
	a.mu.Lock()
	var out []agent
	for id, o := range a.open {
		if gone(id) {
			out = append(out, o)
			delete(a.open, id)
		}
	}
	a.mu.Unlock()
	for _, o := range out {
		_ = o.client.Close()
	}
}

func (a *agents) close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.drop(func(string) bool { return true })
}

// granted is what users of nodes may do, by node and uid, as of the last commit: only
// commits read and write it.
type granted map[string]map[string]string

// seed takes the roles of a state.
func (g granted) seed(s *state.Snapshot) {
	for n := range s.Nodes() {
		g[n.Id] = n.Roles
	}
}

// change notes a node's roles, and gives the users who may do less than before.
func (g granted) change(n *dv1.Node) (less []string) {
	for uid, role := range g[n.Id] {
		if now := n.Roles[uid]; now != role && now != pki.RoleAdmin {
			less = append(less, uid)
		}
	}
	g[n.Id] = n.Roles
	return less
}

// revocations ends connections of identities that were just revoked, and of users who
// were granted more before: a controller's after it had the time to be told that it was
// removed, which may have been asked through it; what else it asks meanwhile is
// refused. It is called within a commit and never blocks.
func (c *controller) revocations(effects []*dv1.Effect) {
	for _, e := range effects {
		if n := e.GetNode(); n != nil {
			host := pki.Principal{URI: pki.URI(c.files.Principal.Cluster, pki.KindNode, n.Id)}
			for _, uid := range c.granted.change(n) {
				c.requests.expel(pki.Principal{ID: uid}.At(host).URI)
			}
		}
		delete(c.granted, e.GetDeleteNode())
		id := e.GetIdentity()
		if !id.GetRevoked() {
			continue
		}
		uri := id.GetUri()
		expel := func() {
			c.requests.expel(uri)
			c.sessions.expel(uri)
		}
		if p, err := pki.FromURI(uri); err == nil && p.Kind == pki.KindController {
			time.AfterFunc(parting, expel)
		} else {
			expel()
		}
		c.layer.conns.expel(uri)
		select {
		case c.revoked <- struct{}{}:
		default:
		}
	}
}

// dropRevoked ends the connections that this controller made to revoked nodes.
func (c *controller) dropRevoked(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.revoked:
		}
		c.agents.drop(func(id string) bool {
			return c.notRevoked(pki.Principal{URI: pki.URI(c.files.Principal.Cluster, pki.KindNode, id)}) != nil
		})
	}
}
