package network

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/network/routes"
)

var broadcast = routes.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// announce tells all that are on a bridge which hardware address an address has
// (gratuitous ARP): without it, they go on with the one that they know for a while.
func announce(bridge string, mac routes.MAC, a netip.Addr) error {
	l, err := net.InterfaceByName(bridge)
	if err != nil {
		return fmt.Errorf("announcing %v on %s: %w", a, bridge, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("announcing %v on %s: %w", a, bridge, err)
	}
	defer func() { _ = unix.Close(fd) }()
	frame := arp(arpRequest, mac, broadcast, a, a)
	if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.Index, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}); err != nil {
		return fmt.Errorf("announcing %v on %s: %w", a, bridge, err)
	}
	return nil
}

const arpRequest = 1

// arp returns an Ethernet frame with an ARP packet from the owner of an address.
func arp(op byte, from, to routes.MAC, owner, target netip.Addr) []byte {
	b := append(append([]byte{}, to[:]...), from[:]...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_ARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, op) // of Ethernet and IPv4
	b = append(append(b, from[:]...), owner.AsSlice()...)
	return append(append(b, make([]byte, 6)...), target.AsSlice()...)
}
