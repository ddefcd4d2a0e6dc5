package controller

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/relay"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
)

// moveEvery is between tries to have the others know a new address.
const moveEvery = time.Second

// tellAddress has the fleet know where this controller is, if that is not where raft's
// configuration has it. The leader dials the old address, so it may never be heard
// here: every controller that is known is asked, and the one that leads decides.
func (c *controller) tellAddress(ctx context.Context, node *consensus.Node) error {
	t := time.NewTicker(moveEvery)
	defer t.Stop()
	for {
		if was := c.knownAt(node); was != "" && was != c.Advertise && (loopback(was) || !loopback(c.Advertise)) && !c.answersAt(ctx, was) {
			err := c.offer(ctx, node, &dv1.Command{Principal: c.files.Principal.URI, Of: &dv1.Command_PutController{PutController: &dv1.PutController{
				Controller: &dv1.Controller{Id: c.files.Principal.ID, Addr: c.Advertise}}}})
			if err != nil && ctx.Err() == nil {
				c.once("moved to "+c.Advertise, func() {
					c.Logger.Warn("the other controllers do not know this one's new address yet", "from", was, "to", c.Advertise, "err", err)
				})
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// knownAt is this controller's address in raft's configuration, "" if it is not in it.
func (c *controller) knownAt(node *consensus.Node) string {
	f := node.Raft().GetConfiguration()
	if f.Error() != nil {
		return ""
	}
	for _, s := range f.Configuration().Servers {
		if s.ID == raft.ServerID(c.files.Principal.ID) {
			return string(s.Address)
		}
	}
	return ""
}

// loopback is where a host is for itself, as when it starts without a network: no
// other address is given up for that.
func loopback(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// answersAt says whether who dials an address comes to this controller. Then it stays:
// a host with several addresses may find another one its own at each start.
func (c *controller) answersAt(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, toldWithin)
	defer cancel()
	conn, err := (&tls.Dialer{Config: pki.PeerClientTLS(c.files, wire.ALPNPeer, func(p pki.Principal) error {
		if p.URI != c.files.Principal.URI {
			return fmt.Errorf("%s is not this controller", p.URI)
		}
		return nil
	})}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// offer has a command decided by whoever leads.
func (c *controller) offer(ctx context.Context, node *consensus.Node, cmd *dv1.Command) error {
	ctx, cancel := context.WithTimeout(ctx, toldWithin)
	defer cancel()
	res, err := node.Propose(ctx, cmd)
	if !errors.Is(err, consensus.ErrNotLeader) {
		return decided(res, err)
	}
	b, err := proto.Marshal(cmd)
	if err != nil {
		return fmt.Errorf("encoding a command: %w", err)
	}
	for addr := range c.others(node) {
		var a *answered
		if a, err = c.ask(ctx, addr, http.MethodPost, relay.ProposePath, b); err != nil {
			continue
		}
		res := &dv1.CommandResult{}
		if a.code != http.StatusOK {
			err = fmt.Errorf("the controller at %s answers %d: %s", addr, a.code, a.body)
		} else if err = proto.Unmarshal(a.body, res); err == nil {
			return decided(res, nil)
		}
	}
	return err
}

func decided(r *dv1.CommandResult, err error) error {
	if err == nil && r.GetError() != nil {
		err = errors.New(r.Error.Message)
	}
	return err
}
