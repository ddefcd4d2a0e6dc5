package network

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ns returns an attachment's namespace, open until the test ends.
func (w *world) ns(a *Sandbox) netns.NsHandle {
	w.t.Helper()
	h, err := netns.GetFromPath(a.Netns)
	must(w.t, err)
	w.t.Cleanup(func() { _ = h.Close() })
	return h
}

// echo sends one datagram to the gateway, where it must come back: the time that
// this took, or an error after wait.
func (w *world) echo(from netns.NsHandle, to string, wait time.Duration) error {
	carried()
	_, err := in(from, func() (struct{}, error) {
		carried()
		c, err := net.Dial("udp4", to)
		if err != nil {
			return struct{}{}, err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(wait))
		if _, err := c.Write([]byte("?")); err != nil {
			return struct{}{}, err
		}
		_, err = c.Read(make([]byte, 8))
		return struct{}{}, err
	})
	return err
}

// gatewayEchoes answers datagrams at the gateway's port 7.
func (w *world) gatewayEchoes() string {
	w.t.Helper()
	c, err := net.ListenPacket("udp4", net.JoinHostPort(w.n.Gateway().String(), "7"))
	must(w.t, err)
	done := make(chan struct{})
	w.t.Cleanup(func() { _ = c.Close(); <-done })
	go func() {
		defer close(done)
		b := make([]byte, 8)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:n], from)
		}
	}()
	return c.LocalAddr().String()
}

// neighbour returns the hardware address that ns has for the gateway.
func (w *world) neighbour(ns netns.NsHandle) string {
	w.t.Helper()
	h, err := netlink.NewHandleAt(ns)
	must(w.t, err)
	defer h.Close()
	all, err := h.NeighList(0, unix.AF_INET)
	must(w.t, err)
	for _, n := range all {
		if n.IP.String() == w.n.Gateway().String() {
			return n.HardwareAddr.String()
		}
	}
	return ""
}

func bridgeMAC(t *testing.T, name string) string {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l.Attrs().HardwareAddr.String()
}

func TestAnExitLeavesTheOthersTheirGateway(t *testing.T) {
	w := newWorld(t)
	gateway := w.gatewayEchoes()
	var stay []netns.NsHandle
	for i := range 3 {
		a, err := w.n.Attach(t.Context(), name(i), on(nil))
		must(t, err)
		stay = append(stay, w.ns(a))
	}
	const want = "02:42:0a:d2:07:01"
	for i := range 30 {
		_, err := w.n.Attach(t.Context(), name(10+i), on(nil))
		must(t, err)
		for _, ns := range stay { // they know their gateway by now
			must(t, w.echo(ns, gateway, time.Second))
		}
		must(t, w.n.Detach(t.Context(), name(10+i)))
		if got := bridgeMAC(t, w.o.Bridge); got != want {
			t.Fatalf("after exit %d the bridge has %s, want %s", i, got, want)
		}
		for n, ns := range stay {
			if err := w.echo(ns, gateway, 500*time.Millisecond); err != nil {
				t.Fatalf("exit %d cut container %d off its gateway: %v", i, n, err)
			}
			if got := w.neighbour(ns); got != want {
				t.Fatalf("container %d has %q for its gateway, want %s", n, got, want)
			}
		}
	}
}

// A bridge that an older drover made has a port's address. The new one is
// announced: who knows the old one is not cut off until it expires.
func TestABridgeThatIsThereGetsItsAddressUnderRunningContainers(t *testing.T) {
	w := newWorld(t)
	a, err := w.n.Attach(t.Context(), name(1), on(nil))
	must(t, err)
	l, err := netlink.LinkByName(w.o.Bridge)
	must(t, err)
	old, err := net.ParseMAC("02:00:00:00:00:01")
	must(t, err)
	must(t, netlink.LinkSetHardwareAddr(l, old))
	gateway := w.gatewayEchoes()
	must(t, w.echo(w.ns(a), gateway, time.Second))
	must(t, w.n.Close())
	w.open()
	if got := bridgeMAC(t, w.o.Bridge); got != mac(w.n.Gateway()) {
		t.Fatalf("the bridge has %s, want %s", got, mac(w.n.Gateway()))
	}
	if err := w.echo(w.ns(a), gateway, 500*time.Millisecond); err != nil {
		t.Fatalf("the container lost its gateway: %v", err)
	}
}

// routes and prefixes that the host has over IPv6, less what the kernel gives each
// link of its own.
func (w *world) learned() []string {
	w.t.Helper()
	var out []string
	routes, err := netlink.RouteList(nil, unix.AF_INET6)
	must(w.t, err)
	for _, r := range routes {
		if r.Protocol == unix.RTPROT_RA || r.Gw != nil || r.Dst == nil || strings.HasPrefix(r.Dst.String(), "2001:db8") {
			out = append(out, r.String())
		}
	}
	addrs, err := netlink.AddrList(nil, unix.AF_INET6)
	must(w.t, err)
	for _, a := range addrs {
		if a.IP.IsGlobalUnicast() {
			out = append(out, a.String())
		}
	}
	return out
}

// advertise sends a router advertisement with a prefix as a frame of its own,
// which needs nothing of the container's IPv6: only CAP_NET_RAW.
func (w *world) advertise(from netns.NsHandle) {
	w.t.Helper()
	_, err := in(from, func() (struct{}, error) {
		eth, err := net.InterfaceByName("eth0")
		if err != nil {
			return struct{}{}, err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return struct{}{}, err
		}
		defer unix.Close(fd)
		src, dst := netip.MustParseAddr("fe80::bad").As16(), netip.MustParseAddr("ff02::1").As16()
		ra := []byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}
		prefix := netip.MustParseAddr("2001:db8:bad::").As16()
		ra = append(ra, 3, 4, 64, 0xc0, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0)
		ra = append(ra, prefix[:]...)
		pseudo := append(append(append([]byte{}, src[:]...), dst[:]...), 0, 0, 0, byte(len(ra)), 0, 0, 0, unix.IPPROTO_ICMPV6)
		sum := checksum(append(pseudo, ra...))
		ra[2], ra[3] = byte(sum>>8), byte(sum)
		packet := append([]byte{0x60, 0, 0, 0, 0, byte(len(ra)), unix.IPPROTO_ICMPV6, 255}, src[:]...)
		packet = append(append(packet, dst[:]...), ra...)
		to := &unix.SockaddrLinklayer{Protocol: 0xdd86, Ifindex: eth.Index, Halen: 6, Addr: [8]byte{0x33, 0x33, 0, 0, 0, 1}}
		return struct{}{}, unix.Sendto(fd, packet, 0, to)
	})
	must(w.t, err)
}

func checksum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

func TestAContainerDoesNotBecomeTheHostsRouter(t *testing.T) {
	w := newWorld(t)
	a, err := w.n.Attach(t.Context(), name(1), on(nil))
	must(t, err)
	ns := w.ns(a)
	for _, v := range []string{"", "0"} { // as it is, and with IPv6 turned on again by hand
		for _, link := range []string{w.o.Bridge, linkName(a.ID, 0)} {
			if v != "" {
				must(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+link+"/disable_ipv6", []byte(v), 0))
			}
		}
		w.advertise(ns)
		// Frames over one cable stay in order: this one says that the other was seen.
		must(t, w.echo(ns, w.gatewayOnce(), time.Second))
		if got := w.learned(); len(got) > 0 {
			t.Errorf("disable_ipv6=%q: the host took from a container's advertisement: %v", v, got)
		}
	}
}

func (w *world) gatewayOnce() string {
	if w.gateway == "" {
		w.gateway = w.gatewayEchoes()
	}
	return w.gateway
}

func TestContainersHaveNoIPv6ButTheirLoopback(t *testing.T) {
	w := newWorld(t)
	a, err := w.n.Attach(t.Context(), name(1), on(nil))
	must(t, err)
	h, err := netlink.NewHandleAt(w.ns(a))
	must(t, err)
	defer h.Close()
	addrs, err := h.AddrList(nil, unix.AF_INET6)
	must(t, err)
	if len(addrs) != 1 || addrs[0].IP.String() != "::1" {
		t.Fatalf("addresses %v, want ::1 only", addrs)
	}
	for key, want := range map[string]string{"all/disable_ipv6": "1", "default/disable_ipv6": "1", "eth0/disable_ipv6": "1", "lo/disable_ipv6": "0"} {
		got, err := in(w.ns(a), func() (string, error) {
			b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + key)
			return strings.TrimSpace(string(b)), err
		})
		if err != nil || got != want {
			t.Errorf("%s = %q, %v; want %s", key, got, err, want)
		}
	}
	for _, link := range []string{w.o.Bridge, linkName(a.ID, 0)} {
		for key, want := range map[string]string{"accept_ra": "0", "autoconf": "0", "disable_ipv6": "1"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/sys/net/ipv6/conf/%s/%s", link, key))
			if err != nil || strings.TrimSpace(string(b)) != want {
				t.Errorf("%s of %s = %q, %v; want %s", key, link, b, err, want)
			}
		}
	}
}
