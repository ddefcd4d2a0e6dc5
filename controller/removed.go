package controller

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/http2"

	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/relay"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
)

// ErrRemoved: this controller was taken out of its fleet. Its files were moved
// aside: the host goes on as an agent.
var ErrRemoved = errors.New("this controller was removed from its fleet")

// Times of a removal.
const (
	parting    = time.Second     // that a removed controller still answers, so that who removed it is told
	askRemoved = settle          // between questions, without a leader
	toldWithin = 2 * time.Second // for all the others to answer one
)

// removal ends this controller if it is what was removed.
func (c *controller) removal(effects []*dv1.Effect) {
	for _, e := range effects {
		if e.GetDeleteController() == c.files.Principal.ID {
			time.AfterFunc(parting, func() { c.fail(ErrRemoved) })
		}
	}
}

// askIfRemoved ends a controller that was removed while it was off, or cut off:
// the entry that did it is sent to members only, and so never comes here.
func (c *controller) askIfRemoved(ctx context.Context, node *consensus.Node) error {
	t := time.NewTicker(askRemoved)
	defer t.Stop()
	told := false
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
		if _, leader := node.Leader(); leader != "" {
			told = false
			continue
		}
		by := c.toldRemoved(ctx, node)
		before := told
		// Twice: in an election nobody has a leader for a moment.
		if told = by != ""; told && before {
			c.Logger.Warn("this controller was removed while it could not see it", "told by", by)
			c.fail(ErrRemoved)
			return nil
		}
	}
}

// toldRemoved asks every controller that is known here whether this one is still
// one: who says that it was removed, "" if nobody does or somebody else knows it.
func (c *controller) toldRemoved(ctx context.Context, node *consensus.Node) (by string) {
	ctx, cancel := context.WithTimeout(ctx, toldWithin)
	defer cancel()
	addrs := c.others(node)
	type verdict struct {
		addr        string
		known, gone bool
	}
	out := make(chan verdict, len(addrs))
	for addr := range addrs {
		go func() {
			known, gone := c.askPlace(ctx, addr)
			out <- verdict{addr, known, gone}
		}()
	}
	known := false
	for range addrs {
		v := <-out
		known = known || v.known
		if v.gone {
			by = v.addr
		}
	}
	if known {
		return ""
	}
	return by
}

// others are where controllers were when this one last heard: by its state, which
// may be old, and by what its host's agent was told.
func (c *controller) others(node *consensus.Node) map[string]bool {
	addrs := map[string]bool{}
	for m := range node.Snapshot().Controllers() {
		addrs[m.Addr] = true
	}
	if f := node.Raft().GetConfiguration(); f.Error() == nil {
		for _, s := range f.Configuration().Servers {
			addrs[string(s.Address)] = true
		}
	}
	if id, err := identity.Load(c.DataDir); err == nil {
		for _, a := range id.Controllers {
			addrs[a] = true
		}
	}
	delete(addrs, c.Advertise)
	delete(addrs, "")
	return addrs
}

// askPlace asks one controller for its status: known if it answers as to its like
// and has a leader, gone if it says that this one was removed. Without a leader it
// may know no more than this one: those that were removed together, while they were
// cut off together, would vouch for each other for ever.
func (c *controller) askPlace(ctx context.Context, addr string) (known, gone bool) {
	a, err := c.ask(ctx, addr, http.MethodGet, relay.StatusPath, nil)
	return err == nil && a.code == http.StatusOK && a.header.Get(wire.HeaderLeader) != "", err == nil && a.header.Get(wire.HeaderRemoved) == "true"
}

// answered is another controller's answer, read whole.
type answered struct {
	code   int
	header http.Header
	body   []byte
}

// ask puts one request to a controller that is known by its address only.
func (c *controller) ask(ctx context.Context, addr, method, path string, body []byte) (*answered, error) {
	config := pki.PeerClientTLS(c.files, wire.ALPNPeer, pki.All(pki.Kinds(pki.KindController), c.identities.NotRevoked))
	tr := &http2.Transport{DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
		return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", addr)
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "https://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return &answered{resp.StatusCode, resp.Header, b}, err
}
