package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/drover/drover/agent/resolver/resolverapi"
)

// writer takes an answer.
type writer struct {
	dns.ResponseWriter
	tcp bool
	got *dns.Msg
}

func (w *writer) LocalAddr() net.Addr {
	if w.tcp {
		return &net.TCPAddr{}
	}
	return &net.UDPAddr{}
}

func (w *writer) WriteMsg(m *dns.Msg) error {
	w.got = m
	_, err := m.Pack()
	return err
}

// none is the host without servers.
func none(t testing.TB) string {
	t.Helper()
	return t.TempDir()
}

func newResolver(t testing.TB, table *table, c resolverapi.Sandbox) *resolver {
	t.Helper()
	r := &resolver{table: table, upstream: newUpstream(none(t)), forwards: make(chan struct{}, 2), life: t.Context()}
	r.netns = r.upstream.from
	r.conf.Store(&c)
	return r
}

func ask(r *resolver, name string, of uint16, more ...func(*dns.Msg)) *dns.Msg {
	q := new(dns.Msg).SetQuestion(name, of)
	for _, f := range more {
		f(q)
	}
	w := &writer{}
	r.ServeDNS(w, q)
	return w.got
}

// text is an answer in a line, its records sorted.
func text(m *dns.Msg) string {
	var all []string
	for _, a := range m.Answer {
		all = append(all, strings.ReplaceAll(a.String(), "\t", " "))
	}
	slices.Sort(all)
	return strings.TrimSpace(dns.RcodeToString[m.Rcode] + " " + strings.Join(all, ", "))
}

func TestAnswers(t *testing.T) {
	r := newResolver(t, example(), resolverapi.Sandbox{Networks: in("r", "b")})
	for _, c := range []struct {
		name string
		of   uint16
		want string
	}{
		{"web-1.", dns.TypeA, "NOERROR web-1. 600 IN A 10.0.0.1"},
		{"WEB-1.", dns.TypeA, "NOERROR WEB-1. 600 IN A 10.0.0.1"}, // as it was asked
		{"web-1.", dns.TypeAAAA, "NOERROR web-1. 600 IN AAAA fd00::1"},
		{"web.", dns.TypeA, "NOERROR web. 600 IN A 10.0.0.1, web. 600 IN A 10.0.0.2"},
		{"db.", dns.TypeAAAA, "NOERROR"}, // a name without an address of the family
		{"db.", dns.TypeMX, "NOERROR"},
		{"nobody.", dns.TypeMX, "SERVFAIL"},
		{"nobody.", dns.TypeA, "SERVFAIL"}, // no server outside answers
		{"2.0.0.10.in-addr.arpa.", dns.TypePTR, "NOERROR 2.0.0.10.in-addr.arpa. 600 IN PTR web-2.red."},
		{"2.1.0.10.in-addr.arpa.", dns.TypePTR, "NOERROR 2.1.0.10.in-addr.arpa. 600 IN PTR web-2.Blue.net."},
		{"3.0.0.10.in-addr.arpa.", dns.TypePTR, "SERVFAIL"},
		{"web.", dns.TypeSRV, "SERVFAIL"},
		{"web.", dns.TypeTXT, "SERVFAIL"},
	} {
		m := ask(r, c.name, c.of)
		if got := text(m); got != c.want || !m.Response {
			t.Errorf("%s %s: %s, want %s", c.name, dns.TypeToString[c.of], got, c.want)
		}
	}
	chaos := func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS }
	if got := text(ask(r, "web.", dns.TypeA, chaos)); got != "SERVFAIL" {
		t.Errorf("another class: %s", got)
	}
}

// What is too long is cut, at random, and says so: the client asks again by TCP.
func TestManyAddresses(t *testing.T) {
	table := newTable()
	u := &resolverapi.Update{Full: true, Networks: []resolverapi.Network{{ID: "r", Name: "red"}}}
	for i := range 10_000 {
		u.Names = append(u.Names, resolverapi.Name{Network: "r", Task: fmt.Sprint(i), Node: "n", Running: true,
			IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}, Names: []string{fmt.Sprint("web-", i), "web"}})
	}
	table.change(u)
	r := newResolver(t, table, resolverapi.Sandbox{Networks: in("r")})
	if m := ask(r, "web-9999.", dns.TypeA); text(m) != "NOERROR web-9999. 600 IN A 10.0.39.15" || m.Truncated {
		t.Errorf("one of many: %v", m)
	}
	firsts := map[string]bool{}
	for range 20 {
		m := ask(r, "web.", dns.TypeA)
		if b, _ := m.Pack(); !m.Truncated || len(b) > dns.MinMsgSize || len(m.Answer) < 20 {
			t.Fatalf("%d addresses in %d bytes, cut: %v", len(m.Answer), len(b), m.Truncated)
		}
		firsts[m.Answer[0].String()] = true
	}
	if len(firsts) < 10 {
		t.Errorf("of 20 answers the first addresses were only %d: there is no rotation", len(firsts))
	}
	if m := ask(r, "web.", dns.TypeA, func(q *dns.Msg) { q.SetEdns0(1232, false) }); len(m.Answer) < 60 || !m.Truncated {
		t.Errorf("with more room there are %d addresses", len(m.Answer))
	}
	w := &writer{tcp: true}
	r.ServeDNS(w, new(dns.Msg).SetQuestion("web.", dns.TypeA))
	if b, err := w.got.Pack(); err != nil || len(w.got.Answer) < 4000 || len(b) > dns.MaxMsgSize {
		t.Errorf("by TCP there are %d addresses in %d bytes: %v", len(w.got.Answer), len(b), err)
	}
}

// outside is a server of which the test decides the answers.
func outside(t *testing.T, answer func(dns.ResponseWriter, *dns.Msg)) (addr, port string) {
	t.Helper()
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ = net.SplitHostPort(pc.LocalAddr().String())
	l, err := net.Listen("tcp4", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(answer)})
	serve(t, &dns.Server{Listener: l, Handler: dns.HandlerFunc(answer)})
	return "127.0.0.1", port
}

func serve(t *testing.T, s *dns.Server) {
	t.Helper()
	begun, done := make(chan struct{}), make(chan struct{})
	s.NotifyStartedFunc = func() { close(begun) }
	go func() { defer close(done); _ = s.ActivateAndServe() }()
	<-begun
	t.Cleanup(func() { _ = s.Shutdown(); <-done })
}

func address(q *dns.Msg, ip string) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}, A: net.ParseIP(ip)}}
	return m
}

func hostWith(t *testing.T, servers ...string) string {
	t.Helper()
	root := t.TempDir()
	writeResolv(t, root, "etc/resolv.conf", servers...)
	return root
}

func writeResolv(t *testing.T, root, file string, servers ...string) {
	t.Helper()
	text := "# servers\nsearch example.org\n"
	for _, s := range servers {
		text += "nameserver " + s + "\n"
	}
	path := filepath.Join(root, file)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func TestWhatNoNetworkKnowsIsAskedOutside(t *testing.T) {
	var asked atomic.Int32
	addr, port := outside(t, func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		m := address(q, "192.0.2.1")
		switch q.Question[0].Name {
		case "no.example.":
			m = new(dns.Msg).SetRcode(q, dns.RcodeNameError)
		case "fails.example.":
			m = new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
		case "short.example.":
			m.Truncated = w.LocalAddr().Network() == "udp"
		}
		_ = w.WriteMsg(m)
	})
	start := func(c resolverapi.Sandbox) *resolver {
		r := newResolver(t, example(), c)
		r.upstream = newUpstream(hostWith(t, "127.0.0.2", addr)) // the first refuses
		r.upstream.port = port
		r.netns = func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("the container reaches nothing")
		}
		return r
	}
	r := start(resolverapi.Sandbox{Networks: in("r"), Outside: true})
	for name, want := range map[string]string{
		"some.example.":  "NOERROR some.example. 5 IN A 192.0.2.1",
		"single.":        "NOERROR single. 5 IN A 192.0.2.1",
		"no.example.":    "NXDOMAIN",
		"fails.example.": "SERVFAIL",
		"web-1.":         "NOERROR web-1. 600 IN A 10.0.0.1",
	} {
		if got := text(ask(r, name, dns.TypeA)); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if m := ask(r, "short.example.", dns.TypeA); !m.Truncated {
		t.Error("the client does not hear that an answer was cut")
	}
	w := &writer{tcp: true}
	r.ServeDNS(w, new(dns.Msg).SetQuestion("short.example.", dns.TypeA))
	if w.got.Truncated || len(w.got.Answer) != 1 {
		t.Errorf("by TCP: %v", w.got)
	}

	before := asked.Load()
	r = start(resolverapi.Sandbox{Networks: in("r"), Outside: true, NdotsSet: true})
	if m := ask(r, "single.", dns.TypeA); text(m) != "NOERROR" || asked.Load() != before {
		t.Errorf("with the user's ndots, a name without a dot: %s", text(m))
	}
	if m := ask(r, "some.example.", dns.TypeA); text(m) != "NOERROR some.example. 5 IN A 192.0.2.1" {
		t.Errorf("with the user's ndots, a name with a dot: %s", text(m))
	}
	before = asked.Load()
	r = start(resolverapi.Sandbox{Networks: in("r")})
	if m := ask(r, "some.example.", dns.TypeA); text(m) != "SERVFAIL" || asked.Load() != before {
		t.Errorf("without a way outside: %s", text(m))
	}
	// The user's servers are asked from within the container only, and never the resolver itself.
	r = start(resolverapi.Sandbox{Networks: in("r"), Servers: ips(addr), Outside: true})
	if m := ask(r, "some.example.", dns.TypeA); text(m) != "SERVFAIL" || asked.Load() != before {
		t.Errorf("a server of the user's, unreachable: %s", text(m))
	}
	r = start(resolverapi.Sandbox{Networks: in("r"), Servers: ips(resolverapi.Address, addr)})
	r.netns = r.upstream.from
	if m := ask(r, "some.example.", dns.TypeA); text(m) != "NOERROR some.example. 5 IN A 192.0.2.1" {
		t.Errorf("a server of the user's: %s", text(m))
	}
}

// A container that floods its resolver is refused, and stops nobody else.
func TestQueriesThatWaitAreBounded(t *testing.T) {
	hold, waiting := make(chan struct{}), make(chan struct{}, 10)
	addr, port := outside(t, func(w dns.ResponseWriter, q *dns.Msg) {
		waiting <- struct{}{}
		<-hold
		_ = w.WriteMsg(address(q, "192.0.2.1"))
	})
	r := newResolver(t, example(), resolverapi.Sandbox{Networks: in("r"), Outside: true})
	r.upstream = newUpstream(hostWith(t, addr))
	r.upstream.port = port
	answers := make(chan string, 2)
	for range 2 {
		go func() { answers <- text(ask(r, "slow.example.", dns.TypeA)) }()
		<-waiting
	}
	if got := text(ask(r, "third.example.", dns.TypeA)); got != "REFUSED" {
		t.Errorf("one too many: %s", got)
	}
	if got := text(ask(r, "web-1.", dns.TypeA)); got != "NOERROR web-1. 600 IN A 10.0.0.1" {
		t.Errorf("a name of the fleet meanwhile: %s", got)
	}
	close(hold)
	for range 2 {
		if got := <-answers; got != "NOERROR slow.example. 5 IN A 192.0.2.1" {
			t.Errorf("one that waited: %s", got)
		}
	}
	if got := text(ask(r, "later.example.", dns.TypeA)); got != "NOERROR later.example. 5 IN A 192.0.2.1" {
		t.Errorf("afterwards: %s", got)
	}
}

// A container that goes waits for no server that is silent.
func TestWhatIsAskedEndsWithItsContainer(t *testing.T) {
	asked, hold := make(chan struct{}, 1), make(chan struct{})
	defer close(hold)
	addr, port := outside(t, func(dns.ResponseWriter, *dns.Msg) {
		asked <- struct{}{}
		<-hold
	})
	for _, tcp := range []bool{false, true} {
		r := newResolver(t, example(), resolverapi.Sandbox{Networks: in("r"), Outside: true})
		r.upstream = newUpstream(hostWith(t, addr))
		r.upstream.port = port
		r.life, r.end = context.WithCancel(t.Context())
		w, done := &writer{tcp: tcp}, make(chan struct{})
		began := time.Now()
		go func() {
			defer close(done)
			r.ServeDNS(w, new(dns.Msg).SetQuestion("slow.example.", dns.TypeA))
		}()
		<-asked
		r.end()
		<-done
		if got := text(w.got); got != "SERVFAIL" || time.Since(began) > askWithin/2 {
			t.Errorf("tcp %v: %s after %v", tcp, got, time.Since(began))
		}
	}
}

func TestTheHostsServers(t *testing.T) {
	root := t.TempDir()
	h := &hostServers{root: root}
	check := func(why, want string) {
		t.Helper()
		if got := fmt.Sprint(h.servers()); got != want {
			t.Errorf("%s: %s, want %s", why, got, want)
		}
	}
	check("no file", "[]")
	writeResolv(t, root, "etc/resolv.conf", "192.0.2.1", "junk", "2001:db8::1")
	check("a file", "[192.0.2.1 2001:db8::1]")
	writeResolv(t, root, "etc/resolv.conf", "127.0.0.53")
	check("systemd-resolved without its file", "[127.0.0.53]")
	writeResolv(t, root, "run/systemd/resolve/resolv.conf", "192.0.2.77")
	check("systemd-resolved", "[192.0.2.77]")
	writeResolv(t, root, "run/systemd/resolve/resolv.conf", "192.0.2.7", "192.0.2.8")
	check("another network", "[192.0.2.7 192.0.2.8]")
	file := filepath.Join(root, "etc/resolv.conf")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	check("the file is gone", "[]")
	writeResolv(t, root, "etc/resolv.conf", "192.0.2.9")
	check("it is back", "[192.0.2.9]")
	if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o755)); err != nil {
		t.Fatal(err)
	}
	check("it can't be read", "[192.0.2.9]")
}

func FuzzQueries(f *testing.F) {
	for _, name := range []string{"web.", "web-1.red.", "4.3.2.10.in-addr.arpa.", strings.Repeat("1.", 32) + "ip6.arpa.", "."} {
		for _, of := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypePTR, dns.TypeMX, dns.TypeSRV, dns.TypeANY} {
			b, err := new(dns.Msg).SetQuestion(name, of).Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	r := &resolver{table: example(), upstream: newUpstream(none(f)), forwards: make(chan struct{}, 1), life: f.Context()}
	r.conf.Store(&resolverapi.Sandbox{Networks: in("r", "b")})
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(dns.Msg)
		if q.Unpack(b) != nil {
			return
		}
		w := &writer{}
		r.ServeDNS(w, q)
		if w.got == nil {
			if len(q.Question) > 0 {
				t.Fatalf("no answer to %v", q)
			}
			return
		}
		if out, err := w.got.Pack(); err == nil && w.got.Id != q.Id {
			t.Fatalf("%d bytes for %d, to query %d", len(out), w.got.Id, q.Id)
		}
	})
}
