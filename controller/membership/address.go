package membership

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
)

// announceEvery is the interval at which this controller announces what is not
// recorded yet.
const announceEvery = time.Second

// Announce has the fleet record this controller's address, if it differs from raft's
// configuration, and its feature level, until ctx ends. The leader dials the old
// address, so this controller may never hear from it: it asks every known controller,
// and whichever leads decides.
func (p *Place) Announce(ctx context.Context) error {
	t := time.NewTicker(announceEvery)
	defer t.Stop()
	for warned := false; ; {
		if m := p.news(ctx); m != nil {
			err := p.propose(ctx, &dv1.Command{Principal: p.o.Files.Principal.URI, Of: &dv1.Command_PutController{PutController: &dv1.PutController{Controller: m}}})
			if err != nil && ctx.Err() == nil && !warned {
				p.o.Logger.Warn("announcing this controller to the others failed, retrying", "addr", m.Addr, "level", m.Level, "err", err)
				warned = true
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// news returns what the fleet has yet to record about this controller, or nil.
func (p *Place) news(ctx context.Context) *dv1.Controller {
	m := &dv1.Controller{Id: p.o.Files.Principal.ID}
	if was := p.knownAt(); moved(was, p.o.Addr) && !p.answersAt(ctx, was) {
		m.Addr = p.o.Addr
	}
	if known := p.o.Log.Snapshot().Controller(m.Id); known != nil && known.Level != state.FeatureLevel {
		m.Level = state.FeatureLevel
	}
	if m.Addr == "" && m.Level == 0 {
		return nil
	}
	return m
}

// knownAt returns this controller's address in raft's configuration, "" if it isn't
// in there.
func (p *Place) knownAt() string {
	f := p.o.Log.Raft().GetConfiguration()
	if f.Error() != nil {
		return ""
	}
	for _, s := range f.Configuration().Servers {
		if string(s.ID) == p.o.Files.Principal.ID {
			return string(s.Address)
		}
	}
	return ""
}

// moved reports whether an address is to be replaced by another. It is never
// replaced by loopback, which is all that a host has when it starts without a
// network.
func moved(was, now string) bool {
	return was != "" && was != now && (loopback(was) || !loopback(now))
}

func loopback(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// answersAt reports whether an address still leads to this controller. Then it is
// kept: a host with several addresses may pick a different one at each start.
func (p *Place) answersAt(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, placeWithin)
	defer cancel()
	conn, err := (&tls.Dialer{Config: pki.PeerClientTLS(p.o.Files, wire.ALPNPeer, func(who pki.Principal) error {
		if who.URI != p.o.Files.Principal.URI {
			return fmt.Errorf("%s is not this controller", who.URI)
		}
		return nil
	})}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}
