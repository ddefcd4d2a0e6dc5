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

// addressEvery is between tries to have the others know a new address.
const addressEvery = time.Second

// KeepAddress has the fleet know where this controller is, if that is not where raft's
// configuration has it, and what its build can apply. The leader dials the old address,
// so it may never be heard here: every controller that is known is asked, and the one
// that leads decides.
func (p *Place) KeepAddress(ctx context.Context) error {
	t := time.NewTicker(addressEvery)
	defer t.Stop()
	for warned := false; ; {
		if m := p.news(ctx); m != nil {
			err := p.propose(ctx, &dv1.Command{Principal: p.o.Files.Principal.URI, Of: &dv1.Command_PutController{PutController: &dv1.PutController{Controller: m}}})
			if err != nil && ctx.Err() == nil && !warned {
				p.o.Logger.Warn("the other controllers do not know yet what is new of this one", "addr", m.Addr, "level", m.Level, "err", err)
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

// news is what the fleet does not know of this controller, nil if there is nothing.
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

// knownAt is this controller's address in raft's configuration, "" if it is not in it.
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

// moved reports whether an address is to be given up for another: none is for loopback,
// where a host is for itself, as when it starts without a network.
func moved(was, now string) bool {
	return was != "" && was != now && (loopback(was) || !loopback(now))
}

func loopback(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// answersAt reports whether who dials an address comes to this controller. Then it stays:
// a host with several addresses may find another one its own at each start.
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
