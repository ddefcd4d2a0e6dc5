package server

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/drover/drover/agent/resolver/resolverapi"
	"github.com/drover/drover/pkg/testenv"
)

// newNetns makes a network namespace with lo, gone with the test.
func newNetns(t testing.TB) netns.NsHandle {
	t.Helper()
	testenv.Root(t)
	type made struct {
		ns  netns.NsHandle
		err error
	}
	ch := make(chan made)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := netns.New()
		if err == nil {
			var lo netlink.Link
			if lo, err = netlink.LinkByName("lo"); err == nil {
				err = netlink.LinkSetUp(lo)
			}
		}
		ch <- made{ns, err}
	}()
	m := <-ch
	if m.err != nil {
		t.Fatal(m.err)
	}
	t.Cleanup(func() { _ = m.ns.Close() })
	return m.ns
}

func pathOf(ns netns.NsHandle) string { return fmt.Sprintf("/proc/self/fd/%d", int(ns)) }

// inside runs f in a namespace.
func inside(t testing.TB, ns netns.NsHandle, f func() error) error {
	t.Helper()
	ch := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			ch <- err
			return
		}
		ch <- f()
	}()
	return <-ch
}

// query asks 127.0.0.11 from within a namespace.
func query(t testing.TB, ns netns.NsHandle, network, name string, of uint16) string {
	t.Helper()
	return queryWithin(t, 2*time.Second, ns, network, name, of)
}

// answered reports whether anybody answers in a namespace.
func answered(t testing.TB, ns netns.NsHandle) bool {
	t.Helper()
	return !strings.HasPrefix(queryWithin(t, 100*time.Millisecond, ns, "udp", "web.", dns.TypeA), "error")
}

func queryWithin(t testing.TB, d time.Duration, ns netns.NsHandle, network, name string, of uint16) string {
	t.Helper()
	var out string
	err := inside(t, ns, func() error {
		c := &dns.Client{Net: network, Timeout: d}
		m, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, of), resolverapi.Address+":53")
		if err != nil {
			return err
		}
		out = text(m)
		return nil
	})
	if err != nil {
		return "error: " + err.Error()
	}
	return out
}

// process is a server in this process.
type process struct {
	t    testing.TB
	path string
	log  *bytes.Buffer
	done chan error
	conn *resolverapi.Conn
	last uint64
}

func start(t testing.TB, root string, idle time.Duration) *process {
	t.Helper()
	p := &process{t: t, path: filepath.Join(t.TempDir(), "s"), log: &bytes.Buffer{}, done: make(chan error, 1)}
	l, err := net.Listen("unix", p.path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		p.done <- Run(ctx, Options{Listener: l, Root: root, Idle: idle, Log: slog.New(slog.NewTextHandler(p.log, nil))})
		close(p.done)
	}()
	t.Cleanup(func() { cancel(); <-p.done })
	p.dial()
	return p
}

func (p *process) dial() {
	p.t.Helper()
	c, err := net.Dial("unix", p.path)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = c.Close() })
	p.conn = resolverapi.NewConn(c)
}

// tell returns what went wrong, by sandbox.
func (p *process) tell(u *resolverapi.Update) map[string]string {
	p.t.Helper()
	p.last++
	u.Number = p.last
	if err := p.conn.Write(u); err != nil {
		p.t.Fatal(err)
	}
	a := new(resolverapi.Ack)
	if err := p.conn.Read(a); err != nil || a.Number != p.last {
		p.t.Fatalf("update %d was acknowledged as %d: %v", p.last, a.Number, err)
	}
	return a.Errors
}

var red = []resolverapi.Network{{ID: "r", Name: "red"}}

func web(ip string) resolverapi.Name {
	return resolverapi.Name{Network: "r", Task: "t1", Node: "n2", IPs: ips(ip), Names: []string{"web"}, Running: true}
}

func sandbox(id string, ns netns.NsHandle) resolverapi.Sandbox {
	return resolverapi.Sandbox{ID: id, Netns: pathOf(ns), Networks: in("r")}
}

func TestNamesAreAnsweredInNamespaces(t *testing.T) {
	a, b := newNetns(t), newNetns(t)
	p := start(t, none(t), time.Minute)
	errs := p.tell(&resolverapi.Update{Full: true, Node: "n1", Networks: red, Names: []resolverapi.Name{web("10.0.0.1")},
		Sandboxes: []resolverapi.Sandbox{sandbox("a", a), sandbox("b", b), {ID: "c", Netns: "/nowhere"}}})
	if len(errs) != 1 || !strings.Contains(errs["c"], "/nowhere") {
		t.Errorf("errors: %v", errs)
	}
	for _, ns := range []netns.NsHandle{a, b} {
		for _, network := range []string{"udp", "tcp"} {
			if got := query(t, ns, network, "web.", dns.TypeA); got != "NOERROR web. 600 IN A 10.0.0.1" {
				t.Errorf("%s: %s", network, got)
			}
		}
	}
	// A server of the container's own has port 53, and is not in the way.
	err := inside(t, a, func() error {
		l, err := net.Listen("tcp4", "0.0.0.0:53")
		if err != nil {
			return err
		}
		pc, err := net.ListenPacket("udp4", "0.0.0.0:53")
		t.Cleanup(func() { _ = l.Close(); _ = pc.Close() })
		return err
	})
	if err != nil {
		t.Errorf("the container can't serve names itself: %v", err)
	}
	if got := query(t, a, "udp", "web.", dns.TypeA); got != "NOERROR web. 600 IN A 10.0.0.1" {
		t.Errorf("with such a server: %s", got)
	}

	// The agent dies: names go on. The next one tells the resolver anew.
	p.dial()
	if got := query(t, b, "udp", "web.", dns.TypeA); got != "NOERROR web. 600 IN A 10.0.0.1" {
		t.Errorf("without an agent: %s", got)
	}
	p.tell(&resolverapi.Update{Full: true, Node: "n1", Networks: red, Names: []resolverapi.Name{web("10.0.0.2")}, Sandboxes: []resolverapi.Sandbox{sandbox("b", b)}})
	if got := query(t, b, "udp", "web.", dns.TypeA); got != "NOERROR web. 600 IN A 10.0.0.2" {
		t.Errorf("with the next agent: %s", got)
	}
	if answered(t, a) {
		t.Error("in a sandbox that the next agent did not name")
	}
	p.tell(&resolverapi.Update{Names: []resolverapi.Name{{Network: "r", Task: "t1", Gone: true}}})
	if got := query(t, b, "udp", "web.", dns.TypeA); got != "SERVFAIL" {
		t.Errorf("a name that is gone: %s", got)
	}
	if got := query(t, b, "udp", "b.", dns.TypeA); got != "SERVFAIL" {
		t.Errorf("a name that nobody has: %s", got)
	}
}

// A container that starts again has another namespace under the same name.
func TestASandboxInAnotherNamespaceIsServedThere(t *testing.T) {
	a, b := newNetns(t), newNetns(t)
	path := filepath.Join(t.TempDir(), "ns")
	at := func(ns netns.NsHandle) resolverapi.Sandbox {
		_ = os.Remove(path)
		if err := os.Symlink(pathOf(ns), path); err != nil {
			t.Fatal(err)
		}
		return resolverapi.Sandbox{ID: "x", Netns: path, Networks: in("r")}
	}
	p := start(t, none(t), time.Minute)
	p.tell(&resolverapi.Update{Full: true, Networks: red, Names: []resolverapi.Name{web("10.0.0.1")}, Sandboxes: []resolverapi.Sandbox{at(a)}})
	p.tell(&resolverapi.Update{Sandboxes: []resolverapi.Sandbox{at(b)}})
	if got := query(t, b, "udp", "web.", dns.TypeA); got != "NOERROR web. 600 IN A 10.0.0.1" {
		t.Errorf("in the new one: %s", got)
	}
	if answered(t, a) {
		t.Error("in the old one")
	}
	// The same again changes what it is in, not its sockets.
	c := at(b)
	c.Networks = nil
	p.tell(&resolverapi.Update{Sandboxes: []resolverapi.Sandbox{c}})
	if got := query(t, b, "udp", "web.", dns.TypeA); got != "SERVFAIL" {
		t.Errorf("disconnected: %s", got)
	}
}

// A resolver that takes the place of another one redirects queries to itself at once.
func TestAnotherResolverTakesOver(t *testing.T) {
	ns := newNetns(t)
	u := func() *resolverapi.Update {
		return &resolverapi.Update{Full: true, Networks: red, Names: []resolverapi.Name{web("10.0.0.1")}, Sandboxes: []resolverapi.Sandbox{sandbox("a", ns)}}
	}
	old := start(t, none(t), time.Minute)
	old.tell(u())
	start(t, none(t), time.Minute).tell(u())
	if err := old.conn.Write(&resolverapi.Update{Quit: true}); err != nil {
		t.Fatal(err)
	}
	if err := <-old.done; err != nil {
		t.Errorf("the old one ended with %v", err)
	}
	for _, network := range []string{"udp", "tcp"} {
		if got := query(t, ns, network, "web.", dns.TypeA); got != "NOERROR web. 600 IN A 10.0.0.1" {
			t.Errorf("afterwards, by %s: %s", network, got)
		}
	}
}

func TestAResolverWithoutSandboxesEnds(t *testing.T) {
	ns := newNetns(t)
	p := start(t, none(t), time.Hour)
	p.tell(&resolverapi.Update{Full: true, Sandboxes: []resolverapi.Sandbox{sandbox("a", ns)}})
	short := start(t, none(t), 300*time.Millisecond)
	for ended := false; !ended; { // its agent probes it meanwhile
		select {
		case err := <-short.done:
			if ended = true; err != nil {
				t.Errorf("one that has had none: %v", err)
			}
		case <-time.After(50 * time.Millisecond):
			if short.conn.Write(&resolverapi.Update{}) == nil {
				_ = short.conn.Read(new(resolverapi.Ack))
			}
		}
	}
	select {
	case err := <-p.done:
		t.Errorf("one that has one ended: %v", err)
	default:
	}
}

// The user's servers are asked from the container's namespace, the host's from the host's.
func TestServersAreAskedFromTheRightNamespace(t *testing.T) {
	host, ns := newNetns(t), newNetns(t)
	answering := func(ns netns.NsHandle, ip string) {
		err := inside(t, ns, func() error {
			pc, err := net.ListenPacket("udp4", "127.0.0.1:53")
			if err == nil {
				serve(t, &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(address(q, ip)) })})
			}
			l, err := net.Listen("tcp4", "127.0.0.1:53")
			if err == nil {
				serve(t, &dns.Server{Listener: l, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(address(q, ip)) })})
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	answering(host, "192.0.2.1")
	answering(ns, "192.0.2.2")
	v := newVisitor()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); v.run(ctx) }()
	defer func() { cancel(); <-done }()
	dial := func(ns netns.NsHandle) dialer {
		f, err := os.Open(pathOf(ns))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return v.dial(f)
	}
	r := newResolver(t, example(), resolverapi.Sandbox{Outside: true})
	r.upstream, r.netns = newUpstream(hostWith(t, "127.0.0.1")), dial(ns)
	r.upstream.from = dial(host)
	for _, tcp := range []bool{false, true} {
		for want, servers := range map[string][]netip.Addr{"192.0.2.1": nil, "192.0.2.2": ips("127.0.0.1")} {
			r.conf.Store(&resolverapi.Sandbox{Outside: true, Servers: servers})
			w := &writer{tcp: tcp}
			r.ServeDNS(w, new(dns.Msg).SetQuestion("some.example.", dns.TypeA))
			if got := text(w.got); got != "NOERROR some.example. 5 IN A "+want {
				t.Errorf("servers %v: %s, want %s", servers, got, want)
			}
		}
	}
}

var garbage = [][]byte{{}, {0}, bytes.Repeat([]byte{0xff}, 600), bytes.Repeat([]byte{0xc0}, 64), bytes.Repeat([]byte{0}, 12), []byte("ab\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\xff")}

// What a container sends need not be a query.
func TestGarbageStopsNobody(t *testing.T) {
	ns := newNetns(t)
	p := start(t, none(t), time.Minute)
	p.tell(&resolverapi.Update{Full: true, Networks: red, Names: []resolverapi.Name{web("10.0.0.1")}, Sandboxes: []resolverapi.Sandbox{sandbox("a", ns)}})
	err := inside(t, ns, func() error {
		for _, network := range []string{"udp", "tcp"} {
			for _, b := range garbage {
				c, err := net.Dial(network, resolverapi.Address+":53")
				if err != nil {
					return err
				}
				_, _ = c.Write(b)
				_ = c.Close()
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"udp", "tcp"} {
		if got := query(t, ns, network, "web.", dns.TypeA); got != "NOERROR web. 600 IN A 10.0.0.1" {
			t.Errorf("by %s: %s", network, got)
		}
	}
}

func BenchmarkServe(b *testing.B) {
	p := start(b, none(b), time.Minute)
	p.tell(&resolverapi.Update{Full: true, Networks: red})
	for i := range b.N {
		b.StopTimer()
		s := sandbox(fmt.Sprint(i), newNetns(b))
		b.StartTimer()
		if errs := p.tell(&resolverapi.Update{Sandboxes: []resolverapi.Sandbox{s}}); len(errs) > 0 {
			b.Fatal(errs)
		}
	}
}

func BenchmarkAnswers(b *testing.B) {
	ns := newNetns(b)
	p := start(b, none(b), time.Minute)
	u := &resolverapi.Update{Full: true, Networks: red, Sandboxes: []resolverapi.Sandbox{sandbox("a", ns)}}
	for i := range 10_000 {
		u.Names = append(u.Names, resolverapi.Name{Network: "r", Task: fmt.Sprint(i), Node: "n", Running: true,
			IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}, Names: []string{fmt.Sprint("web-", i), fmt.Sprintf("%012x", i), "web"}})
	}
	began := time.Now()
	p.tell(u)
	told := time.Since(began)
	b.ResetTimer()
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		var c net.Conn
		err := inside(b, ns, func() (err error) {
			c, err = net.Dial("udp", resolverapi.Address+":53")
			return err
		})
		if err != nil {
			b.Error(err)
			return
		}
		conn := &dns.Conn{Conn: c}
		defer conn.Close()
		for i := 0; pb.Next(); i++ {
			if err := conn.WriteMsg(new(dns.Msg).SetQuestion(fmt.Sprintf("web-%d.", i%10_000), dns.TypeA)); err != nil {
				b.Error(err)
				return
			}
			if m, err := conn.ReadMsg(); err != nil || len(m.Answer) != 1 {
				b.Error(m, err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "answers/s")
	b.ReportMetric(float64(told.Microseconds())/1000, "ms/10000names")
}

func BenchmarkOneChangeOf10000Names(b *testing.B) {
	table := newTable()
	u := &resolverapi.Update{Full: true, Networks: red}
	for i := range 10_000 {
		u.Names = append(u.Names, resolverapi.Name{Network: "r", Task: fmt.Sprint(i), Node: "n", Running: true, IPs: ips("10.0.0.1"), Names: []string{fmt.Sprint("web-", i), "web"}})
	}
	table.change(u)
	for i := range b.N {
		n := u.Names[i%10_000]
		n.Running = i%2 == 0
		table.change(&resolverapi.Update{Names: []resolverapi.Name{n}})
	}
}
