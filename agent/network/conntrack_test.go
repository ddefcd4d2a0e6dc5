package network

import (
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sender keeps its source port, as syslog's, statsd's and resolvers do.
func (w *world) sender(addr string) net.Conn {
	w.t.Helper()
	c, err := in(w.nbr, func() (net.Conn, error) { return net.Dial("udp4", addr) })
	must(w.t, err)
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// answered sends one datagram and reports who answers it.
func answered(c net.Conn) (string, error) {
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.Write([]byte("?")); err != nil {
		return "", err
	}
	b := make([]byte, 128)
	n, err := c.Read(b)
	return string(b[:n]), err
}

func TestASenderReachesAContainerAfterItsRestart(t *testing.T) {
	w := newWorld(t)
	ports := publish(" udp 5353 53", hostIP+" udp 5354 53")
	var before *Sandbox
	senders := []net.Conn{w.sender(hostIP + ":5353"), w.sender(hostIP + ":5354")}
	for range 3 {
		a, err := w.n.Attach(t.Context(), name(1), on(ports))
		must(t, err)
		if before != nil && ip(before) == ip(a) {
			t.Fatal("the address is the same: nothing is tested")
		}
		before = a
		w.answer(a, 53)
		for _, s := range senders {
			if got, err := answered(s); got != a.ID {
				t.Errorf("%s: %q, %v", s.RemoteAddr(), got, err)
			}
		}
		must(t, w.n.Detach(t.Context(), a.ID))
	}
}

// A datagram before the start finds nobody, or the socket that holds the port.
func TestASenderThatWasFirstReachesTheContainer(t *testing.T) {
	w := newWorld(t)
	s := w.sender(hostIP + ":5353")
	_, err := answered(s)
	if err == nil {
		t.Fatal("somebody is there")
	}
	a, err := w.n.Attach(t.Context(), name(1), on(publish(" udp 5353 53")))
	must(t, err)
	w.answer(a, 53)
	if got, err := answered(s); got != a.ID {
		t.Errorf("after the start: %q, %v", got, err)
	}
	must(t, w.n.fire.Close())
	nft(t, "delete table inet drover_drv0\ntable ip other {\n chain input { type filter hook input priority 0; ct state new accept; }\n}\n")
	w2 := w.sender(hostIP + ":5353")
	if _, err := w2.Write([]byte("?")); err != nil { // to the socket that holds the port
		t.Fatal(err)
	}
	w.becomes("the datagram was not seen", func() bool { return len(w.flows(w2)) == 1 })
	_, err = w.n.nft.reconcile(false)
	must(t, err)
	if got, err := answered(w2); got != a.ID {
		t.Errorf("after the table was made again: %q, %v", got, err)
	}
}

// flows of a sender that this host knows.
func (w *world) flows(s net.Conn) []*netlink.ConntrackFlow {
	w.t.Helper()
	all, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	must(w.t, err)
	var out []*netlink.ConntrackFlow
	for _, f := range all {
		if int(f.Forward.SrcPort) == s.LocalAddr().(*net.UDPAddr).Port {
			out = append(out, f)
		}
	}
	return out
}

// Other hosts have a port of that number, too: their connections are left alone.
func TestOtherConnectionsAreLeftAlone(t *testing.T) {
	w := newWorld(t)
	a, err := w.n.Attach(t.Context(), name(1), on(nil))
	must(t, err)
	b, err := w.n.Attach(t.Context(), name(2), on(publish(" udp 5355 53")))
	must(t, err)
	w.answer(b, 53)
	c, err := in(w.ns(a), func() (net.Conn, error) { return net.Dial("udp4", nbrIP+":5353") })
	must(t, err)
	defer c.Close()
	_, err = c.Write([]byte("?"))
	must(t, err)
	s := w.sender(hostIP + ":5355")
	if got, err := answered(s); got != b.ID {
		t.Fatalf("%q, %v", got, err)
	}
	w.becomes("the datagram was not seen", func() bool { return len(w.flows(c)) == 1 })
	_, err = w.n.Attach(t.Context(), name(3), on(publish(" udp 5353 53")))
	must(t, err)
	must(t, w.n.Detach(t.Context(), name(3)))
	if len(w.flows(c)) != 1 || len(w.flows(s)) != 1 {
		t.Errorf("connections of others were dropped: %v %v", w.flows(c), w.flows(s))
	}
}
