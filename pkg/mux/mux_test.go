package mux

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/drover/drover/pkg/pki"
)

type world struct {
	ca *pki.Authority
	t  *testing.T
}

func newWorld(t *testing.T, cluster string, now time.Time) *world {
	ca, err := pki.NewAuthority(cluster, now)
	if err != nil {
		t.Fatal(err)
	}
	return &world{ca: ca, t: t}
}

func (w *world) files(uri string, now time.Time) *pki.Files {
	w.t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		w.t.Fatal(err)
	}
	der, err := w.ca.Issue(uri, key.Public(), []string{"127.0.0.1"}, now)
	if err != nil {
		w.t.Fatal(err)
	}
	dir := w.t.TempDir()
	if err := pki.WriteFiles(dir, [][]byte{w.ca.Cert.Raw}, der, key, nil); err != nil {
		w.t.Fatal(err)
	}
	f, err := pki.LoadFiles(dir)
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

// serve runs a mux with an API, and a peers' protocol that only nodes may use
// and of which one node is revoked. Both answer one line.
func serve(t *testing.T, w *world) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := w.files(pki.URI("c", pki.KindController, "1"), time.Now())
	m := New(l, slog.New(slog.DiscardHandler))
	api := pki.ServerTLS(f, nil)
	api.ClientAuth = tls.VerifyClientCertIfGiven
	apiL := m.Handle(api, "h2", "http/1.1", "")
	revoked := func(p pki.Principal) error {
		if p.ID == "gone" {
			return pki.ErrRevoked
		}
		return nil
	}
	peerL := m.Handle(pki.PeerServerTLS(f, pki.All(pki.Kinds(pki.KindNode), revoked)), "peer/1")
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) }), ReadHeaderTimeout: time.Second}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{}, 3)
	go func() { _ = srv.Serve(apiL); done <- struct{}{} }()
	go func() {
		for {
			c, err := peerL.Accept()
			if err != nil {
				break
			}
			_, _ = io.WriteString(c, "peer")
			_ = c.Close()
		}
		done <- struct{}{}
	}()
	go func() { _ = m.Run(ctx); done <- struct{}{} }()
	t.Cleanup(func() {
		cancel()
		_ = srv.Close()
		for range 3 {
			<-done
		}
		goleak.VerifyNone(t)
	})
	return l.Addr().String()
}

func peer(addr string, f *pki.Files, alpn string) (string, error) {
	c, err := tls.Dial("tcp", addr, pki.PeerClientTLS(f, alpn, pki.Kinds(pki.KindController)))
	if err != nil {
		return "", err
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	return string(b), err
}

func TestPeersAreCheckedByChainRoleAndRevocationNotByTheClock(t *testing.T) {
	now := time.Now()
	w := newWorld(t, "c", now.Add(-20*365*24*time.Hour))
	other := newWorld(t, "c", now)
	addr := serve(t, w)
	node := func(id string) string { return pki.URI("c", pki.KindNode, id) }
	for name, c := range map[string]struct {
		f    *pki.Files
		alpn string
		ok   bool
	}{
		"a node":            {w.files(node("1"), now), "peer/1", true},
		"an expired node":   {w.files(node("1"), now.Add(-10*365*24*time.Hour)), "peer/1", true},
		"a node in future":  {w.files(node("1"), now.Add(5*365*24*time.Hour)), "peer/1", true},
		"a revoked node":    {w.files(node("gone"), now), "peer/1", false},
		"a user":            {w.files(pki.URI("c", pki.KindUser, "1"), now), "peer/1", false},
		"a stranger's node": {other.files(node("1"), now), "peer/1", false},
		"another cluster":   {w.files(pki.URI("d", pki.KindNode, "1"), now), "peer/1", false},
		"unknown ALPN":      {w.files(node("1"), now), "nope/9", false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := peer(addr, c.f, c.alpn)
			if ok := err == nil && got == "peer"; ok != c.ok {
				t.Fatalf("got %q, %v; want ok=%v", got, err, c.ok)
			}
		})
	}
}

func TestAPIServesEveryHTTPClient(t *testing.T) {
	w := newWorld(t, "c", time.Now())
	addr := serve(t, w)
	pool := w.files(pki.URI("c", pki.KindUser, "u"), time.Now()).Pool()
	for name, c := range map[string]struct {
		protos []string
		h2     bool
		want   string
	}{
		"h2":                {[]string{"h2"}, true, "HTTP/2.0"},
		"http/1.1":          {[]string{"http/1.1"}, false, "HTTP/1.1"},
		"no ALPN as docker": {nil, false, "HTTP/1.1"},
	} {
		t.Run(name, func(t *testing.T) {
			tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, NextProtos: c.protos}, ForceAttemptHTTP2: c.h2}
			defer tr.CloseIdleConnections()
			r, err := (&http.Client{Transport: tr}).Get("https://" + addr)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Body.Close()
			if b, _ := io.ReadAll(r.Body); string(b) != c.want {
				t.Fatalf("served as %s, want %s", b, c.want)
			}
		})
	}
}

func TestGarbageOnThePortDisturbsNobody(t *testing.T) {
	w := newWorld(t, "c", time.Now())
	addr := serve(t, w)
	for _, s := range []string{"", "GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01", strings.Repeat("\xff", 1<<16)} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, s)
		_ = c.(*net.TCPConn).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, context.DeadlineExceeded) {
			t.Fatal("the port keeps a truncated handshake open")
		}
		_ = c.Close()
	}
	got, err := peer(addr, w.files(pki.URI("c", pki.KindNode, "1"), time.Now()), "peer/1")
	if err != nil || got != "peer" {
		t.Fatalf("after garbage: %q %v", got, err)
	}
}

// hold runs a mux whose connections stay open until the test ends.
func hold(t *testing.T, w *world) (addr string, config *tls.Config) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := w.files(pki.URI("c", pki.KindController, "1"), time.Now())
	m := New(l, slog.New(slog.DiscardHandler))
	api := pki.ServerTLS(f, nil)
	api.ClientAuth = tls.VerifyClientCertIfGiven
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for _, in := range []net.Listener{m.Handle(api, "http/1.1"), m.Handle(pki.PeerServerTLS(f, pki.Kinds(pki.KindNode)), "peer/1")} {
		all.Go(func() {
			for {
				c, err := in.Accept()
				if err != nil {
					return
				}
				all.Go(func() { // until the other end closes, or the test
					stop := context.AfterFunc(ctx, func() { _ = c.Close() })
					defer stop()
					_, _ = io.Copy(io.Discard, c)
					_ = c.Close()
				})
			}
		})
	}
	all.Go(func() { _ = m.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		all.Wait()
		goleak.VerifyNone(t)
	})
	return l.Addr().String(), pki.PeerClientTLS(w.files(pki.URI("c", pki.KindNode, "1"), time.Now()), "peer/1", pki.Kinds(pki.KindController))
}

// A host has its share of connections without a certificate and no more: a newcomer
// evicts another. So nobody who shares a host's address, as its containers do, locks that
// host out. Other hosts are not affected.
func TestConnectionsWithoutACertificateAreLimitedPerSource(t *testing.T) {
	w := newWorld(t, "c", time.Now())
	addr, node := hold(t, w)
	stranger := &tls.Config{RootCAs: node.RootCAs, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}
	dial := func(from net.IP, conf *tls.Config) net.Conn {
		t.Helper()
		c, err := tls.DialWithDialer(&net.Dialer{LocalAddr: &net.TCPAddr{IP: from}}, "tcp", addr, conf)
		if err != nil {
			t.Fatalf("%s is kept out: %v", from, err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	here, elsewhere := net.IPv4(127, 0, 0, 1), net.IPv4(127, 0, 0, 2)
	const more = 3
	cut := make(chan struct{}, MaxUnknown+2*more)
	open := func(conf *tls.Config) {
		c := dial(here, conf)
		go func() {
			_, _ = c.Read(make([]byte, 1)) // nothing is ever said
			cut <- struct{}{}
		}()
	}
	for range MaxUnknown + more {
		open(stranger)
	}
	open(node)
	for range more + 1 {
		select {
		case <-cut:
		case <-time.After(20 * time.Second):
			t.Fatalf("more than %d connections of one host stay open", MaxUnknown)
		}
	}
	for range more {
		open(node)
	}
	dial(elsewhere, node)
}

// When all hosts together have too many, the one with the most loses one.
func TestStrangersOfManySourcesAreLimitedTogether(t *testing.T) {
	s := newStrangers(3, 9, 6)
	a1, _ := s.enter(nil, "a")
	for i, c := range []struct{ source, gives string }{{"a", ""}, {"a", ""}, {"a", "a"}, {"b", ""}, {"c", ""}, {"c", ""}, {"d", "a"}} {
		_, out := s.enter(nil, c.source)
		if out == nil && c.gives != "" || out != nil && out.place.source != c.gives {
			t.Fatalf("%d: %s came, and %+v went", i, c.source, out)
		}
	}
	s.leave(a1) // wherever it is by now
	s.leave(a1)
	consistent(t, s)
	for p := range s.of {
		for len(s.of[p]) > 0 {
			s.leave(s.of[p][0])
		}
	}
	if s.n != 0 || len(s.of) != 0 {
		t.Fatalf("%d are left: %v", s.n, s.of)
	}
}

// consistent checks that each connection is counted once, where it says that it is.
func consistent(t *testing.T, s *strangers) {
	t.Helper()
	n := 0
	for p, of := range s.of {
		for i, c := range of {
			if c.at != i || c.place != p {
				t.Fatalf("%v has %+v at %d", p, c, i)
			}
			n++
		}
	}
	if n != s.n || n > s.all {
		t.Fatalf("%d are counted as %d, of %d at most", n, s.n, s.all)
	}
}

// Hosts behind one address reconnect all at once: once one of them has shown a
// certificate, they are not in each other's way. That is forgotten a while after the last
// of them left, and what shows no certificate has no more places there than elsewhere.
func TestASourceOfCertificatesHasMoreHandshakesAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStrangers(MaxUnknown, maxShaking, maxUnknown)
		burst := func(what string, n, cut int) {
			t.Helper()
			var in []*stranger
			evicted := 0
			for range n {
				c, out := s.enter(nil, "nat")
				in = append(in, c)
				if out != nil {
					evicted++
				}
			}
			if evicted != cut {
				t.Errorf("%s: %d of %d were cut, want %d", what, evicted, n, cut)
			}
			consistent(t, s)
			for _, c := range in {
				s.leave(c)
			}
		}
		burst("unknown", 200, 200-MaxUnknown)
		host, _ := s.enter(nil, "nat")
		s.shown(host)
		burst("a host is connected", 200, 0)
		burst("a flood", 2000, 2000-maxShaking)
		time.Sleep(48 * time.Hour) // a session is long
		burst("it is connected still", 200, 0)
		s.leave(host)
		s.leave(host)
		time.Sleep(knownFor - time.Second)
		burst("it has just left", 200, 0)
		for range 200 {
			c, _ := s.enter(nil, "nat")
			s.stay(c)
		}
		if n := len(s.of[place{"nat", true}]); n != MaxUnknown || s.n != n {
			t.Errorf("%d stay without a certificate, %d in all", n, s.n)
		}
		for _, c := range slices.Clone(s.of[place{"nat", true}]) {
			s.leave(c)
		}
		time.Sleep(time.Second)
		burst("it left long ago", 200, 200-MaxUnknown)
	})
}

// Whatever connections do, a source is bounded, all together are, and so is what is
// remembered of sources.
func TestStrangersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each, shaking, all = 4, 12, 40
		s := newStrangers(each, shaking, all)
		var conns []*stranger
		for range 20_000 {
			source := fmt.Sprint(rand.N(6))
			if rand.N(10) == 0 {
				source = fmt.Sprint(rand.N(3 * maxKnown))
			}
			switch rand.N(4) {
			case 0, 1:
				c, _ := s.enter(nil, source)
				conns = append(conns, c)
			case 2:
				if c := anyOf(append(conns, &stranger{at: -1})); rand.N(2) == 0 {
					s.stay(c)
				} else {
					s.shown(c)
				}
			case 3:
				if len(conns) > 0 {
					i := rand.N(len(conns))
					s.leave(conns[i])
					conns = slices.Delete(conns, i, i+1)
				}
			}
			consistent(t, s)
			for p, of := range s.of {
				if most := map[bool]int{true: each, false: shaking}[p.done]; len(of) > most {
					t.Fatalf("%v has %d, of %d at most", p, len(of), most)
				}
			}
		}
		if len(s.known) > maxKnown {
			t.Errorf("%d sources are remembered", len(s.known))
		}
		for _, c := range conns {
			s.leave(c)
		}
		for source, k := range s.known {
			if k.open != 0 {
				t.Errorf("%d connections of %s are counted, and none is open", k.open, source)
			}
		}
	})
}

func TestSourcesThatAreRememberedAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStrangers(4, 12, 40)
		visit := func(source string) *stranger {
			c, _ := s.enter(nil, source)
			s.shown(c)
			return c
		}
		stays := visit("stays")
		for i := range maxKnown + 100 {
			s.leave(visit(fmt.Sprint(i)))
		}
		if len(s.known) != maxKnown || !s.isKnown("stays") {
			t.Errorf("%d are remembered, who stays among them: %v", len(s.known), s.isKnown("stays"))
		}
		time.Sleep(knownFor)
		s.leave(visit("late"))
		if len(s.known) != 2 {
			t.Errorf("%d are remembered after their time", len(s.known))
		}
		s.leave(stays)
	})
}

// The same over TLS: many hosts behind one address have their connections open before
// the first of them has shown its certificate.
func TestHostsBehindOneAddressReconnectTogether(t *testing.T) {
	w := newWorld(t, "c", time.Now())
	addr, node := hold(t, w)
	first, err := tls.Dial("tcp", addr, node)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Close() }()
	conns := make([]net.Conn, 3*MaxUnknown)
	for i := range conns {
		if conns[i], err = net.Dial("tcp", addr); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conns[i].Close() }()
	}
	config := node.Clone()
	config.ServerName = "127.0.0.1"
	var all sync.WaitGroup
	for _, c := range conns {
		all.Go(func() {
			if err := tls.Client(c, config).HandshakeContext(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// Connections that send nothing at all count too; one that has shown its certificate
// doesn't.
func TestWhoShowedACertificateIsNotCounted(t *testing.T) {
	w := newWorld(t, "c", time.Now())
	addr, node := hold(t, w)
	for i := range MaxUnknown + 10 {
		c, err := tls.Dial("tcp", addr, node)
		if err != nil {
			t.Fatalf("connection %d: %v", i+1, err)
		}
		defer func() { _ = c.Close() }()
	}
	cut := make(chan struct{}, maxShaking+1)
	for range maxShaking + 1 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_ = c.SetReadDeadline(time.Now().Add(HandshakeTimeout - time.Second))
		go func() {
			if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				cut <- struct{}{}
			}
		}()
	}
	select {
	case <-cut:
	case <-time.After(HandshakeTimeout - time.Second):
		t.Fatal("one more than the share is kept open")
	}
}
