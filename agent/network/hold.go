package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"syscall"
)

// PortError reports a port that can't be published, in docker's words.
type PortError struct {
	Message string
}

func (e *PortError) Error() string { return e.Message }

// holder keeps a host port bound, although rules bypass its socket, so that no other
// process can take the port and no port is published that another process holds.
type holder struct {
	port Port
	tcp  *net.TCPListener
	udp  *net.UDPConn
}

func (h *holder) Close() error {
	if h.tcp != nil {
		return h.tcp.Close()
	}
	return h.udp.Close()
}

// hold binds p, choosing its host port if that was left open.
func (n *Network) hold(ctx context.Context, p *Port) (*holder, error) {
	where := net.JoinHostPort(shown(p.IP), strconv.Itoa(int(p.Host)))
	if p.Host != 0 && slices.Contains(n.o.Reserved, p.Host) {
		return nil, &PortError{fmt.Sprintf("Bind for %s failed: port %d is reserved for drover", where, p.Host)}
	}
	if p.IP != "" {
		if ip, err := netip.ParseAddr(p.IP); err != nil || !ip.Is4() {
			return nil, &PortError{fmt.Sprintf("Bind for %s failed: %q is not an IPv4 address of this node", where, p.IP)}
		}
	}
	if n.published(*p) {
		return nil, &PortError{fmt.Sprintf("Bind for %s failed: port is already allocated", where)}
	}
	h := &holder{}
	addr := net.JoinHostPort(shown(p.IP), strconv.Itoa(int(p.Host)))
	var err error
	switch p.Proto {
	case "tcp":
		var l net.Listener
		if l, err = (&net.ListenConfig{}).Listen(ctx, "tcp4", addr); err == nil {
			h.tcp = l.(*net.TCPListener)
			p.Host = uint16(l.Addr().(*net.TCPAddr).Port)
		}
	case "udp":
		var c net.PacketConn
		if c, err = (&net.ListenConfig{}).ListenPacket(ctx, "udp4", addr); err == nil {
			h.udp = c.(*net.UDPConn)
			p.Host = uint16(c.LocalAddr().(*net.UDPAddr).Port)
		}
	default:
		return nil, &PortError{fmt.Sprintf("Bind for %s failed: protocol %q is not published here (tcp and udp are)", where, p.Proto)}
	}
	if err != nil {
		why := err.Error()
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			why = "address already in use"
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			why = "cannot assign requested address"
		}
		return nil, &PortError{fmt.Sprintf("failed to bind host port %s/%s: %s", where, p.Proto, why)}
	}
	h.port = *p
	return h, nil
}

// published reports whether another container has the port; wildcard addresses overlap.
func (n *Network) published(p Port) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, hs := range n.held {
		for _, h := range hs {
			same := h.port.Proto == p.Proto && h.port.Host == p.Host && p.Host != 0
			if same && (h.port.IP == p.IP || h.port.IP == "" || p.IP == "") {
				return true
			}
		}
	}
	return false
}

func shown(ip string) string {
	if ip == "" {
		return "0.0.0.0"
	}
	return ip
}
