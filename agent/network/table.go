package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// table is drover's one nftables table in this network namespace:
//
//	map any_tcp, any_udp    { port : ip . port }
//	map one_tcp, one_udp    { ip . port : ip . port }
//	prerouting, output      local destinations: dnat by the maps
//	postrouting             masquerade what leaves, comes back, or came from 127/8
//	forward                 to containers only what is published, or answers
//	guard                   drops what comes for 127/8 from outside
//
// and two rules in each of others' chains that would drop containers' packets
// (foreign.go). The kernel's ruleset is reconciled with that whenever it changes: nft
// flush ruleset, as on a reload of the nftables service, removes the table, and
// firewalls come and go.
type table struct {
	log    *slog.Logger
	bridge string
	subnet netip.Prefix

	mu sync.Mutex // orders transactions; guards the fields below
	// guarded means that this host forwards packets because of drover only: packets that
	// are not for containers are dropped, in the chain where others can accept them.
	guarded bool
	want    map[string][]destination // published ports by container
	warned  map[string]bool          // others' chains that refused our rules
}

// destination is a published port and its target.
type destination struct {
	Port
	to netip.Addr
}

const (
	reg0 = 8 // 32-bit registers, in which concatenations are laid out
	reg1 = 9
)

func newTable(bridge string, subnet netip.Prefix, log *slog.Logger) *table {
	return &table{log: log, bridge: bridge, subnet: subnet, want: map[string][]destination{}, warned: map[string]bool{}}
}

// dial returns a connection for one transaction. Its buffers fit the acknowledgements of
// a table with all ports that a node can publish.
func dial() (*nftables.Conn, error) {
	c, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetReadBuffer(4<<20), c.SetWriteBuffer(4<<20))
	}))
	if err != nil {
		return nil, fmt.Errorf("reaching nftables: %w", err)
	}
	return c, nil
}

func (t *table) name() string { return "drover_" + t.bridge }

func (t *table) ours() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: t.name()}
}

// mark is the comment by which drover and people recognize drover's rules.
func (t *table) mark() []byte {
	return userdata.AppendString(nil, userdata.TypeComment, "drover: containers of "+t.bridge)
}

// reconcile brings the kernel's ruleset to the desired state, in one transaction, and
// reports whether it changed anything. With anew, the table is rebuilt even if intact:
// it may be an older drover's. Connections survive in conntrack.
func (t *table) reconcile(anew bool) (changed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.repair(anew)
}

// repair is reconcile with mu held.
func (t *table) repair(anew bool) (changed bool, err error) {
	r, err := readRuleset()
	if err != nil {
		return false, err
	}
	intact, err := t.intact(r)
	if err != nil {
		return false, err
	}
	build := anew || !intact
	foreign := t.plan(r)
	if !build && len(foreign) == 0 {
		return false, nil
	}
	changed, err = t.apply(build, foreign)
	if err != nil {
		return false, fmt.Errorf("making the nftables table %s: %w", t.name(), err)
	}
	if build { // packets that arrived without the table went to the sockets that hold the ports
		t.forgetDatagrams(t.all())
	}
	return changed, nil
}

// apply makes the changes in one transaction. If that is refused, a chain vanished
// meanwhile or belongs to a process that owns its table: then our table is applied
// alone, and each of the others' chains by itself.
func (t *table) apply(build bool, foreign []change) (changed bool, err error) {
	if err = t.commit(build, foreign); err == nil {
		for _, f := range foreign {
			t.tell(f, nil)
		}
		return true, nil
	}
	if len(foreign) == 0 {
		return false, err
	}
	if build {
		if err := t.commit(true, nil); err != nil {
			return false, err
		}
	}
	changed = build
	for _, f := range foreign {
		err := t.commit(false, []change{f})
		t.tell(f, err)
		changed = changed || err == nil
	}
	return changed, nil
}

// forgetDatagrams only logs a failure: senders that use a new port work.
func (t *table) forgetDatagrams(ports []destination) {
	if err := forgetDatagrams(ports); err != nil {
		t.log.Warn("UDP senders may not reach a container", "err", err)
	}
}

func (t *table) commit(build bool, foreign []change) error {
	c, err := dial()
	if err != nil {
		return err
	}
	if build {
		if err := t.build(c); err != nil {
			return err
		}
	}
	for _, f := range foreign {
		if err := f.do(c); err != nil {
			return err
		}
	}
	return c.Flush()
}

// build adds the whole table to c's batch, replacing an existing one.
func (t *table) build(c *nftables.Conn) error {
	c.AddTable(t.ours())
	c.DelTable(t.ours())
	c.AddTable(t.ours())
	maps, err := t.maps()
	if err != nil {
		return err
	}
	for _, s := range maps {
		if err := c.AddSet(s, nil); err != nil {
			return fmt.Errorf("making the nftables map %s: %w", s.Name, err)
		}
	}
	for name, elements := range t.elements() {
		if err := addElements(c, maps[name], elements); err != nil {
			return err
		}
	}
	for _, ch := range t.chains(maps) {
		c.AddChain(ch.Chain)
		for _, exprs := range ch.rules {
			c.AddRule(&nftables.Rule{Table: ch.Table, Chain: ch.Chain, Exprs: exprs, UserData: t.mark()})
		}
	}
	return nil
}

func (t *table) maps() (map[string]*nftables.Set, error) {
	one, err := nftables.ConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	if err != nil {
		return nil, fmt.Errorf("making nftables maps: %w", err)
	}
	maps := map[string]*nftables.Set{}
	for _, proto := range []string{"tcp", "udp"} {
		for name, key := range map[string]nftables.SetDatatype{"any_" + proto: nftables.TypeInetService, "one_" + proto: one} {
			maps[name] = &nftables.Set{Table: t.ours(), Name: name, IsMap: true, KeyType: key, DataType: one, Concatenation: strings.HasPrefix(name, "one")}
		}
	}
	return maps, nil
}

// chain describes a chain of the table.
type chain struct {
	*nftables.Chain
	rules [][]expr.Any
}

func (t *table) chains(maps map[string]*nftables.Set) []chain {
	base := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority, rules ...[]expr.Any) chain {
		return chain{&nftables.Chain{Name: name, Table: t.ours(), Type: typ, Hooknum: hook, Priority: prio}, rules}
	}
	var dnats [][]expr.Any
	for proto, num := range map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP} {
		dnats = append(dnats,
			slices.Concat(local(), l4(num), dportInto(reg1), daddrInto(reg0), dnat(maps["one_"+proto], reg0)),
			slices.Concat(local(), l4(num), dportInto(reg0), dnat(maps["any_"+proto], reg0)))
	}
	masq, drop := []expr.Any{&expr.Masq{}}, []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	return []chain{
		base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, dnats...),
		base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, dnats...),
		base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource,
			slices.Concat(saddrIn(t.subnet), oif(t.bridge, expr.CmpOpNeq), masq),
			slices.Concat(saddrIn(t.subnet), oif(t.bridge, expr.CmpOpEq), dnatted(expr.CmpOpNeq), masq),
			slices.Concat(saddrIn(loopback), oif(t.bridge, expr.CmpOpEq), masq)),
		base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter,
			slices.Concat(oif(t.bridge, expr.CmpOpEq), iifNot(t.bridge), unanswered(), dnatted(expr.CmpOpEq), drop)),
		base("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw,
			slices.Concat(iifNot("lo"), daddrIn(loopback), drop)),
	}
}

// intact reports whether r has our complete table. An edit within one of our rules goes
// unnoticed.
func (t *table) intact(r *ruleset) (bool, error) {
	want := t.chains(map[string]*nftables.Set{"any_tcp": {}, "any_udp": {}, "one_tcp": {}, "one_udp": {}})
	for _, w := range want {
		ch := r.find(nftables.TableFamilyIPv4, t.name(), w.Name)
		if ch == nil || ch.Hooknum == nil || *ch.Hooknum != *w.Hooknum || ch.Policy == nil || *ch.Policy != nftables.ChainPolicyAccept {
			return false, nil
		}
		rules, err := r.rules(ch)
		if err != nil {
			return false, err
		}
		strange := func(x rule) bool { return !bytes.Equal(x.userData, t.mark()) }
		if len(rules) != len(w.rules) || slices.ContainsFunc(rules, strange) {
			return false, nil
		}
	}
	elements := t.elements()
	maps, err := t.maps()
	if err != nil {
		return false, err
	}
	for name, s := range maps {
		have, err := r.c.GetSetElements(s)
		if err != nil {
			return false, fmt.Errorf("reading the nftables map %s: %w", name, err)
		}
		if !sameElements(have, elements[name]) {
			return false, nil
		}
	}
	return true, nil
}

func sameElements(have, want []nftables.SetElement) bool {
	values := map[string]string{}
	for _, e := range want {
		values[string(e.Key)] = string(e.Val)
	}
	for _, e := range have {
		if v, ok := values[string(e.Key)]; !ok || v != string(e.Val) {
			return false
		}
		delete(values, string(e.Key))
	}
	return len(values) == 0
}

// intend makes the next reconcile publish a sandbox's ports.
func (t *table) intend(s *Sandbox) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ports := destinations(s); len(ports) > 0 {
		t.want[s.ID] = ports
	}
}

func destinations(s *Sandbox) []destination {
	var out []destination
	for _, e := range s.Endpoints {
		for _, p := range e.Ports {
			out = append(out, destination{Port: p, to: e.IPv4().Addr()})
		}
	}
	return out
}

// publish adds a sandbox's elements; existing ones stay.
func (t *table) publish(s *Sandbox) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	ports := destinations(s)
	if _, ok := t.want[s.ID]; ok || len(ports) == 0 {
		return nil
	}
	t.want[s.ID] = ports
	if err := t.elementwise(ports, addElements); err != nil {
		delete(t.want, s.ID)
		return fmt.Errorf("publishing the ports of %s: %w", short(s.ID), err)
	}
	t.forgetDatagrams(ports)
	return nil
}

func (t *table) unpublish(s *Sandbox) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	ports, ok := t.want[s.ID]
	if !ok {
		return nil
	}
	delete(t.want, s.ID)
	if err := t.elementwise(ports, deleteElements); err != nil {
		t.want[s.ID] = ports
		return fmt.Errorf("unpublishing the ports of %s: %w", short(s.ID), err)
	}
	return nil
}

// elementwise changes the elements of ports. If the table or an element is missing, the
// whole table is rebuilt in its desired state.
func (t *table) elementwise(ports []destination, change func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error) error {
	c, err := dial()
	if err != nil {
		return err
	}
	maps, err := t.maps()
	if err != nil {
		return err
	}
	for name, elements := range elementsOf(ports) {
		if err := change(c, maps[name], elements); err != nil {
			return err
		}
	}
	err = c.Flush()
	if errors.Is(err, unix.ENOENT) {
		_, err = t.repair(true)
	}
	return err
}

func (t *table) destroy() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	c, err := dial()
	if err != nil {
		return err
	}
	c.AddTable(t.ours()) // a missing table is no error
	c.DelTable(t.ours())
	if err := c.Flush(); err != nil {
		return fmt.Errorf("removing the nftables table: %w", err)
	}
	return t.removeForeign()
}

func (t *table) elements() map[string][]nftables.SetElement {
	return elementsOf(t.all())
}

func (t *table) all() []destination {
	var all []destination
	for _, ports := range t.want {
		all = append(all, ports...)
	}
	return all
}

// elementsOf returns the elements of ports, by map.
func elementsOf(ports []destination) map[string][]nftables.SetElement {
	out := map[string][]nftables.SetElement{}
	for _, p := range ports {
		val := append(p.to.AsSlice(), pad(p.Container)...)
		name, key := "any_"+p.Proto, binaryutil.BigEndian.PutUint16(p.Host)
		if p.IP != "" {
			name, key = "one_"+p.Proto, append(netip.MustParseAddr(p.IP).AsSlice(), pad(p.Host)...)
		}
		out[name] = append(out[name], nftables.SetElement{Key: key, Val: val})
	}
	return out
}

// perMessage keeps a message of elements below netlink's 64 KiB per attribute.
const perMessage = 400

func addElements(c *nftables.Conn, s *nftables.Set, elements []nftables.SetElement) error {
	for some := range slices.Chunk(elements, perMessage) {
		if err := c.SetAddElements(s, some); err != nil {
			return fmt.Errorf("adding to the nftables map %s: %w", s.Name, err)
		}
	}
	return nil
}

func deleteElements(c *nftables.Conn, s *nftables.Set, elements []nftables.SetElement) error {
	for some := range slices.Chunk(elements, perMessage) {
		if err := c.SetDeleteElements(s, some); err != nil {
			return fmt.Errorf("removing from the nftables map %s: %w", s.Name, err)
		}
	}
	return nil
}

// pad lays out a port in four bytes, as concatenations do.
func pad(port uint16) []byte {
	b := make([]byte, 4)
	binary.BigEndian.PutUint16(b, port)
	return b
}

func dnat(s *nftables.Set, from uint32) []expr.Any {
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

// dnatted compares conntrack's DNAT bit with none.
func dnatted(op expr.CmpOp) []expr.Any {
	const ipsDstNAT = 1 << 5 // IPS_DST_NAT, linux/netfilter/nf_conntrack_common.h
	return ct(expr.CtKeySTATUS, ipsDstNAT, op)
}

// unanswered matches packets of connections that are neither established nor related.
func unanswered() []expr.Any {
	return ct(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED, expr.CmpOpEq)
}

// ct compares bits of a conntrack key with zero.
func ct(key expr.CtKey, bits uint32, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: 1, Data: make([]byte, 4)},
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
