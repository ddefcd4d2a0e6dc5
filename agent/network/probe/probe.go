// Package probe finds out which nodes share a link with this host: not by their
// addresses, for a router may answer for others' (proxy ARP) and a cloud's network may
// carry only the addresses that it gave out. A node is on a link if what is sent there
// to a container network's address arrives, in full size, and comes back; and it takes
// this host's containers' packets from there if it answers one that looks like theirs.
package probe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// MAC is a hardware address.
type MAC = [6]byte

// Target is a node that may be on a link.
type Target struct {
	Link   string     // an Ethernet link of this host
	Source netip.Addr // this host's address on it
	Addr   netip.Addr // the node's
	Behind netip.Addr // one that only the node itself answers for
	Inside netip.Addr // this host's own of that kind
}

// Answer is that of a node that is on the link.
type Answer struct {
	MAC   MAC  // with which its packets arrive
	Takes bool // it takes this host's containers' packets from there
}

// largest is the size of what is sent where links allow more.
const largest = 9216

// Ask asks all targets at once, until ctx ends, and returns the answers. It acts on the
// calling thread's network namespace.
func Ask(ctx context.Context, targets []Target) (map[Target]Answer, error) {
	c := &conversation{answers: map[Target]Answer{}, frames: make(chan frame), links: map[string]*link{}}
	if _, err := rand.Read(c.nonce[:]); err != nil {
		return nil, err
	}
	c.id = binary.BigEndian.Uint16(c.nonce[:])
	ctx, cancel := context.WithCancel(ctx)
	defer func() { cancel(); c.close() }()
	var errs []error
	for _, t := range targets {
		if err := c.begin(ctx, t); err != nil {
			errs = append(errs, fmt.Errorf("asking for nodes on %s: %w", t.Link, err))
		}
	}
	for c.open() {
		select {
		case <-ctx.Done():
			return c.answers, errors.Join(errs...)
		case f := <-c.frames:
			c.take(f)
		}
	}
	return c.answers, errors.Join(errs...)
}

// conversation is that with all nodes.
type conversation struct {
	id      uint16 // of echo requests
	nonce   [16]byte
	asked   []Target
	answers map[Target]Answer
	links   map[string]*link
	inside  []net.PacketConn // where answers arrive that come by another way
	frames  chan frame
	readers sync.WaitGroup
}

// link is where frames are sent.
type link struct {
	*net.Interface
	file *os.File
}

// frame is what arrived: on no link, it is an ICMP message from an address.
type frame struct {
	on   *link
	b    []byte
	from netip.Addr
}

func (c *conversation) open() bool {
	return slices.ContainsFunc(c.asked, func(t Target) bool { return !c.answers[t].Takes })
}

func (c *conversation) close() {
	for _, l := range c.links {
		_ = l.file.Close()
	}
	for _, p := range c.inside {
		_ = p.Close()
	}
	c.readers.Wait()
}

func (c *conversation) begin(ctx context.Context, t Target) error {
	l := c.links[t.Link]
	if l == nil {
		var err error
		if l, err = c.connect(ctx, t.Link); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(c.asked, func(x Target) bool { return x.Inside == t.Inside }) {
		c.listenInside(ctx, t.Inside)
	}
	c.asked = append(c.asked, t)
	_, err := l.file.Write(l.arp(t))
	return err
}

// connect begins to read a link.
func (c *conversation) connect(ctx context.Context, name string) (*link, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	if len(i.HardwareAddr) != 6 {
		return nil, errors.New("it is no Ethernet link")
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	l := &link{i, os.NewFile(uintptr(fd), "packets of "+name)}
	if err := listen(fd, i.Index, c.id); err != nil {
		return nil, errors.Join(err, l.file.Close())
	}
	c.links[name] = l
	c.readers.Go(func() {
		b := make([]byte, 1<<16)
		for {
			n, err := l.file.Read(b)
			if err != nil || !c.pass(ctx, frame{on: l, b: slices.Clone(b[:n])}) {
				return
			}
		}
	})
	return l, nil
}

// listenInside reads what comes to an address of this host. Without it, answers are seen
// only if they come by the link.
func (c *conversation) listenInside(ctx context.Context, at netip.Addr) {
	p, err := (&net.ListenConfig{}).ListenPacket(ctx, "ip4:icmp", at.String())
	if err != nil {
		return
	}
	c.inside = append(c.inside, p)
	c.readers.Go(func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			a, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
			if !c.pass(ctx, frame{b: slices.Clone(b[:n]), from: a.Unmap()}) {
				return
			}
		}
	})
}

func (c *conversation) pass(ctx context.Context, f frame) bool {
	select {
	case c.frames <- f:
		return true
	case <-ctx.Done():
		return false
	}
}

// listen lets in only what may be an answer.
func listen(fd, index int, id uint16) error {
	prog, err := bpf.Assemble(filter(id))
	if err != nil {
		return err
	}
	raw := make([]unix.SockFilter, len(prog))
	for i, p := range prog {
		raw[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(raw)), Filter: &raw[0]}); err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swap(unix.ETH_P_ALL), Ifindex: index})
}

const (
	arpRequest, arpReply   = 1, 2
	echoReply, echoRequest = 0, 8
)

// filter passes ARP replies, and echo replies with an id.
func filter(id uint16) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_ARP, SkipFalse: 2},
		bpf.LoadAbsolute{Off: 20, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: arpReply, SkipTrue: 8, SkipFalse: 9},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IP, SkipFalse: 8},
		bpf.LoadAbsolute{Off: 23, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_ICMP, SkipFalse: 6},
		bpf.LoadMemShift{Off: 14},
		bpf.LoadIndirect{Off: 14, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: echoReply, SkipFalse: 3},
		bpf.LoadIndirect{Off: 14 + 4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(id), SkipFalse: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	}
}

// take handles what arrived: who answered for an address is asked for what is behind it,
// and who answers for that, whether it takes what looks like a container's.
func (c *conversation) take(f frame) {
	if f.on == nil {
		if seq, ok := c.parseICMP(f.b); ok && seq == seqInside {
			c.taken(f.from)
		}
		return
	}
	if owner, mac, ok := parseARP(f.b); ok {
		for _, t := range c.asked {
			if t.Addr == owner && t.Link == f.on.Name && c.answers[t] == (Answer{}) {
				_, _ = f.on.file.Write(c.echo(f.on, t.Source, t.Behind, mac, seqOutside)) // what can't be sent is not answered
			}
		}
		return
	}
	from, mac, icmp, ok := parseIP(f.b)
	if !ok {
		return
	}
	seq, ok := c.parseICMP(icmp)
	if ok && seq == seqInside {
		c.taken(from)
	}
	if !ok || seq != seqOutside {
		return
	}
	for _, t := range c.asked {
		if t.Behind == from && t.Link == f.on.Name && c.answers[t] == (Answer{}) {
			c.answers[t] = Answer{MAC: mac}
			_, _ = f.on.file.Write(c.echo(f.on, t.Inside, t.Behind, mac, seqInside))
		}
	}
}

// taken notes that a node took a packet from an address inside.
func (c *conversation) taken(from netip.Addr) {
	for t, a := range c.answers {
		if t.Behind == from {
			a.Takes = true
			c.answers[t] = a
		}
	}
}

func (l *link) arp(t Target) []byte {
	b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, l.HardwareAddr...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_ARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, arpRequest) // of Ethernet and IPv4
	b = append(append(b, l.HardwareAddr...), t.Source.AsSlice()...)
	return append(append(b, make([]byte, 6)...), t.Addr.AsSlice()...)
}

func parseARP(b []byte) (owner netip.Addr, mac MAC, ok bool) {
	if len(b) < 42 || binary.BigEndian.Uint16(b[12:]) != unix.ETH_P_ARP || b[21] != arpReply || b[18] != 6 || b[19] != 4 {
		return owner, mac, false
	}
	copy(mac[:], b[22:])
	owner, ok = netip.AddrFromSlice(b[28:32])
	return owner, mac, ok
}

// The sequence numbers of echo requests: from an address of the host, and from one inside.
const seqOutside, seqInside = 1, 2

// echo is an echo request that fills the link, and must not be cut.
func (c *conversation) echo(l *link, from, to netip.Addr, mac MAC, seq uint16) []byte {
	size := min(l.MTU, largest)
	b := append(slices.Clone(mac[:]), l.HardwareAddr...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	ip := []byte{0x45, 0, byte(size >> 8), byte(size), 0, 0, 0x40, 0, 64, unix.IPPROTO_ICMP, 0, 0}
	ip = append(append(ip, from.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	icmp := make([]byte, size-len(ip))
	icmp[0] = echoRequest
	binary.BigEndian.PutUint16(icmp[4:], c.id)
	binary.BigEndian.PutUint16(icmp[6:], seq)
	copy(icmp[8:], c.nonce[:])
	binary.BigEndian.PutUint16(icmp[2:], checksum(icmp))
	return append(append(b, ip...), icmp...)
}

func parseIP(b []byte) (from netip.Addr, mac MAC, icmp []byte, ok bool) {
	if len(b) < 14+20 || binary.BigEndian.Uint16(b[12:]) != unix.ETH_P_IP || b[14]>>4 != 4 || b[23] != unix.IPPROTO_ICMP {
		return from, mac, nil, false
	}
	header := int(b[14]&15) * 4
	if header < 20 || len(b) < 14+header {
		return from, mac, nil, false
	}
	copy(mac[:], b[6:])
	from, ok = netip.AddrFromSlice(b[26:30])
	return from, mac, b[14+header:], ok
}

// parseICMP returns the sequence number of an echo reply that is for us.
func (c *conversation) parseICMP(b []byte) (seq uint16, ok bool) {
	if len(b) < 8+len(c.nonce) || b[0] != echoReply || binary.BigEndian.Uint16(b[4:]) != c.id || [16]byte(b[8:24]) != c.nonce {
		return 0, false
	}
	return binary.BigEndian.Uint16(b[6:]), true
}

func checksum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i]) << 8
		if i+1 < len(b) {
			s += uint32(b[i+1])
		}
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

func swap(v uint16) uint16 { return v<<8 | v>>8 }
