package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/resolver/resolverapi"
)

// visitor runs functions in other network namespaces, one at a time, on a thread of its
// own that never serves anything else.
type visitor struct {
	visits chan visit
	gone   chan struct{}
}

type visit struct {
	netns int
	do    func() error
	done  chan error
}

func newVisitor() *visitor { return &visitor{visits: make(chan visit), gone: make(chan struct{})} }

// run visits until ctx ends.
func (v *visitor) run(ctx context.Context) {
	defer close(v.gone)
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	for {
		select {
		case x := <-v.visits:
			err := unix.Setns(x.netns, unix.CLONE_NEWNET)
			if err == nil {
				err = x.do()
			}
			x.done <- err
		case <-ctx.Done():
			return
		}
	}
}

// in runs do, which must not block, in a network namespace.
func (v *visitor) in(netns *os.File, do func() error) error {
	x := visit{int(netns.Fd()), do, make(chan error, 1)}
	select {
	case v.visits <- x:
		err := <-x.done
		runtime.KeepAlive(netns)
		return err
	case <-v.gone:
		return errors.New("the resolver ends")
	}
}

// sockets are a resolver's in a container's namespace.
type sockets struct {
	udp *net.UDPConn
	tcp *net.TCPListener
}

func (s sockets) close() {
	_ = s.udp.Close()
	_ = s.tcp.Close()
}

// Ports of resolvers: while one takes the place of another, both listen.
const (
	firstPort = 53530
	lastPort  = 53539
)

// open listens in a namespace and has the kernel pass there what is for port 53, which
// itself stays free for a server of the container's own on all addresses.
func (v *visitor) open(netns *os.File) (s sockets, err error) {
	err = v.in(netns, func() error {
		port := uint16(firstPort)
		for s, err = listen(port); errors.Is(err, unix.EADDRINUSE) && port < lastPort; {
			port++
			s, err = listen(port)
		}
		if err != nil {
			return fmt.Errorf("listening: %w", err)
		}
		if err := redirect(port); err != nil {
			s.close()
			return err
		}
		return nil
	})
	return s, err
}

func listen(port uint16) (s sockets, err error) {
	at := netip.AddrPortFrom(netip.MustParseAddr(resolverapi.Address), port)
	if s.udp, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at)); err != nil {
		return s, err
	}
	if s.tcp, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at)); err != nil {
		_ = s.udp.Close()
	}
	return s, err
}

// dial connects in a namespace.
func (v *visitor) dial(netns *os.File) dialer {
	return func(_ context.Context, network, addr string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(addr)
		if err != nil {
			return nil, err
		}
		fd := -1
		err = v.in(netns, func() (err error) {
			fd, err = connect(network, to)
			return err
		})
		if err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(fd), addr)
		defer func() { _ = f.Close() }()
		return net.FileConn(f)
	}
}

// connect begins to connect, without waiting for the other side.
func connect(network string, to netip.AddrPort) (fd int, err error) {
	kind, family := unix.SOCK_STREAM, unix.AF_INET
	if network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(to.Port()), Addr: [4]byte(to.Addr().Unmap().AsSlice())}
	if to.Addr().Is6() && !to.Addr().Is4In6() {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	if fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, fmt.Errorf("dialing %v: %w", to, err)
	}
	if err := unix.Connect(fd, sa); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("dialing %v: %w", to, err)
	}
	return fd, nil
}

// tableName is of the nftables table in a container's namespace.
const tableName = "drover_names"

// redirect changes the ports of packets to the resolver, and of those from it and from
// the one that it takes the place of, in this thread's namespace. It is not done by NAT:
// this would have the kernel track each connection of the container. A container may do
// so itself: it sees the resolver's own port both ways, since one chain is before the
// tracking (priority -200) and the other one is after it.
func redirect(port uint16) error {
	err := redirectIn(port, false)
	if errors.Is(err, unix.EEXIST) { // another resolver's
		err = redirectIn(port, true)
	}
	if err != nil {
		return fmt.Errorf("passing port 53 of %s on: %w", resolverapi.Address, err)
	}
	return nil
}

// redirectIn creates the table, which must not exist unless it is replaced. That takes the
// kernel ten times as long: nothing may be using the old one any more.
func redirectIn(port uint16, replace bool) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("reaching nftables: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName}
	if replace {
		c.AddTable(t) // its owner may have removed it meanwhile
		c.DelTable(t)
	}
	c.CreateTable(t)
	chain := func(name string, priority nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: &priority})
	}
	queries, answers := chain("queries", -300), chain("answers", -150)
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		c.AddRule(&nftables.Rule{Table: t, Chain: queries, Exprs: rewrite(proto, daddr, dport, 53, 53, port)})
		c.AddRule(&nftables.Rule{Table: t, Chain: answers, Exprs: rewrite(proto, saddr, sport, firstPort, lastPort, 53)})
	}
	return c.Flush()
}

// Offsets in the headers of IPv4, and of UDP and TCP.
const (
	saddr, daddr = 12, 16
	sport, dport = 0, 2
)

// rewrite changes a port of packets of the resolver's address, if it is one from first to
// last.
func rewrite(proto byte, addr, port uint32, first, last, to uint16) []expr.Any {
	sum := uint32(6) // of UDP
	if proto == unix.IPPROTO_TCP {
		sum = 16
	}
	ip := netip.MustParseAddr(resolverapi.Address).As4()
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: addr, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ip[:]},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: port, Len: 2},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: binaryutil.BigEndian.PutUint16(first), ToData: binaryutil.BigEndian.PutUint16(last)},
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(to)},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: port, Len: 2,
			CsumType: expr.CsumTypeInet, CsumOffset: sum},
	}
}
