package network

import (
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

var (
	packetMark     = meta(expr.MetaKeyMARK, 4)
	connectionMark = key{func(reg uint32) expr.Any { return &expr.Ct{Key: expr.CtKeyMARK, Register: reg} }, 4}
)

// mark4 is the mark of connections for which this node is the door.
func (t *table) mark4() []byte { return binaryutil.NativeEndian.PutUint32(uint32(markOf(t.gateway))) }

// doorwayRules are the holder's: they remember by which door a connection came, and have
// answers routed there.
func (t *table) doorwayRules() []match {
	return []match{
		all(back(), among("marks", connectionMark), match{
			&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
		}),
		all(t.throughDoor(), begun(), lookedUp("doorways", inLink, fromMAC), match{&expr.Ct{Key: expr.CtKeyMARK, Register: regs, SourceRegister: true}}),
	}
}

// throughDoor matches what other nodes' doors send here with the source of a client. What
// has a source of the fleet is answered as any.
func (t *table) throughDoor() match {
	return all(ip4(), is(to4, t.gateway.AsSlice()), notAmong("pool", from4))
}

// unmarkRules take the mark off packets that were routed by it: the tunnel's packets around
// them would have it too, and be routed into the tunnel again.
func unmarkRules() []match {
	none := make([]byte, 4)
	return []match{all(isNot(packetMark, none), among("marks", packetMark), match{
		&expr.Immediate{Register: 1, Data: none},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	})}
}

// doorRules lead from outside and from containers of this node to ports of other nodes.
// What another node's door sends is not sent on: if its port is not here any more, it would
// go around in circles.
func (t *table) doorRules() []match {
	var out []match
	for _, p := range protocols {
		out = append(out,
			all(ip4(), local(), l4(protocolNumbers[p]), notAmong("pool", to4), t.toHolder(p, false)),
			all(ip4(), local(), l4(protocolNumbers[p]), among("bridges", inLink), t.toHolder(p, false)))
	}
	return out
}

// ownDoorRules lead there from this host itself.
func (t *table) ownDoorRules() []match {
	var out []match
	for _, p := range protocols {
		out = append(out,
			all(ip4(), local(), l4(protocolNumbers[p]), ofNet(to4, loopback), t.toHolder(p, true)),
			all(ip4(), local(), l4(protocolNumbers[p]), t.toHolder(p, false)))
	}
	return out
}

// toHolder leads to the same port of a door's holder, through the tunnel in any case or by
// the way that the holder is reached.
func (t *table) toHolder(proto string, tunnel bool) match {
	set := "door_" + proto
	out := all(lookedUp(set, toPort), setCtMark(t.mark4()), lookedUp(set, toPort))
	if tunnel { // the address before the gateway's
		out = append(out, &expr.Bitwise{SourceRegister: regs, DestRegister: regs, Len: 4, Mask: []byte{0xff, 0xff, 0xff, 0xfe}, Xor: make([]byte, 4)})
	}
	return append(out, &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: regs})
}

// doorSourceRules put the door's address in the place of sources to which the holder could
// not answer through the door: those of the fleet, its own among them.
func (t *table) doorSourceRules() []match {
	door := all(ip4(), ctMark(t.mark4()), dnatted(expr.CmpOpNeq))
	return []match{
		all(door, ofNet(from4, netip.PrefixFrom(loopback.Addr(), 8)), snat(throughTunnel(t.gateway))),
		all(door, among("pool", from4), masquerade()),
		all(door, among("nodes", from4), masquerade()),
		all(door, fromHere(), masquerade()),
	}
}

// redirectRules keep the kernel from telling clients on the holder's link that they should
// dial the holder.
func (t *table) redirectRules() []match {
	const redirect = 5
	return []match{all(ip4(), l4(unix.IPPROTO_ICMP), is(payload(expr.PayloadBaseTransportHeader, 0, 1), []byte{redirect}), ctMark(t.mark4()), drop())}
}

// lookedUp loads what a map has for the values.
func lookedUp(set string, keys ...key) match {
	out := lookup(set, false, keys)
	l := out[len(out)-1].(*expr.Lookup)
	l.DestRegister, l.IsDestRegSet = regs, true
	return out
}
