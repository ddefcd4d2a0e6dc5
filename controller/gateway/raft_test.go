package gateway

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/pki/pkitest"
)

// shaken gives connections whose handshake is over.
type shaken struct {
	net.Listener
	c chan net.Conn
}

func (s shaken) Accept() (net.Conn, error) { return <-s.c, nil }

// A controller that is removed between its handshake and the moment in which raft takes
// its connection has no part in the quorum any more.
func TestRaftTakesNoConnectionOfWhoWasJustRemoved(t *testing.T) {
	ca := pkitest.Authority(t, "c")
	gone, stays := pkitest.Files(t, ca, "c", pki.KindController, "gone"), pkitest.Files(t, ca, "c", pki.KindController, "stays")
	in := shaken{c: make(chan net.Conn, 2)}
	for _, who := range []*pki.Files{gone, stays} {
		near, far := net.Pipe()
		client := tls.Client(near, pki.PeerClientTLS(who, wire.ALPNRaft, nil))
		conf := pki.PeerServerTLS(stays, nil)
		conf.NextProtos = []string{wire.ALPNRaft}
		server := tls.Server(far, conf)
		t.Cleanup(func() { _, _ = near.Close(), far.Close() })
		shaken := make(chan error, 1)
		go func() {
			err := client.Handshake()
			shaken <- err
			_, _ = client.Read(make([]byte, 1)) // session tickets
		}()
		if err := server.Handshake(); err != nil {
			t.Fatal(err)
		}
		if err := <-shaken; err != nil {
			t.Fatal(err)
		}
		in.c <- server
	}
	l := &raftLayer{Listener: in, conns: newConns(), verify: func(p pki.Principal) error {
		if p.ID == "gone" {
			return pki.ErrRevoked
		}
		return nil
	}}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t1, ok := c.(*raftConn).Conn.(*tls.Conn)
	if !ok {
		t.Fatalf("a %T", c)
	}
	if p, err := pki.FromCert(t1.ConnectionState().PeerCertificates[0]); err != nil || p.ID != "stays" {
		t.Errorf("raft was given a connection of %v, %v", p, err)
	}
	if n := len(l.conns.in); n != 1 {
		t.Errorf("%d connections are kept", n)
	}
}

// Raft has connections before the state is known: those of a controller that was removed
// end when it is.
func TestRaftLosesWhoTurnsOutToBeRemoved(t *testing.T) {
	w := newWay(t)
	conns := map[string]net.Conn{}
	for _, id := range []string{"gone", "stays"} {
		conns[id] = w.dial(w.files(pki.KindController, id), wire.ALPNRaft)
		c, err := w.Raft().Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	txn := state.NewTxn(state.NewStore().Snapshot())
	for id, revoked := range map[string]bool{"gone": true, "stays": false} {
		if err := txn.Apply(&dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: pki.URI("c", pki.KindController, id), Revoked: revoked}}}); err != nil {
			t.Fatal(err)
		}
	}
	w.Seed(txn.View())
	_ = conns["gone"].SetDeadline(time.Now().Add(5 * time.Second))
	ended(t, conns["gone"])
	_ = conns["stays"].SetDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := conns["stays"].Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection of a controller that stays: %v", err)
	}
}
