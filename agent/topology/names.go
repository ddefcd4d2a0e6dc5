package topology

import (
	"encoding/hex"
	"net/netip"

	"github.com/drover/drover/agent/resolver/resolverapi"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Watch has changes of networks and names passed to f from now on, in order. f must not
// block, nor call methods of t.
func (t *Topology) Watch(f func(Change)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watch = f
}

// All implements resolver.Names.
func (t *Topology) All() (networks []resolverapi.Network, names []resolverapi.Name) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, n := range t.networks {
		networks = append(networks, NetworkName(n.Network))
		for _, x := range n.names {
			names = append(names, Name(x))
		}
	}
	return networks, names
}

// NetworkName returns a network as a resolver knows it.
func NetworkName(n *dv1.Network) resolverapi.Network {
	return resolverapi.Network{ID: hexID(string(n.Id)), Name: n.Name}
}

// Name returns a name as a resolver knows it.
func Name(x *dv1.Name) resolverapi.Name {
	return resolverapi.Name{Network: hexID(string(x.NetworkId)), Task: hexID(string(x.TaskId)), Node: x.NodeId,
		IPs: addresses(x), Names: x.Names, Running: x.Running, Gone: x.Gone}
}

// addresses returns those of a name.
func addresses(x *dv1.Name) (out []netip.Addr) {
	for _, s := range []string{x.Ip, x.Ip6} {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

func hexID(id string) string { return hex.EncodeToString([]byte(id)) }
