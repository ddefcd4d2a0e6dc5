package server

import (
	"net/netip"
	"strings"
	"sync"

	"github.com/drover/drover/agent/resolver/resolverapi"
)

// table holds the names of the node's networks. Safe for concurrent use.
type table struct {
	mu    sync.RWMutex // guards the fields below
	node  string
	zones map[string]*zone    // by network
	here  map[string]struct{} // tasks with a sandbox on this node
}

// zone is the names of one network.
type zone struct {
	name    string                      // of the network
	records map[string]resolverapi.Name // by task
	names   map[string]*addresses       // by name in lower case; of what is answered
	reverse map[netip.Addr]string       // tasks; of what is answered
}

// addresses are those of one name. Many tasks may share it, so the list that queries use
// is made only when it is asked for.
type addresses struct {
	of   map[string][]netip.Addr // by task
	list []netip.Addr            // nil: of has changed; never modified
}

func newTable() *table {
	return &table{zones: map[string]*zone{}, here: map[string]struct{}{}}
}

// change applies an update's networks and names.
func (t *table) change(u *resolverapi.Update) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if u.Full {
		t.node, t.zones = u.Node, map[string]*zone{}
	}
	for _, id := range u.NetworksGone {
		delete(t.zones, id)
	}
	for _, n := range u.Networks {
		z := t.zones[n.ID]
		if z == nil {
			z = &zone{records: map[string]resolverapi.Name{}, names: map[string]*addresses{}, reverse: map[netip.Addr]string{}}
			t.zones[n.ID] = z
		}
		z.name = n.Name
	}
	for _, n := range u.Names {
		z := t.zones[n.Network]
		if z == nil {
			continue
		}
		if old, ok := z.records[n.Task]; ok {
			z.hide(old)
			delete(z.records, n.Task)
		}
		if n.Gone {
			continue
		}
		z.records[n.Task] = n
		if t.answered(n) {
			z.show(n)
		}
	}
}

// present records whether a task has a sandbox on this node.
func (t *table) present(task string, here bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if here {
		t.here[task] = struct{}{}
	} else {
		delete(t.here, task)
	}
	for _, z := range t.zones {
		n, ok := z.records[task]
		if !ok {
			continue
		}
		z.hide(n)
		if t.answered(n) {
			z.show(n)
		}
	}
}

// answered reports whether queries for a name are answered. Of its own tasks, this node
// knows it before the log does, and without it. It must be called with mu held.
func (t *table) answered(n resolverapi.Name) bool {
	if n.Node == t.node {
		_, here := t.here[n.Task]
		return here
	}
	return n.Running
}

func (z *zone) show(n resolverapi.Name) {
	for _, name := range n.Names {
		key := strings.ToLower(name)
		a := z.names[key]
		if a == nil {
			a = &addresses{of: map[string][]netip.Addr{}}
			z.names[key] = a
		}
		a.of[n.Task], a.list = n.IPs, nil
	}
	for _, ip := range n.IPs {
		z.reverse[ip] = n.Task
	}
}

func (z *zone) hide(n resolverapi.Name) {
	for _, name := range n.Names {
		key := strings.ToLower(name)
		a := z.names[key]
		if a == nil {
			continue
		}
		delete(a.of, n.Task)
		a.list = nil
		if len(a.of) == 0 {
			delete(z.names, key)
		}
	}
	for _, ip := range n.IPs {
		if z.reverse[ip] == n.Task {
			delete(z.reverse, ip)
		}
	}
}

// lookup resolves a name as docker does in a container's networks: the whole name in
// each of them, then its beginning in the network that its end names. A known name need
// not have addresses of the family that is asked for. The result must not be modified.
func (t *table) lookup(in []resolverapi.Endpoint, name string) (addrs []netip.Addr, known bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	for part, network := name, ""; ; {
		if addrs, known := t.within(in, part, network); known {
			return addrs, true
		}
		i := strings.LastIndexByte(part, '.')
		if i < 0 {
			return nil, false
		}
		part, network = name[:i], name[i+1:]
	}
}

// within resolves a name in one network, "" for all: first as a link of the container's
// own, which hides what else has that name.
func (t *table) within(in []resolverapi.Endpoint, name, network string) ([]netip.Addr, bool) {
	for _, links := range []bool{true, false} {
		for _, e := range in {
			to, link := linked(e, name)
			if link != links {
				continue
			}
			if addrs, known := t.in(e.Network, network, to); known {
				return addrs, true
			}
		}
	}
	return nil, false
}

func linked(e resolverapi.Endpoint, name string) (to string, ok bool) {
	for alias, of := range e.Links {
		if strings.EqualFold(alias, name) {
			return strings.ToLower(of), true
		}
	}
	return name, false
}

// in returns the addresses of a name in a network, if that is called so or called is "".
func (t *table) in(network, called, name string) ([]netip.Addr, bool) {
	t.mu.RLock()
	z := t.zones[network]
	if z == nil || called != "" && !strings.EqualFold(called, z.name) {
		t.mu.RUnlock()
		return nil, false
	}
	a := z.names[name]
	if a == nil || a.list != nil {
		defer t.mu.RUnlock()
		if a == nil {
			return nil, false
		}
		return a.list, true
	}
	t.mu.RUnlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if z = t.zones[network]; z == nil || z.names[name] == nil {
		return nil, false
	}
	a = z.names[name]
	if a.list == nil {
		a.list = []netip.Addr{}
		for _, ips := range a.of {
			a.list = append(a.list, ips...)
		}
	}
	return a.list, true
}

// nameOf returns the name of an address, with that of its network; "" if it has none.
func (t *table) nameOf(in []resolverapi.Endpoint, ip netip.Addr) string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, e := range in {
		z := t.zones[e.Network]
		if z == nil {
			continue
		}
		if n := z.records[z.reverse[ip]]; len(n.Names) > 0 {
			return n.Names[0] + "." + z.name
		}
	}
	return ""
}
