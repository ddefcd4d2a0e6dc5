package command

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/ipam"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/subnet"
)

// Predefined lists docker's networks that each fleet has, which are no records.
var Predefined = []string{"bridge", "host", "none"}

// maxNetwork bounds a network's definition, in bytes: nodes are sent it, and it must fit
// into one log entry.
const maxNetwork = 64 << 10

// maxNetworks bounds how many networks there are: a number names a bridge on each node.
const maxNetworks = 1 << 16

// FindNetwork returns the network that a reference means, as docker resolves it: full id,
// name, unique id prefix.
func FindNetwork(s *state.Snapshot, ref string) (*dv1.Network, *dv1.Error) {
	if id, err := hex.DecodeString(ref); err == nil && len(id) == 32 {
		if n := s.Network(id); n != nil && !n.Removing {
			return n, nil
		}
	}
	if n := s.NetworkByName(ref); n != nil {
		return n, nil
	}
	found := slices.DeleteFunc(s.NetworksByPrefix(ref), func(n *dv1.Network) bool { return n.Removing })
	switch len(found) {
	case 0:
		return nil, refuse(dv1.Error_NOT_FOUND, "network %s not found", ref)
	case 1:
		return found[0], nil
	}
	return nil, refuse(dv1.Error_INVALID, "network %s is ambiguous (%d matches found based on ID prefix)", ref, len(found))
}

// network returns a network that is not being removed.
func (d *decision) network(id []byte) (*dv1.Network, *dv1.Error) {
	n := d.Network(id)
	if n == nil || n.Removing {
		return nil, refuse(dv1.Error_NOT_FOUND, "network %x not found", id)
	}
	return n, nil
}

// haveNetworks refuses networks until all controllers know them.
func (d *decision) haveNetworks() *dv1.Error {
	if d.Level() < state.LevelNetworks {
		return refuse(dv1.Error_UNAVAILABLE, "networks have to wait until all controllers know them: drover node and controller lists show which is older")
	}
	return nil
}

func (d *decision) createNetwork(asked *dv1.Network) *dv1.Error {
	if e := d.haveNetworks(); e != nil {
		return e
	}
	n := proto.CloneOf(asked)
	if len(n.GetId()) != 32 || d.Network(n.Id) != nil {
		return refuse(dv1.Error_INVALID, "a network needs a new id of 32 bytes")
	}
	n.Created, n.Principal, n.Revision, n.Removing = d.now, d.cmd.Principal, 0, false
	if n.Driver == "" {
		n.Driver = "bridge"
	}
	for _, check := range []func(*dv1.Network) *dv1.Error{d.checkNetworkName, checkSubnets, checkDriver, d.chooseSubnets} {
		if e := check(n); e != nil {
			return e
		}
	}
	if size := proto.Size(n); size > maxNetwork {
		return refuse(dv1.Error_INVALID, "the network's definition has %d bytes; %d at most", size, maxNetwork)
	}
	d.add(&dv1.Effect{Of: &dv1.Effect_Network{Network: n}})
	d.res.NetworkId, d.res.Name = n.Id, n.Name
	return nil
}

func (d *decision) checkNetworkName(n *dv1.Network) *dv1.Error {
	switch {
	case slices.Contains(Predefined, n.Name), container.NetworkMode(n.Name).IsDefault(): // nobody could name it
		return refuse(dv1.Error_FORBIDDEN, "operation is not permitted on predefined %s network", n.Name)
	case strings.TrimSpace(n.Name) == "":
		return refuse(dv1.Error_INVALID, "invalid name: name is empty")
	case strings.ContainsFunc(n.Name, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return refuse(dv1.Error_INVALID, "invalid name: %q has control characters", n.Name)
	case d.NetworkByName(n.Name) != nil:
		return refuse(dv1.Error_CONFLICT, "network with name %s already exists", n.Name)
	}
	return nil
}

// checkDriver accepts the drivers that mean a network of the fleet.
func checkDriver(n *dv1.Network) *dv1.Error {
	switch n.Driver {
	case "bridge", "overlay":
	case "host", "null":
		return refuse(dv1.Error_FORBIDDEN, "only one instance of %q network is allowed", n.Driver)
	default:
		return refuse(dv1.Error_NOT_FOUND, "plugin %q not found", n.Driver)
	}
	if !n.Ipv4 && !n.Ipv6 {
		return refuse(dv1.Error_INVALID, "IPv4 or IPv6 must be enabled")
	}
	return nil
}

// checkSubnets reports all that is wrong with the form of what was asked for, as docker
// does, and leaves out subnets of a family that the network doesn't have.
func checkSubnets(n *dv1.Network) *dv1.Error {
	var wrong []string
	n.Subnets = slices.DeleteFunc(n.Subnets, func(s *dv1.Subnet) bool {
		p, err := netip.ParsePrefix(s.Prefix)
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("invalid subnet %s: it is no network", s.Prefix))
			return false
		}
		if p.Addr().Is6() && !n.Ipv6 || p.Addr().Is4() && !n.Ipv4 {
			return true
		}
		wrong = append(wrong, checkSubnet(s, p)...)
		return false
	})
	switch len(wrong) {
	case 0:
		return nil
	case 1:
		return refuse(dv1.Error_INVALID, "invalid network config:\n%s", wrong[0])
	}
	return refuse(dv1.Error_INVALID, "invalid network config:\n* %s", strings.Join(wrong, "\n* "))
}

func checkSubnet(s *dv1.Subnet, p netip.Prefix) (wrong []string) {
	family := 4
	if p.Addr().Is6() {
		family = 6
	}
	if p != p.Masked() {
		wrong = append(wrong, fmt.Sprintf("invalid subnet %s: it should be %s", p, p.Masked()))
	}
	if a := p.Addr(); !a.IsUnspecified() && (!a.IsGlobalUnicast() || a.Is4In6()) {
		wrong = append(wrong, fmt.Sprintf("invalid subnet %s: it is not for hosts", p))
	}
	if s.IpRange != "" {
		wrong = append(wrong, checkRange(s.IpRange, p, family)...)
	}
	address := func(text string) string {
		a, err := netip.ParseAddr(text)
		switch {
		case err != nil:
			return "it is no address"
		case a.Is4() != p.Addr().Is4():
			return fmt.Sprintf("parent subnet is an IPv%d block", family)
		case !p.Contains(a):
			return fmt.Sprintf("parent subnet %s doesn't contain this address", p)
		}
		return ""
	}
	if s.Gateway != "" {
		if why := address(s.Gateway); why != "" {
			wrong = append(wrong, fmt.Sprintf("invalid gateway %s: %s", s.Gateway, why))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Reserved)) {
		if why := address(s.Reserved[name]); why != "" {
			wrong = append(wrong, fmt.Sprintf("invalid auxiliary address %s: %s", name, why))
		}
	}
	return wrong
}

func checkRange(text string, p netip.Prefix, family int) (wrong []string) {
	r, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return []string{fmt.Sprintf("invalid ip-range %s: it is no network", text)}
	case r.Addr().Is4() != p.Addr().Is4():
		return []string{fmt.Sprintf("invalid ip-range %s: parent subnet is an IPv%d block", r, family)}
	}
	if r.Bits() < p.Bits() {
		wrong = append(wrong, fmt.Sprintf("invalid ip-range %s: CIDR block is bigger than its parent subnet %s", r, p))
	}
	if r != r.Masked() {
		wrong = append(wrong, fmt.Sprintf("invalid ip-range %s: it should be %s", r, r.Masked()))
	}
	if !p.Overlaps(r) {
		wrong = append(wrong, fmt.Sprintf("invalid ip-range %s: parent subnet %s doesn't contain ip-range", r, p))
	}
	return wrong
}

// chooseSubnets gives the network its number, a subnet for each family that was left to
// the fleet, and gateways.
func (d *decision) chooseSubnets(n *dv1.Network) *dv1.Error {
	n.Number = 1
	for other := range d.NetworksByNumber() {
		if other.Number > n.Number {
			break
		}
		n.Number = other.Number + 1
	}
	if n.Number >= maxNetworks {
		return refuse(dv1.Error_UNAVAILABLE, "the fleet has %d networks; remove one first", maxNetworks-1)
	}
	taken := ipam.Subnets(d.Snapshot)
	has := map[bool]bool{} // whether a subnet is IPv6
	for _, s := range n.Subnets {
		p, _ := netip.ParsePrefix(s.Prefix)
		has[p.Addr().Is6()] = true
		if p.Addr().IsUnspecified() { // only its size is asked for
			if s.IpRange != "" || s.Gateway != "" || len(s.Reserved) > 0 {
				return refuse(dv1.Error_INVALID, "addresses of a subnet can't be chosen without the subnet")
			}
			if e := d.chooseSubnet(s, taken, n.Number, p); e != nil {
				return e
			}
		} else if what, overlaps := d.overlaps(taken, p); overlaps {
			return refuse(dv1.Error_FORBIDDEN, "invalid pool request: Pool overlaps with other one on this address space%s", what)
		}
		p, _ = netip.ParsePrefix(s.Prefix)
		taken = append(taken, p)
	}
	for _, family := range []struct {
		wanted bool
		any    netip.Prefix
	}{{n.Ipv4, netip.PrefixFrom(netip.IPv4Unspecified(), 0)}, {n.Ipv6, netip.PrefixFrom(netip.IPv6Unspecified(), 0)}} {
		if !family.wanted || has[family.any.Addr().Is6()] {
			continue
		}
		s := &dv1.Subnet{}
		if e := d.chooseSubnet(s, taken, n.Number, family.any); e != nil {
			return e
		}
		n.Subnets = append(n.Subnets, s)
	}
	for _, s := range n.Subnets {
		if s.Gateway != "" {
			continue
		}
		a := ipam.Gateway(s)
		if !a.IsValid() {
			return refuse(dv1.Error_UNAVAILABLE, "failed to allocate gateway (): no available addresses on this pool")
		}
		s.Gateway = a.String()
	}
	return nil
}

// chooseSubnet chooses a subnet of the family and, if it is not 0, of the length of any.
func (d *decision) chooseSubnet(s *dv1.Subnet, taken []netip.Prefix, number uint32, any netip.Prefix) *dv1.Error {
	var p netip.Prefix
	var ok bool
	if any.Addr().Is6() {
		p, ok = ipam.FreeSubnet6(d.Snapshot, taken, number, any.Bits())
	} else {
		p, ok = ipam.FreeSubnet(d.Snapshot, taken, any.Bits())
	}
	if !ok {
		return refuse(dv1.Error_INVALID, "all predefined address pools have been fully subnetted: choose a subnet, or add a pool (drover node pool add --networks)")
	}
	s.Prefix, s.Chosen = p.String(), true
	return nil
}

// overlaps returns what a subnet would take addresses from, in words that follow docker's.
func (d *decision) overlaps(taken []netip.Prefix, p netip.Prefix) (what string, overlaps bool) {
	if other, overlaps := ipam.Overlap(d.Snapshot, taken, p); overlaps {
		if slices.Contains(taken, other) {
			return "", true // docker's own case
		}
		return fmt.Sprintf(": %s is a node's", other), true
	}
	// A host's own address within a network would cut it off from its fleet.
	for n := range d.Nodes() {
		if at, err := netip.ParseAddrPort(n.Addr); err == nil && p.Contains(at.Addr().Unmap()) {
			return fmt.Sprintf(": node %s is at %s", n.Name, at.Addr()), true
		}
	}
	for c := range d.Controllers() {
		if at, err := netip.ParseAddrPort(c.Addr); err == nil && p.Contains(at.Addr().Unmap()) {
			return fmt.Sprintf(": controller %s is at %s", c.Name, at.Addr()), true
		}
	}
	return "", false
}

// maxShown bounds how many endpoints a refusal names.
const maxShown = 10

// removeNetwork removes a network without endpoints. Its subnets stay taken until nodes
// have acknowledged the endpoints that it had.
func (d *decision) removeNetwork(id []byte) *dv1.Error {
	n, e := d.network(id)
	if e != nil {
		return e
	}
	var active []string
	left := false
	for ep := range d.EndpointsOfNetwork(n.Id) {
		if ep.Leaving {
			left = true
		} else if active = append(active, fmt.Sprintf("name:%q id:%q", d.Task(ep.TaskId).GetName(), hex.EncodeToString(ep.Id)[:12])); len(active) > maxShown {
			active[maxShown] = "…"
			break
		}
	}
	if len(active) > 0 {
		return refuse(dv1.Error_FORBIDDEN, "error while removing network: network %s has active endpoints (%s)", n.Name, strings.Join(active, ", "))
	}
	for run := range d.RunsFilling() {
		if slices.ContainsFunc(run.Endpoints, func(e *dv1.Endpoint) bool { return bytes.Equal(e.NetworkId, id) }) {
			return refuse(dv1.Error_FORBIDDEN, "error while removing network: network %s has active endpoints (of run %s, whose tasks are being made)", n.Name, run.Name)
		}
	}
	d.res.Name = n.Name
	if !left {
		d.add(&dv1.Effect{Of: &dv1.Effect_DeleteNetwork{DeleteNetwork: n.Id}})
		return nil
	}
	n = proto.CloneOf(n)
	n.Removing = true
	d.add(&dv1.Effect{Of: &dv1.Effect_Network{Network: n}})
	return nil
}

// nodeSubnet returns the lowest free node subnet of a pool that no network overlaps.
func (d *decision) nodeSubnet(pool netip.Prefix) (netip.Prefix, bool) {
	networks := ipam.Subnets(d.Snapshot)
	first, last := subnet.Numbers(pool)
search:
	for {
		p, ok := subnet.FreeFrom(first, last, d.Subnets(), d.SubnetAt)
		if !ok {
			return p, false
		}
		for _, other := range networks {
			if other.Overlaps(p) {
				_, end := subnet.Numbers(other)
				if end >= last {
					return p, false
				}
				first = end + 1
				continue search
			}
		}
		return p, true
	}
}
