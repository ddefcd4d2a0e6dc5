package network

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// PortError reports a port that can't be published, in docker's words.
type PortError struct {
	Message string
}

func (e *PortError) Error() string { return e.Message }

// holder keeps a host port bound, although rules bypass its socket, so that no other
// process can take the port and no port is published that another process holds.
type holder struct {
	port   Port
	socket io.Closer // nil if the kernel has no sockets of the protocol: nobody can take the port
}

func (h *holder) Close() error {
	if h.socket == nil {
		return nil
	}
	return h.socket.Close()
}

// protocols are those of published ports.
var protocols = []string{"tcp", "udp", "sctp"}

var (
	protocolNumbers = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}
	protocolNames   = map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}
)

// hold binds p, choosing its host port if that was left open. A door of that number is
// closed: containers of this node are first.
func (n *Network) hold(p *Port) (*holder, error) {
	where := net.JoinHostPort(shown(p.IP), strconv.Itoa(int(p.Host)))
	if p.Host != 0 && slices.Contains(n.o.Reserved, p.Host) {
		return nil, &PortError{fmt.Sprintf("Bind for %s failed: port %d is reserved for drover", where, p.Host)}
	}
	if p.IP != "" {
		if ip, err := netip.ParseAddr(p.IP); err != nil || !ip.Is4() {
			return nil, &PortError{fmt.Sprintf("Bind for %s failed: %q is not an IPv4 address of this node", where, p.IP)}
		}
	}
	if !slices.Contains(protocols, p.Proto) {
		return nil, &PortError{fmt.Sprintf("Bind for %s failed: protocol %q is not published here (%s are)", where, p.Proto, strings.Join(protocols, ", "))}
	}
	if n.published(*p) {
		return nil, &PortError{fmt.Sprintf("Bind for %s failed: port is already allocated", where)}
	}
	h, err := listen(p)
	if errors.Is(err, syscall.EADDRINUSE) {
		h, err = n.takeFromDoor(p, err)
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
	return h, nil
}

// listen binds p, and sets its host port if that is 0.
func listen(p *Port) (*holder, error) {
	h := &holder{}
	ip := net.IP(netip.MustParseAddr(shown(p.IP)).AsSlice())
	switch p.Proto {
	case "tcp":
		l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: ip, Port: int(p.Host)})
		if err != nil {
			return nil, err
		}
		h.socket, p.Host = l, uint16(l.Addr().(*net.TCPAddr).Port)
	case "udp":
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: ip, Port: int(p.Host)})
		if err != nil {
			return nil, err
		}
		h.socket, p.Host = c, uint16(c.LocalAddr().(*net.UDPAddr).Port)
	case "sctp":
		if err := h.listenSCTP([4]byte(ip), &p.Host); err != nil {
			return nil, err
		}
	}
	h.port = *p
	return h, nil
}

// listenSCTP binds an SCTP port. Where the kernel has no such sockets, rules alone lead to
// containers, and only a number must be chosen.
func (h *holder) listenSCTP(ip [4]byte, port *uint16) error {
	const firstEphemeral = 49152
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT) {
		if *port == 0 {
			*port = firstEphemeral + uint16(rand.N(1<<16-firstEphemeral))
		}
		return nil
	}
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	h.socket = os.NewFile(uintptr(fd), "sctp")
	err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(*port), Addr: ip})
	var bound unix.Sockaddr
	if err == nil {
		bound, err = unix.Getsockname(fd)
	}
	if err != nil {
		_ = h.Close()
		return os.NewSyscallError("bind", err)
	}
	*port = uint16(bound.(*unix.SockaddrInet4).Port)
	return nil
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
