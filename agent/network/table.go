package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// table is drover's one nftables table in this network namespace:
//
//	map any_tcp, any_udp    { port : ip . port }
//	map one_tcp, one_udp    { ip . port : ip . port }
//	prerouting, output      local destinations: dnat by the maps
//	postrouting             masquerade what leaves, comes back, or came from 127/8
//	guard                   drops what comes for 127/8 from outside
type table struct {
	mu     sync.Mutex // guards the connection's batch and mine
	c      *nftables.Conn
	t      *nftables.Table
	maps   map[string]*nftables.Set
	mine   map[string][]Port // attachments whose rules are there
	bridge string
}

const (
	reg0 = 8 // 32-bit registers, which concatenations are laid out in
	reg1 = 9
)

func openTable(bridge string, subnet netip.Prefix, log *slog.Logger) (*table, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("reaching nftables: %w", err)
	}
	t := &table{c: c, maps: map[string]*nftables.Set{}, mine: map[string][]Port{}, bridge: bridge}
	// Anew each time, in one transaction: connections live on in conntrack.
	t.t = &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "drover_" + bridge}
	c.AddTable(t.t)
	c.DelTable(t.t)
	t.t = c.AddTable(t.t)
	if err := t.addMaps(); err != nil {
		return nil, err
	}
	t.addChains(subnet)
	if err := c.Flush(); err != nil {
		return nil, fmt.Errorf("making the nftables table %s: %w", t.t.Name, err)
	}
	if err := t.passForeignDrops(log); err != nil {
		log.Warn("a firewall of this host drops forwarded packets, and could not be told to let containers through", "err", err)
	}
	return t, nil
}

func (t *table) addMaps() error {
	one, err := nftables.ConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	if err != nil {
		return fmt.Errorf("making nftables maps: %w", err)
	}
	for _, proto := range []string{"tcp", "udp"} {
		for name, key := range map[string]nftables.SetDatatype{"any_" + proto: nftables.TypeInetService, "one_" + proto: one} {
			s := &nftables.Set{Table: t.t, Name: name, IsMap: true, KeyType: key, DataType: one, Concatenation: name[:3] == "one"}
			if err := t.c.AddSet(s, nil); err != nil {
				return fmt.Errorf("making the nftables map %s: %w", name, err)
			}
			t.maps[name] = s
		}
	}
	return nil
}

func (t *table) addChains(subnet netip.Prefix) {
	nat := func(name string, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return t.c.AddChain(&nftables.Chain{Name: name, Table: t.t, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: prio})
	}
	pre := nat("prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	out := nat("output", nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	for _, ch := range []*nftables.Chain{pre, out} {
		for proto, num := range map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP} {
			t.rule(ch, local(), l4(num), dportInto(reg1), daddrInto(reg0), t.dnat("one_"+proto, reg0))
			t.rule(ch, local(), l4(num), dportInto(reg0), t.dnat("any_"+proto, reg0))
		}
	}
	post := nat("postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	masq := []expr.Any{&expr.Masq{}}
	t.rule(post, saddrIn(subnet), oif(t.bridge, expr.CmpOpNeq), masq)
	t.rule(post, saddrIn(subnet), oif(t.bridge, expr.CmpOpEq), dnatted(), masq)
	t.rule(post, saddrIn(netip.MustParsePrefix("127.0.0.0/8")), oif(t.bridge, expr.CmpOpEq), masq)
	guard := t.c.AddChain(&nftables.Chain{Name: "guard", Table: t.t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	t.rule(guard, iifNot("lo"), daddrIn(netip.MustParsePrefix("127.0.0.0/8")), []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}})
}

func (t *table) rule(ch *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	t.c.AddRule(&nftables.Rule{Table: t.t, Chain: ch, Exprs: all})
}

// publish adds a's elements; those that are there already stay.
func (t *table) publish(a *Attachment) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.mine[a.ID]; ok || len(a.Ports) == 0 {
		return nil
	}
	for _, p := range a.Ports {
		s, e := t.element(a, p)
		if err := t.c.SetAddElements(s, []nftables.SetElement{e}); err != nil {
			return fmt.Errorf("publishing port %d: %w", p.Host, err)
		}
	}
	if err := t.c.Flush(); err != nil {
		return fmt.Errorf("publishing the ports of %s: %w", short(a.ID), err)
	}
	t.mine[a.ID] = a.Ports
	return nil
}

func (t *table) unpublish(a *Attachment) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	ports, ok := t.mine[a.ID]
	if !ok {
		return nil
	}
	for _, p := range ports {
		s, e := t.element(a, p)
		if err := t.c.SetDeleteElements(s, []nftables.SetElement{e}); err != nil {
			return fmt.Errorf("unpublishing port %d: %w", p.Host, err)
		}
	}
	if err := t.c.Flush(); err != nil {
		return fmt.Errorf("unpublishing the ports of %s: %w", short(a.ID), err)
	}
	delete(t.mine, a.ID)
	return nil
}

func (t *table) destroy() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.c.DelTable(t.t)
	if err := t.c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing the nftables table: %w", err)
	}
	return t.removePasses()
}

func (t *table) element(a *Attachment, p Port) (*nftables.Set, nftables.SetElement) {
	val := append(a.IP.AsSlice(), pad(p.Container)...)
	if p.IP == "" {
		return t.maps["any_"+p.Proto], nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(p.Host), Val: val}
	}
	key := append(netip.MustParseAddr(p.IP).AsSlice(), pad(p.Host)...)
	return t.maps["one_"+p.Proto], nftables.SetElement{Key: key, Val: val}
}

// pad lays a port out as concatenations have it: in four bytes.
func pad(port uint16) []byte {
	b := make([]byte, 4)
	binary.BigEndian.PutUint16(b, port)
	return b
}

func (t *table) dnat(set string, from uint32) []expr.Any {
	s := t.maps[set]
	return []expr.Any{
		&expr.Lookup{SourceRegister: from, DestRegister: reg0, IsDestRegSet: true, SetName: s.Name, SetID: s.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg0, RegProtoMin: reg1, Specified: true},
	}
}

func local() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

func l4(proto byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
	}
}

func dportInto(reg uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}}
}

func daddrInto(reg uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}}
}

func saddrIn(p netip.Prefix) []expr.Any { return addrIn(p, 12) }
func daddrIn(p netip.Prefix) []expr.Any { return addrIn(p, 16) }

func addrIn(p netip.Prefix, offset uint32) []expr.Any {
	mask := make([]byte, 4)
	binary.BigEndian.PutUint32(mask, ^uint32(0)<<(32-p.Bits()))
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

func dnatted() []expr.Any {
	const ipsDstNAT = 1 << 5 // IPS_DST_NAT, linux/netfilter/nf_conntrack_common.h
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(ipsDstNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func oif(name string, op expr.CmpOp) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: ifname(name)}}
}

func iifNot(name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: ifname(name)}}
}

func ifname(n string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, n)
	return b
}
