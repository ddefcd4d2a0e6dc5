package command

import (
	"net/netip"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/ipam"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/subnet"
)

// Pools returns a cluster's address pools, in the order in which they are used.
func Pools(c *dv1.Cluster) (out []netip.Prefix) {
	for _, s := range append([]string{c.GetPool()}, c.GetMorePools()...) {
		if p, err := netip.ParsePrefix(s); err == nil && p.Addr().Is4() && p.Bits() <= subnet.Bits {
			out = append(out, p.Masked())
		}
	}
	return out
}

// freeSubnet returns the lowest free subnet of the first pool that has one. Subnets
// of removed nodes are reused, and those that networks overlap are left out.
func (d *decision) freeSubnet() (netip.Prefix, *dv1.Error) {
	pools := Pools(d.Cluster())
	if len(pools) == 0 {
		return netip.Prefix{}, refuse(dv1.Error_UNAVAILABLE, "the cluster has no address pool: add one with drover node pool add")
	}
	var names []string
	for _, pool := range pools {
		if p, ok := d.nodeSubnet(pool); ok {
			return p, nil
		}
		names = append(names, pool.String())
	}
	return netip.Prefix{}, refuse(dv1.Error_UNAVAILABLE, "no node's subnet is left in %s: each node takes a /24; add a pool (drover node pool add), or remove a dead node (drover node rm)", strings.Join(names, " and "))
}

func (d *decision) addPool(c *dv1.AddPool) *dv1.Error {
	switch {
	case d.Cluster() == nil:
		return refuse(dv1.Error_UNAVAILABLE, "there is no fleet yet")
	case c.GetPool() != "" && c.GetNetworkPool() != "":
		return refuse(dv1.Error_INVALID, "a pool is for nodes or for networks")
	case c.GetNetworkPool() != "":
		return d.addNetworkPool(c.NetworkPool)
	}
	return d.addNodePool(c.GetPool())
}

// addNetworkPool adds a pool behind those that there are, also the default one. It may
// overlap the nodes' pools, as that one does: neither takes what the other has in use.
func (d *decision) addNetworkPool(s string) *dv1.Error {
	pool, err := subnet.ParseNetworkPool(s)
	if err != nil {
		return refuse(dv1.Error_INVALID, "%v", err)
	}
	c := proto.CloneOf(d.Cluster())
	c.NetworkPools = nil
	for _, p := range ipam.Pools(d.Cluster()) {
		if p == pool {
			return nil
		}
		if p.Base.Overlaps(pool.Base) {
			return refuse(dv1.Error_CONFLICT, "network pool %s overlaps %s", pool, p)
		}
		c.NetworkPools = append(c.NetworkPools, p.String())
	}
	c.NetworkPools = append(c.NetworkPools, pool.String())
	d.add(&dv1.Effect{Of: &dv1.Effect_Cluster{Cluster: c}})
	return nil
}

func (d *decision) addNodePool(s string) *dv1.Error {
	pool, err := subnet.ParsePool(s)
	if err != nil {
		return refuse(dv1.Error_INVALID, "%v", err)
	}
	for _, p := range Pools(d.Cluster()) {
		if p == pool {
			return nil
		}
		if p.Overlaps(pool) {
			return refuse(dv1.Error_CONFLICT, "address pool %s overlaps %s", pool, p)
		}
	}
	c := proto.CloneOf(d.Cluster())
	c.MorePools = append(c.MorePools, pool.String())
	d.add(&dv1.Effect{Of: &dv1.Effect_Cluster{Cluster: c}})
	return nil
}
