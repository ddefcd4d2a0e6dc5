package network

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// table is drover's rules in this network namespace: one nftables table for IP packets,
// one for frames on bridges (chains.go), with what they compare packets with in sets
// (sets.go), and two rules or four in each of others' chains that would drop containers'
// packets (foreign.go). The kernel's ruleset is reconciled with that whenever it changes:
// nft flush ruleset, as on a reload of the nftables service, removes the tables, and
// firewalls come and go.
type table struct {
	log     *slog.Logger
	bridge  string
	prefix  string // of other bridges
	tunnel  string
	gateway netip.Addr // of this node

	mu sync.Mutex // orders transactions; guards the fields below
	// guarded has the families that containers use. True means that this host forwards
	// such packets because of drover only: those that are not for containers are dropped,
	// in the chain where others can accept them.
	guarded map[nftables.TableFamily]bool
	fleet   elements                 // what follows from the topology
	want    map[string]elements      // and from each container
	ports   map[string][]destination // published ports by container
	several bool                     // there are bridges other than the default one
	doors   []entry                  // open here
	unzoned bool                     // the kernel has no conntrack zones
	warned  map[string]bool          // others' chains that refused our rules
}

func newTable(o Options) *table {
	return &table{log: o.Log, bridge: o.Bridge, prefix: o.Prefix, tunnel: o.Tunnel, gateway: o.Subnet.Addr().Next(),
		guarded: map[nftables.TableFamily]bool{}, want: map[string]elements{}, ports: map[string][]destination{}, warned: map[string]bool{}}
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
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: t.name()}
}

// bridges is the table for frames.
func (t *table) bridges() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyBridge, Name: t.name()}
}

// tables are drover's, and those of earlier builds.
func (t *table) tables() (now, earlier []*nftables.Table) {
	return []*nftables.Table{t.ours(), t.bridges()}, []*nftables.Table{{Family: nftables.TableFamilyIPv4, Name: t.name()}}
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
	r, err := t.read()
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
	if err := c.Flush(); err != nil || !build {
		return err
	}
	return t.zone()
}

// build adds the whole tables to c's batch, replacing existing ones.
func (t *table) build(c *nftables.Conn) error {
	now, earlier := t.tables()
	for _, x := range slices.Concat(now, earlier) {
		c.AddTable(x) // a missing table can't be removed
		c.DelTable(x)
	}
	for _, x := range now {
		c.AddTable(x)
	}
	sets, err := t.sets()
	if err != nil {
		return err
	}
	all := t.elements()
	for name, s := range sets {
		if err := c.AddSet(s, nil); err != nil {
			return fmt.Errorf("making the nftables set %s: %w", name, err)
		}
		if err := addElements(c, s, all[name]); err != nil {
			return err
		}
	}
	for _, ch := range t.chains() {
		c.AddChain(ch.Chain)
		for _, exprs := range ch.rules {
			c.AddRule(&nftables.Rule{Table: ch.Table, Chain: ch.Chain, Exprs: exprs, UserData: t.mark()})
		}
	}
	return nil
}

// intact reports whether r has our complete tables. An edit within one of our rules goes
// unnoticed.
func (t *table) intact(r *ruleset) (bool, error) {
	if ok, err := t.complete(r); err != nil || !ok {
		return false, err
	}
	unlike, err := t.unlike(r)
	return len(unlike) == 0, err
}

// complete reports whether r has our chains and rules.
func (t *table) complete(r *ruleset) (bool, error) {
	for _, w := range t.chains() {
		ch := r.find(w.Table.Family, t.name(), w.Name)
		if ch == nil || ch.Hooknum == nil || *ch.Hooknum != *w.Hooknum || ch.Policy == nil || *ch.Policy != nftables.ChainPolicyAccept {
			return false, nil
		}
		rules, err := r.rules(ch)
		if err != nil {
			return false, err
		}
		strange := func(x rule) bool { return !bytes.Equal(x.userData, t.mark()) }
		if w.Name == zonesChain && !t.unzoned {
			w.rules = append(w.rules, nil)
		}
		if len(rules) != len(w.rules) || slices.ContainsFunc(rules, strange) {
			return false, nil
		}
	}
	return true, nil
}

// unlike returns a sentence for each set that does not hold what it should.
func (t *table) unlike(r *ruleset) ([]string, error) {
	sets, err := t.sets()
	if err != nil {
		return nil, err
	}
	all := t.elements()
	var out []string
	for name, s := range sets {
		have, err := r.c.GetSetElements(s)
		if err != nil {
			return nil, fmt.Errorf("reading the nftables set %s: %w", name, err)
		}
		if !same(have, all[name]) {
			out = append(out, fmt.Sprintf("firewall: the set %s holds %d elements, and others than it should", name, len(have)))
		}
	}
	return out, nil
}

// intend makes the next reconcile allow for a sandbox.
func (t *table) intend(s *Sandbox) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.want[s.ID], t.ports[s.ID] = elementsOf(s), destinations(s)
}

// publish allows for a sandbox: its addresses and its ports. What is there already
// stays.
func (t *table) publish(s *Sandbox) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.change(s.ID, elementsOf(s)); err != nil {
		return fmt.Errorf("publishing the ports of %s: %w", short(s.ID), err)
	}
	if ports := destinations(s); !slices.Equal(ports, t.ports[s.ID]) {
		t.ports[s.ID] = ports
		t.forgetDatagrams(ports)
	}
	return nil
}

func (t *table) unpublish(s *Sandbox) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.change(s.ID, nil); err != nil {
		return fmt.Errorf("unpublishing the ports of %s: %w", short(s.ID), err)
	}
	delete(t.want, s.ID)
	delete(t.ports, s.ID)
	return nil
}

// change exchanges a container's elements. It must be called with mu held.
func (t *table) change(id string, after elements) error {
	before := t.want[id]
	t.want[id] = after
	if err := t.exchange(before, after); err != nil {
		t.want[id] = before
		return err
	}
	return nil
}

// setFilter exchanges what follows from the topology.
func (t *table) setFilter(f filter) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	before, several, doors := t.fleet, t.several, t.doors
	t.fleet, t.several, t.doors = f.elements(), len(f.bridges) > 1, f.doors
	if before == nil {
		return nil // the table is built next
	}
	if err := t.exchange(before, t.fleet); err != nil {
		t.fleet, t.several, t.doors = before, several, doors
		return fmt.Errorf("changing the nftables table %s: %w", t.name(), err)
	}
	if err := forgetDoors(doors, t.doors, markOf(t.gateway)); err != nil {
		t.log.Warn("clients may not reach containers through this node", "err", err)
	}
	if t.several == several && len(t.doors) > 0 == (len(doors) > 0) {
		return nil
	}
	_, err := t.repair(false) // the rules in others' chains
	return err
}

// exchange changes elements. If a table or an element is missing, all is rebuilt as it
// should be.
func (t *table) exchange(before, after elements) error {
	c, err := dial()
	if err != nil {
		return err
	}
	sets, err := t.sets()
	if err != nil {
		return err
	}
	if err := exchange(c, sets, before, after); err != nil {
		return err
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
	now, earlier := t.tables()
	for _, x := range slices.Concat(now, earlier) {
		c.AddTable(x) // a missing table is no error
		c.DelTable(x)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("removing the nftables table: %w", err)
	}
	return t.removeForeign()
}

// elements returns all that the sets should hold.
func (t *table) elements() elements {
	out := elements{}
	for _, some := range append(slices.Collect(maps.Values(t.want)), t.fleet) {
		for name, x := range some {
			out[name] = append(out[name], x...)
		}
	}
	return out
}

func (t *table) all() []destination {
	var all []destination
	for _, ports := range t.ports {
		all = append(all, ports...)
	}
	return all
}

func familyName(f nftables.TableFamily) string {
	return map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}[f]
}
