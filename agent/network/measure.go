package network

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Way is how another node is reached.
type Way struct {
	Peer, Name string
	Addr       netip.Addr
	Link       string        // that packets leave by; "" without a way
	Direct     bool          // both share that link; else it is the tunnel
	MTU        int           // what was measured to fit; 0: no answer
	RTT        time.Duration // of the smallest packet that was measured
}

// sizes are what is measured, in order: what fits links and tunnels as they usually are.
var sizes = []int{1280, 1350, 1400, 1430, 1450, 1500, 8900, 8950, 9000}

// measureWithin is how long answers are waited for.
const measureWithin = time.Second

// Ways returns how each other node is reached, in the order of the topology, and measures
// what fits: for at most a second.
func (n *Network) Ways(ctx context.Context) ([]Way, error) {
	f := n.fabric
	f.mu.Lock()
	var out []Way
	to := map[netip.Addr]int{}
	for _, p := range f.t.Peers {
		if p.ID == f.t.Self {
			continue
		}
		r, w := f.want.Routes[p.Subnet], f.ways[p.ID]
		to[p.Subnet.Addr().Next()] = len(out)
		out = append(out, Way{Peer: p.ID, Name: p.Name, Addr: p.Addr, Link: r.Dev, Direct: w.proven})
	}
	f.mu.Unlock()
	fits := map[netip.Addr][]int{}
	for a, i := range to {
		if most := uplinkMTU(a); most > 0 && out[i].Link != "" {
			fits[a] = sizesUpTo(most)
		}
	}
	if len(fits) == 0 { // nobody can be reached
		return out, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, measureWithin)
	defer cancel()
	err := measure(ctx, n.gateway(), fits, func(a netip.Addr, size int, rtt time.Duration) {
		w := &out[to[a]]
		w.MTU = max(w.MTU, size)
		if w.RTT == 0 || rtt < w.RTT {
			w.RTT = rtt
		}
	})
	return out, err
}

// sizesUpTo returns the usual sizes that a link may carry, and the largest that it says.
func sizesUpTo(most int) []int {
	n, _ := slices.BinarySearch(sizes, most)
	return append(slices.Clone(sizes[:n]), most)
}

// measure sends packets of some sizes to each node, which must not be cut, and reports
// those that come back.
func measure(ctx context.Context, from netip.Addr, to map[netip.Addr][]int, back func(a netip.Addr, size int, rtt time.Duration)) error {
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		})
		if cerr != nil {
			return cerr
		}
		return err
	}}
	c, err := listen.ListenPacket(ctx, "ip4:icmp", from.String())
	if err != nil {
		return fmt.Errorf("measuring the ways to other nodes: %w", err)
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Now()) })
	defer stop()
	var nonce [16]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return err
	}
	open := 0
	for _, sizes := range to {
		open += len(sizes)
	}
	var sent sync.Map // of when, by address and size
	var sending sync.WaitGroup
	sending.Go(func() {
		for a, sizes := range to {
			for _, size := range sizes {
				sent.Store(fmt.Sprint(a, size), time.Now())
				_, _ = c.WriteTo(echoOf(size, nonce), &net.IPAddr{IP: a.AsSlice()}) // what doesn't fit isn't sent
			}
		}
	})
	defer sending.Wait()
	b := make([]byte, 1<<16)
	for open > 0 {
		n, addr, err := c.ReadFrom(b)
		if err != nil {
			return nil //nolint:nilerror // the time is over
		}
		a, _ := netip.AddrFromSlice(addr.(*net.IPAddr).IP)
		if n < 24 || b[0] != 0 || [16]byte(b[8:24]) != nonce {
			continue
		}
		size := n + 20
		if at, ok := sent.LoadAndDelete(fmt.Sprint(a.Unmap(), size)); ok {
			open--
			back(a.Unmap(), size, time.Since(at.(time.Time)))
		}
	}
	return nil
}

// echoOf is an ICMP echo request of a packet of a size.
func echoOf(size int, nonce [16]byte) []byte {
	b := make([]byte, size-20)
	b[0] = 8
	copy(b[4:], nonce[:2])
	copy(b[8:], nonce[:])
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(s))
	return b
}
