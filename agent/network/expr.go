package network

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The words of which rules consist. Values are compared in register 1; what is looked up
// in sets is laid out from regs on, in 32-bit registers.
const regs = 8

type match []expr.Any

func family(proto byte) match {
	return match{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}}}
}

func ip4() match { return family(unix.NFPROTO_IPV4) }
func ip6() match { return family(unix.NFPROTO_IPV6) }

// etherType matches frames of a bridge. A tagged frame is none of the usual types.
func etherType(typ uint16) match {
	return match{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 12, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(typ)},
	}
}

// key is a value that is looked up: an expression that loads it, and its length there.
type key struct {
	load func(reg uint32) expr.Any
	len  uint32
}

func meta(k expr.MetaKey, n uint32) key {
	return key{func(reg uint32) expr.Any { return &expr.Meta{Key: k, Register: reg} }, n}
}

func payload(base expr.PayloadBase, offset, n uint32) key {
	return key{func(reg uint32) expr.Any {
		return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: n}
	}, n}
}

var (
	inLink, outLink = meta(expr.MetaKeyIIFNAME, unix.IFNAMSIZ), meta(expr.MetaKeyOIFNAME, unix.IFNAMSIZ)
	fromMAC         = payload(expr.PayloadBaseLLHeader, 6, 6)
	from4, to4      = payload(expr.PayloadBaseNetworkHeader, 12, 4), payload(expr.PayloadBaseNetworkHeader, 16, 4)
	from6, to6      = payload(expr.PayloadBaseNetworkHeader, 8, 16), payload(expr.PayloadBaseNetworkHeader, 24, 16)
	toPort          = payload(expr.PayloadBaseTransportHeader, 2, 2)
	// who an ARP packet says it is from
	arpMAC, arpAddr = payload(expr.PayloadBaseNetworkHeader, 8, 6), payload(expr.PayloadBaseNetworkHeader, 14, 4)
	// the address that a neighbour advertisement is about
	ndTarget = payload(expr.PayloadBaseTransportHeader, 8, 16)
)

// among matches if the values, one after the other, are in a set.
func among(set string, keys ...key) match    { return lookup(set, false, keys) }
func notAmong(set string, keys ...key) match { return lookup(set, true, keys) }
func lookup(set string, invert bool, keys []key) match {
	var out match
	reg := uint32(regs)
	for _, k := range keys {
		out = append(out, k.load(reg))
		reg += (k.len + 3) / 4
	}
	return append(out, &expr.Lookup{SourceRegister: regs, SetName: set, Invert: invert})
}

// dnat rewrites the destination to what a map has for the values.
func dnat(set string, keys ...key) match {
	return append(lookedUp(set, keys...), &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: regs, RegProtoMin: regs + 1, Specified: true})
}

func is(k key, v []byte) match {
	return match{k.load(1), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: v}}
}

func isNot(k key, v []byte) match {
	return match{k.load(1), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: v}}
}

// ofNet matches addresses in a prefix.
func ofNet(k key, p netip.Prefix) match {
	mask := make([]byte, k.len)
	for i := range p.Bits() {
		mask[i/8] |= 1 << (7 - i%8)
	}
	return match{
		k.load(1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: k.len, Mask: mask, Xor: make([]byte, k.len)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

// local matches packets to this host.
func local() match {
	return match{
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// ctMark matches connections with a mark, setCtMark marks one.
func ctMark(mark []byte) match {
	return match{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mark}}
}

func setCtMark(mark []byte) match {
	return match{&expr.Immediate{Register: 1, Data: mark}, &expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true}}
}

// begun matches first packets of connections.
func begun() match { return ct(expr.CtKeySTATE, expr.CtStateBitNEW, expr.CmpOpNeq) }

// back matches packets from the end that was dialed.
func back() match {
	const reply = 1 // IP_CT_DIR_REPLY
	return match{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{reply}}}
}

func l4(proto byte) match { return is(meta(expr.MetaKeyL4PROTO, 1), []byte{proto}) }

// toTunnel matches the tunnel's packets, none where there is no tunnel.
func toTunnel() match {
	return append(l4(unix.IPPROTO_UDP), among("tunnels", toPort)...)
}

// icmp6 matches an ICMPv6 type.
func icmp6(typ byte) match {
	return append(l4(unix.IPPROTO_ICMPV6), is(payload(expr.PayloadBaseTransportHeader, 0, 1), []byte{typ})...)
}

func then(kind expr.VerdictKind) match { return match{&expr.Verdict{Kind: kind}} }

func accept() match { return then(expr.VerdictAccept) }

// drop counts what it drops, for those who look for it.
func drop() match { return match{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}} }

func masquerade() match { return match{&expr.Masq{}} }

// snat puts an address in the place of the source.
func snat(a netip.Addr) match {
	return match{
		&expr.Immediate{Register: 1, Data: a.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	}
}

// fromHere matches packets whose source is an address of this host.
func fromHere() match {
	return match{
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagSADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// dnatted compares conntrack's DNAT bit with none.
func dnatted(op expr.CmpOp) match {
	const ipsDstNAT = 1 << 5 // IPS_DST_NAT, linux/netfilter/nf_conntrack_common.h
	return ct(expr.CtKeySTATUS, ipsDstNAT, op)
}

// answers matches packets of connections that are established or related.
func answers() match {
	return ct(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED, expr.CmpOpNeq)
}

// ct compares bits of a conntrack key with zero.
func ct(key expr.CtKey, bits uint32, op expr.CmpOp) match {
	return match{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: 1, Data: make([]byte, 4)},
	}
}

// clampMSS makes TCP connections announce segments that fit their route.
func clampMSS() match {
	const (
		flags, syn, rst = 13, 2, 4
		optMSS          = 2 // its value is behind kind and length
	)
	return append(l4(unix.IPPROTO_TCP),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: flags, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{syn | rst}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{syn}},
		&expr.Rt{Register: 1, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: 1, Type: optMSS, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	)
}

// ifname lays out a link's name as the kernel does.
func ifname(n string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, n)
	return b
}

// begins is what a name that begins with prefix is compared with.
func begins(prefix string) []byte { return []byte(prefix) }

// pad lays out a port in four bytes, as concatenations do.
func pad(port uint16) []byte {
	b := make([]byte, 4)
	binary.BigEndian.PutUint16(b, port)
	return b
}

// chain describes a chain of drover's tables.
type chain struct {
	*nftables.Chain
	rules []match
}

func base(t *nftables.Table, name string, typ nftables.ChainType, hook *nftables.ChainHook, prio nftables.ChainPriority, rules ...match) chain {
	return chain{&nftables.Chain{Name: name, Table: t, Type: typ, Hooknum: hook, Priority: &prio}, rules}
}

// all joins the parts of a rule.
func all(parts ...match) match {
	var out match
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}
