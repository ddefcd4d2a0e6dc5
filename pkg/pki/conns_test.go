package pki_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/pki/pkitest"
)

// door is a server of connections after their handshakes, as package mux hands them out.
type door struct {
	t      *testing.T
	me     *pki.Files
	conns  chan net.Conn
	closed chan struct{}
}

func newDoor(t *testing.T, me *pki.Files) *door {
	return &door{t: t, me: me, conns: make(chan net.Conn, 8), closed: make(chan struct{})}
}

func (d *door) Accept() (net.Conn, error) {
	select {
	case c := <-d.conns:
		return c, nil
	case <-d.closed:
		return nil, net.ErrClosed
	}
}
func (d *door) Close() error   { close(d.closed); return nil }
func (d *door) Addr() net.Addr { return &net.UnixAddr{Name: "door"} }

// meet returns both ends of a connection of who, nil for somebody without a certificate.
func (d *door) meet(who *pki.Files) (near, far *tls.Conn) {
	d.t.Helper()
	one, two := net.Pipe()
	client := &tls.Config{InsecureSkipVerify: true}
	if who != nil {
		client.Certificates = []tls.Certificate{who.Cert}
	}
	near = tls.Client(one, client)
	far = tls.Server(two, &tls.Config{Certificates: []tls.Certificate{d.me.Cert}, ClientAuth: tls.RequestClientCert, SessionTicketsDisabled: true})
	shaken := make(chan error, 1)
	go func() { shaken <- near.Handshake() }()
	if err := errors.Join(far.Handshake(), <-shaken); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _, _ = one.Close(), two.Close() })
	return near, far
}

// open reports whether the other end still has the connection of near.
func open(near *tls.Conn) bool {
	_ = near.SetReadDeadline(time.Now().Add(time.Second))
	_, err := near.Read(make([]byte, 1))
	var late net.Error
	return errors.As(err, &late) && late.Timeout()
}

// revocations are decided as a fleet would.
type revocations struct {
	mu    sync.Mutex // guards the fields below
	gone  map[string]bool
	asked map[string]int
}

func (r *revocations) verify(p pki.Principal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asked == nil {
		r.asked = map[string]int{}
	}
	r.asked[p.ID]++
	if r.gone[p.ID] {
		return pki.ErrRevoked
	}
	return nil
}

func (r *revocations) revoke(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone, r.asked = map[string]bool{id: true}, nil
}

func TestARevocationCutsItsConnectionsAndNoOthers(t *testing.T) {
	ca := pkitest.Authority(t, "c")
	me, one, two := pkitest.Files(t, ca, "c", pki.KindController, "me"), pkitest.Files(t, ca, "c", pki.KindNode, "one"), pkitest.Files(t, ca, "c", pki.KindNode, "two")
	synctest.Test(t, func(t *testing.T) {
		d, r := newDoor(t, me), &revocations{}
		conns := &pki.Conns{Verify: r.verify}
		l := conns.Listen(d)
		accept := func(who *pki.Files) (near *tls.Conn, at net.Conn) {
			t.Helper()
			near, far := d.meet(who)
			d.conns <- far
			at, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			return near, at
		}
		a, _ := accept(one)
		b, _ := accept(one)
		left, at := accept(one)
		other, _ := accept(two)
		go func() { _, _ = io.Copy(io.Discard, left) }() // for close_notify
		_ = at.Close()
		synctest.Wait()

		r.revoke("one")
		began := time.Now()
		conns.Cut() // nobody reads what TLS would say at the end
		if took := time.Since(began); took > 0 {
			t.Errorf("it took %v", took)
		}
		if open(a) || open(b) || !open(other) {
			t.Errorf("of one: %v, %v; of two: %v", open(a), open(b), open(other))
		}
		if r.asked["one"] != 2 || r.asked["two"] != 1 {
			t.Errorf("asked about %v: a connection that was closed is tracked still", r.asked)
		}

		// The next that is let in is two's: not one's, a stranger's, or what isn't TLS.
		nearOne, farOne := d.meet(one)
		stranger, farStranger := d.meet(nil)
		bare, farBare := net.Pipe()
		nearTwo, farTwo := d.meet(two)
		for _, c := range []net.Conn{farOne, farStranger, farBare, farTwo} {
			d.conns <- c
		}
		if _, err := l.Accept(); err != nil {
			t.Fatal(err)
		}
		if open(nearOne) || open(stranger) || !open(nearTwo) {
			t.Errorf("of one: %v, of a stranger: %v, of two: %v", open(nearOne), open(stranger), open(nearTwo))
		}
		if _, err := bare.Write([]byte{1}); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("what isn't TLS: %v", err)
		}
		_ = l.Close()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// A revocation that comes while a connection enters finds it: whoever is let in is
// already where Cut looks.
func TestARevocationDuringTheEntryCuts(t *testing.T) {
	ca := pkitest.Authority(t, "c")
	me, one := pkitest.Files(t, ca, "c", pki.KindController, "me"), pkitest.Files(t, ca, "c", pki.KindNode, "one")
	d := newDoor(t, me)
	conns, revoked := &pki.Conns{}, false
	conns.Verify = func(pki.Principal) error {
		if revoked {
			return pki.ErrRevoked
		}
		revoked = true
		conns.Cut() // just after this was decided
		return nil
	}
	near, far := d.meet(one)
	if leave, err := conns.Enter(far); err == nil {
		leave()
	}
	if open(near) {
		t.Error("it stays open")
	}
}
