package network

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/testenv"
)

// world is a host and a neighbour on one cable, each a namespace of its own; the
// test's thread lives in the host.
type world struct {
	t         testing.TB
	host, nbr netns.NsHandle
	n         *Network
	o         Options
	gateway   string // set by gatewayOnce
}

const (
	hostIP = "10.99.0.1"
	nbrIP  = "10.99.0.2"
)

// on connects to the bridge, with ports.
func on(ports []*dv1.Port) []Connection { return []Connection{{Network: Bridge, Ports: ports}} }

func ip(s *Sandbox) netip.Addr { return s.Default().IPv4().Addr() }

func newWorld(t testing.TB) *world {
	t.Helper()
	testenv.Root(t)
	runtime.LockOSThread() // ends with the test's goroutine
	w := &world{t: t}
	var err error
	if w.nbr, err = netns.New(); err != nil {
		t.Fatal(err)
	}
	if w.host, err = netns.New(); err != nil {
		t.Fatal(err)
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(w.nbr)}
	must(t, netlink.LinkAdd(veth))
	h, err := netlink.NewHandleAt(w.nbr)
	must(t, err)
	defer h.Close()
	hh, err := netlink.NewHandle()
	must(t, err)
	defer hh.Close()
	for _, e := range []struct {
		h        *netlink.Handle
		dev, cid string
	}{{hh, "lo", ""}, {hh, "up0", hostIP + "/24"}, {h, "lo", ""}, {h, "eth0", nbrIP + "/24"}} {
		l, err := e.h.LinkByName(e.dev)
		must(t, err)
		if e.cid != "" {
			a, err := netlink.ParseAddr(e.cid)
			must(t, err)
			must(t, e.h.AddrAdd(l, a))
		}
		must(t, e.h.LinkSetUp(l))
	}
	dir := t.TempDir()
	w.o = Options{Dir: filepath.Join(dir, "net"), NetnsDir: filepath.Join(dir, "ns"), Bridge: "drv0", Subnet: netip.MustParsePrefix("10.210.7.0/24"), Reserved: []uint16{7443}}
	w.open()
	t.Cleanup(func() {
		_ = w.n.Close()
		_ = w.n.Destroy(t.Context())
		if left, _ := os.ReadDir(w.o.NetnsDir); len(left) > 0 {
			t.Errorf("namespaces are left: %v", left)
		}
		_, _ = w.host.Close(), w.nbr.Close()
	})
	return w
}

func (w *world) open() {
	w.t.Helper()
	n, err := Open(w.t.Context(), w.o)
	must(w.t, err)
	w.n = n
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// name returns ids that differ in their first characters, as real ones do.
func name(i int) string { return fmt.Sprintf("%04d", i) + strings.Repeat("f", 60) }

// in runs f on a thread inside ns.
func in[T any](ns netns.NsHandle, f func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	c := make(chan result)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			c <- result{err: err}
			return
		}
		v, err := f()
		c <- result{v, err}
	}()
	r := <-c
	return r.v, r.err
}

// answer has the attachment answer its name on a TCP and a UDP port.
func (w *world) answer(a *Sandbox, port uint16) {
	w.t.Helper()
	ns, err := netns.GetFromPath(a.Netns)
	must(w.t, err)
	defer ns.Close()
	carried()
	l, err := in(ns, func() (net.Listener, error) { carried(); return net.Listen("tcp4", fmt.Sprintf(":%d", port)) })
	must(w.t, err)
	u, err := in(ns, func() (net.PacketConn, error) { return net.ListenPacket("udp4", fmt.Sprintf(":%d", port)) })
	must(w.t, err)
	w.t.Cleanup(func() { _ = l.Close(); _ = u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, a.ID)
			_ = c.Close()
		}
	}()
	go func() {
		b := make([]byte, 64)
		for {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo([]byte(a.ID), from)
		}
	}()
}

func (w *world) ask(from netns.NsHandle, proto, addr string) (string, error) {
	return w.askWithin(time.Second, from, proto, addr)
}

func (w *world) askWithin(d time.Duration, from netns.NsHandle, proto, addr string) (string, error) {
	carried()
	return in(from, func() (string, error) {
		carried()
		c, err := net.DialTimeout(proto+"4", addr, d)
		if err != nil {
			return "", err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(d))
		if proto == "udp" {
			if _, err := io.WriteString(c, "?"); err != nil {
				return "", err
			}
			b := make([]byte, 128)
			n, err := c.Read(b)
			return string(b[:n]), err
		}
		b, err := io.ReadAll(c)
		return string(b), err
	})
}

// carried waits until the kernel has noticed that the cables of this thread's namespace are
// plugged in, which it does behind the answer. What is sent before is dropped, and is not
// sent again for a second.
func carried() {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		links, err := netlink.LinkList()
		if err == nil && !slices.ContainsFunc(links, func(l netlink.Link) bool {
			a := l.Attrs()
			return l.Type() == "veth" && a.Flags&net.FlagUp != 0 && a.OperState != netlink.OperUp
		}) {
			return
		}
	}
}

func publish(ports ...string) []*dv1.Port {
	var out []*dv1.Port
	for _, p := range ports {
		var ip, proto string
		var host, cont uint32
		f := strings.Split(p, " ")
		ip, proto = f[0], f[1]
		_, _ = fmt.Sscan(f[2], &host)
		_, _ = fmt.Sscan(f[3], &cont)
		out = append(out, &dv1.Port{Ip: ip, Proto: proto, Host: host, Container: cont})
	}
	return out
}

func TestPublishedPortsAreReachedFromEverywhere(t *testing.T) {
	w := newWorld(t)
	a, err := w.n.Attach(t.Context(), name(1), on(publish("0.0.0.0 tcp 8080 80", "0.0.0.0 udp 8080 80", "127.0.0.1 tcp 8081 80")))
	must(t, err)
	w.answer(a, 80)
	b, err := w.n.Attach(t.Context(), name(2), on(nil))
	must(t, err)
	self, err := netns.GetFromPath(a.Netns)
	must(t, err)
	defer self.Close()
	other, err := netns.GetFromPath(b.Netns)
	must(t, err)
	defer other.Close()
	for what, c := range map[string]struct {
		from  netns.NsHandle
		proto string
		addr  string
		ok    bool
	}{
		"from another host":              {w.nbr, "tcp", hostIP + ":8080", true},
		"udp from another host":          {w.nbr, "udp", hostIP + ":8080", true},
		"from the host by its address":   {w.host, "tcp", hostIP + ":8080", true},
		"from the host by 127.0.0.1":     {w.host, "tcp", "127.0.0.1:8080", true},
		"udp by 127.0.0.1":               {w.host, "udp", "127.0.0.1:8080", true},
		"loopback only, from the host":   {w.host, "tcp", "127.0.0.1:8081", true},
		"loopback only, from outside":    {w.nbr, "tcp", hostIP + ":8081", false},
		"from itself, by the host":       {self, "tcp", hostIP + ":8080", true},
		"from another container":         {other, "tcp", hostIP + ":8080", true},
		"container to container":         {other, "tcp", ip(a).String() + ":80", true},
		"an unpublished port":            {w.nbr, "tcp", hostIP + ":8082", false},
		"127.0.0.1 of another container": {other, "tcp", "127.0.0.1:8080", false},
	} {
		got, err := w.ask(c.from, c.proto, c.addr)
		if ok := err == nil && got == a.ID; ok != c.ok {
			t.Errorf("%s: %q, %v; want an answer: %v", what, got, err, c.ok)
		}
	}
	must(t, w.n.Detach(t.Context(), a.ID))
	if got, err := w.ask(w.nbr, "tcp", hostIP+":8080"); err == nil {
		t.Errorf("answers after Detach: %q", got)
	}
}

func TestOutgoingTrafficIsMasqueraded(t *testing.T) {
	w := newWorld(t)
	l, err := in(w.nbr, func() (net.Listener, error) { return net.Listen("tcp4", nbrIP+":9000") })
	must(t, err)
	defer l.Close()
	from := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		from <- c.RemoteAddr().(*net.TCPAddr).IP.String()
		_ = c.Close()
	}()
	a, err := w.n.Attach(t.Context(), name(1), on(nil))
	must(t, err)
	ns, err := netns.GetFromPath(a.Netns)
	must(t, err)
	defer ns.Close()
	if _, err := w.ask(ns, "tcp", nbrIP+":9000"); err != nil {
		t.Fatal(err)
	}
	if got := <-from; got != hostIP {
		t.Fatalf("the neighbour saw %s, not the host", got)
	}
}

func TestTakenPortsAreRefusedInDockersWordsAndLeaveNothing(t *testing.T) {
	w := newWorld(t)
	_, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 8080 80")))
	must(t, err)
	l, err := net.Listen("tcp4", ":8090")
	must(t, err)
	defer l.Close()
	for port, words := range map[string]string{
		" tcp 8080 80":          "Bind for 0.0.0.0:8080 failed: port is already allocated",
		"127.0.0.1 tcp 8080 80": "Bind for 127.0.0.1:8080 failed: port is already allocated",
		" tcp 8090 80":          "failed to bind host port 0.0.0.0:8090/tcp: address already in use",
		" tcp 7443 80":          "reserved",
		"203.0.113.9 tcp 1 80":  "cannot assign requested address",
		" dccp 1 80":            "dccp",
	} {
		_, err := w.n.Attach(t.Context(), name(2), on(publish(" tcp 8085 80", port)))
		var pe *PortError
		if !errors.As(err, &pe) || !strings.Contains(pe.Message, words) {
			t.Errorf("%s: %v, want %q", port, err, words)
		}
	}
	if got := w.n.List(); len(got) != 1 {
		t.Fatalf("attachments %v", got)
	}
	free, err := net.Listen("tcp4", ":8085") // the refused container's other port
	must(t, err)
	_ = free.Close()
	if _, err := w.n.Attach(t.Context(), name(3), on(publish(" udp 8080 80"))); err != nil {
		t.Errorf("the same number over udp: %v", err)
	}
}

func TestARestartedAgentHoldsItsPortsAgainWhileContainersGoOn(t *testing.T) {
	w := newWorld(t)
	a, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 0 80")))
	must(t, err)
	if a.Endpoints[0].Ports[0].Host == 0 {
		t.Fatal("no port was chosen")
	}
	w.answer(a, 80)
	must(t, w.n.Close())
	addr := fmt.Sprintf("%s:%d", hostIP, a.Endpoints[0].Ports[0].Host)
	if got, err := w.ask(w.nbr, "tcp", addr); got != a.ID {
		t.Fatalf("without an agent: %q %v", got, err)
	}
	w.open()
	if got, err := w.ask(w.nbr, "tcp", addr); got != a.ID {
		t.Fatalf("after the restart: %q %v", got, err)
	}
	if l, err := net.Listen("tcp4", fmt.Sprintf(":%d", a.Endpoints[0].Ports[0].Host)); err == nil {
		_ = l.Close()
		t.Fatal("the port is not held after the restart")
	}
	b, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 0 80")))
	must(t, err)
	if ip(b) != ip(a) || b.Endpoints[0].Ports[0] != a.Endpoints[0].Ports[0] {
		t.Fatalf("attached again as %+v, was %+v", b, a)
	}
	c, err := w.n.Attach(t.Context(), name(2), on(nil))
	must(t, err)
	if ip(c) == ip(a) {
		t.Fatal("an address was given out twice")
	}
}

// After a reboot there is no link and no namespace, only the file.
func TestAfterARebootTheAddressIsTheSame(t *testing.T) {
	w := newWorld(t)
	a, err := w.n.Attach(t.Context(), name(1), on(nil))
	must(t, err)
	must(t, w.n.Close())
	must(t, unlink(a))
	w.open()
	b, err := w.n.Attach(t.Context(), name(1), on(nil))
	must(t, err)
	if ip(b) != ip(a) || !linked(b) {
		t.Fatalf("after a reboot: %+v, was %+v", b, a)
	}
}

func TestAddressesRunOutWithASentence(t *testing.T) {
	w := newWorld(t)
	must(t, w.n.Destroy(t.Context()))
	must(t, w.n.Close())
	w.o.Subnet = netip.MustParsePrefix("10.210.8.0/29")
	w.open()
	for i := range 5 {
		_, err := w.n.Attach(t.Context(), name(i), on(nil))
		must(t, err)
	}
	if _, err := w.n.Attach(t.Context(), name(9), on(nil)); err == nil || !strings.Contains(err.Error(), "no address is left") {
		t.Fatalf("got %v", err)
	}
	must(t, w.n.Detach(t.Context(), name(3)))
	must(t, w.n.Detach(t.Context(), name(3))) // again is no error
	_, err := w.n.Attach(t.Context(), name(9), on(nil))
	must(t, err)
}

func TestABadFileKeepsNoNodeFromWorking(t *testing.T) {
	w := newWorld(t)
	good, err := w.n.Attach(t.Context(), name(0), on(publish(" tcp 8080 80")))
	must(t, err)
	w.answer(good, 80)
	kinds := []string{"", "{", "{}", `{"Version":9}`, `{"Version":1,"ID":"../x"}`, "\x00\x00"}
	var bad []*Sandbox
	for i := range kinds {
		a, err := w.n.Attach(t.Context(), name(i+1), on(publish(fmt.Sprintf(" tcp %d 80", 8090+i))))
		must(t, err)
		bad = append(bad, a)
	}
	must(t, w.n.Close())
	for i, b := range kinds {
		must(t, os.WriteFile(w.n.file(name(i+1)), []byte(b), 0o600))
	}
	gone := name(99) // no container of that id is there
	must(t, os.WriteFile(w.n.file(gone), []byte("x"), 0o600))
	must(t, os.WriteFile(w.n.file(gone)+".new", []byte("{"), 0o600))
	w.open()
	w.reached("the others", good, hostIP+":8080")
	if w.n.Get(gone) != nil {
		t.Error("a container that is not there has a sandbox")
	}
	if left, err := filepath.Glob(w.n.file(gone) + "*"); err != nil || len(left) > 0 {
		t.Errorf("what a power cut left stays: %s, %v", left, err)
	}
	for i, was := range bad {
		a := w.n.Get(was.ID)
		if a == nil || ip(a) != ip(was) || a.Endpoints[0].MAC != was.Endpoints[0].MAC || a.Netns != was.Netns || len(a.Endpoints[0].Ports) > 0 || !linked(a) {
			t.Errorf("after %q it is %+v, was %+v", kinds[i], a, was)
		}
		if b, err := os.ReadFile(w.n.file(was.ID) + ".bad"); err != nil || string(b) != kinds[i] {
			t.Errorf("set aside is %q, %v", b, err)
		}
		must(t, w.n.Detach(t.Context(), was.ID)) // as a restart does
		a, err := w.n.Attach(t.Context(), was.ID, on(publish(fmt.Sprintf(" tcp %d 80", 8090+i))))
		must(t, err)
		w.answer(a, 80)
		w.reached("started again", a, fmt.Sprintf("%s:%d", hostIP, 8090+i))
	}
	must(t, w.n.Close())
	w.open() // what was set aside is not looked at again
	if got := len(w.n.List()); got != len(kinds)+1 {
		t.Errorf("%d sandboxes, want %d", got, len(kinds)+1)
	}
}

// A port that somebody took while no agent ran costs a container the port, and not the
// rules that it is held to.
func TestAContainerWhosePortIsTakenIsNobodyElse(t *testing.T) {
	w := newWorld(t)
	a, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 8080 80")))
	must(t, err)
	must(t, w.n.Close())
	l, err := net.Listen("tcp4", ":8080")
	must(t, err)
	defer l.Close()
	w.open()
	for _, set := range []string{"links", "ports"} {
		if got := nft(t, "list set bridge drover_drv0 "+set+"\n"); !strings.Contains(got, a.Endpoints[0].Link) {
			t.Errorf("its link is not in\n%s", got)
		}
	}
	if got := nft(t, "list map inet drover_drv0 any_tcp\n"); strings.Contains(got, "8080") {
		t.Errorf("the port leads to it:\n%s", got)
	}
}

// What could not be removed is kept, so that whoever tries again does not give another
// container what still leads to this one.
func TestADetachThatFailsIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	a, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 8080 80")))
	must(t, err)
	must(t, w.n.fire.Close()) // nothing is mended
	owner := exec.Command("nft", "-i")
	in, err := owner.StdinPipe()
	must(t, err)
	must(t, owner.Start())
	_, err = in.Write([]byte("delete table inet drover_drv0\nadd table inet drover_drv0 { flags owner; }\nadd chain inet drover_drv0 busy\n"))
	must(t, err)
	w.becomes("the table is not another process's", func() bool { return strings.Contains(w.ruleset(), "busy") })
	if err := w.n.Detach(t.Context(), a.ID); err == nil || len(w.n.List()) != 1 {
		t.Errorf("it is gone, though its rules are not: %v, %v", err, w.n.List())
	}
	must(t, in.Close())
	must(t, owner.Wait())
	must(t, w.n.Detach(t.Context(), a.ID))
	if len(w.n.List()) > 0 {
		t.Errorf("left is %v", w.n.List())
	}
	b, err := w.n.Attach(t.Context(), name(2), on(publish(" tcp 8080 80")))
	must(t, err)
	w.answer(b, 80)
	w.reached("the port's next owner", b, hostIP+":8080")
}

// A value that begins another one is not that one.
func TestSysctlsOfAnEndpointAreSet(t *testing.T) {
	w := newWorld(t)
	const file = "/proc/sys/net/ipv4/neigh/eth0/gc_stale_time" // 60
	a, err := w.n.Attach(t.Context(), name(1), []Connection{{Network: Bridge, Options: map[string]string{optionSysctls: "net.ipv4.neigh.IFNAME.gc_stale_time=6"}}})
	must(t, err)
	got, err := in(w.ns(a), func() (string, error) { b, err := os.ReadFile(file); return strings.TrimSpace(string(b)), err })
	if err != nil || got != "6" {
		t.Errorf("%s is %q, %v; want 6", file, got, err)
	}
}
