package engineapi

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/ipam"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/fields"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/subnet"
)

// scope of all networks: a fleet is one engine, and what has the scope swarm is treated
// as Swarm's by clients.
const scope = "local"

// predefined are docker's networks that are no records, with their drivers.
var predefined = map[string]string{network.NetworkBridge: "bridge", network.NetworkHost: "host", network.NetworkNone: "null"}

// findNetwork looks a network up as docker does: full id, name, unique id prefix. name is
// that of a predefined one, and n is nil then.
func findNetwork(snap *state.Snapshot, ref string) (n *dv1.Network, name string, err error) {
	var prefixed []string
	for name := range predefined {
		if ref == name || ref == networkID(name) {
			return nil, name, nil
		}
		if ref != "" && strings.HasPrefix(networkID(name), ref) {
			prefixed = append(prefixed, name)
		}
	}
	n, e := command.FindNetwork(snap, ref)
	switch {
	case e == nil && (len(prefixed) == 0 || n.Name == ref):
		return n, "", nil
	case e != nil && e.Kind == dv1.Error_NOT_FOUND && len(prefixed) == 1:
		return nil, prefixed[0], nil
	case len(prefixed) > 0:
		return nil, "", refuse(http.StatusBadRequest, "network %s is ambiguous (%d matches found based on ID prefix)", ref, len(prefixed)+len(snap.NetworksByPrefix(ref)))
	}
	return nil, "", decided(e)
}

// networkOf returns a network as docker describes it.
func networkOf(n *dv1.Network) network.Network {
	out := network.Network{
		Name: n.Name, ID: hex.EncodeToString(n.Id), Created: time.Unix(0, n.Created).UTC(), Scope: scope, Driver: n.Driver,
		EnableIPv4: n.Ipv4, EnableIPv6: n.Ipv6, Internal: n.Internal, Attachable: n.Attachable, Options: filled(n.Options), Labels: filled(n.Labels),
		IPAM: network.IPAM{Driver: "default", Options: n.IpamOptions},
	}
	if n.IpamDriver != "" {
		out.IPAM.Driver = n.IpamDriver
	}
	for _, s := range n.Subnets {
		c := network.IPAMConfig{}
		c.Subnet, _ = netip.ParsePrefix(s.Prefix)
		c.IPRange, _ = netip.ParsePrefix(s.IpRange)
		c.Gateway, _ = netip.ParseAddr(s.Gateway)
		for name, text := range s.Reserved {
			if a, err := netip.ParseAddr(text); err == nil {
				if c.AuxAddress == nil {
					c.AuxAddress = map[string]netip.Addr{}
				}
				c.AuxAddress[name] = a
			}
		}
		out.IPAM.Config = append(out.IPAM.Config, c)
	}
	return out
}

// filled returns a map that is {} in JSON, not null.
func filled(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

// predefinedOf describes a predefined network. The default bridge has the contact's
// addresses: each node has its own, and clients dial its gateway.
func (s *server) predefinedOf(snap *state.Snapshot, name, contact string) network.Network {
	out := network.Network{
		Name: name, ID: networkID(name), Created: time.Unix(0, snap.Cluster().GetCreated()).UTC(), Scope: scope, Driver: predefined[name], EnableIPv4: true,
		Options: map[string]string{}, Labels: map[string]string{}, IPAM: network.IPAM{Driver: "default"},
	}
	if name != network.NetworkBridge {
		return out
	}
	out.Options = map[string]string{
		"com.docker.network.bridge.default_bridge": "true", "com.docker.network.bridge.enable_icc": "true", "com.docker.network.bridge.enable_ip_masquerade": "true",
		"com.docker.network.bridge.host_binding_ipv4": "0.0.0.0", "com.docker.network.bridge.name": "docker0", "com.docker.network.driver.mtu": "1500",
	}
	if p, ok := subnet.Of(snap.Node(contact).GetSubnet()); ok {
		out.IPAM.Config = []network.IPAMConfig{{Subnet: p, Gateway: p.Addr().Next()}}
	}
	return out
}

func (s *server) listNetworks(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.state(w, r)
	if err != nil {
		return err
	}
	f, err := parseFilters(r, "dangling", "driver", "id", "label", "name", "scope", "type")
	if err != nil {
		return err
	}
	keep, err := newNetworkSieve(snap, f)
	if err != nil {
		return err
	}
	all := []network.Network{}
	for _, name := range command.Predefined {
		if n := s.predefinedOf(snap, name, s.contact(r)); keep.passes(n, true) {
			all = append(all, n)
		}
	}
	for n := range snap.NetworksByNumber() {
		if out := networkOf(n); !n.Removing && keep.passes(out, keep.used(n)) {
			all = append(all, out)
		}
	}
	if apiVersion(r) >= 28 {
		out := make([]network.Summary, 0, len(all))
		for _, n := range all {
			out = append(out, network.Summary{Network: n})
		}
		return answer(w, http.StatusOK, out)
	}
	out := make([]network.Inspect, 0, len(all))
	for _, n := range all {
		out = append(out, network.Inspect{Network: n, Containers: s.members(r, snap, n)})
	}
	return answer(w, http.StatusOK, out)
}

func (s *server) inspectNetwork(w http.ResponseWriter, r *http.Request) error {
	ref := r.PathValue("id")
	snap, err := s.stateWith(w, r, func(snap *state.Snapshot) bool {
		_, _, err := findNetwork(snap, ref)
		return err == nil
	})
	if err != nil {
		return err
	}
	n, name, err := findNetwork(snap, ref)
	if err != nil {
		return err
	}
	if want := r.URL.Query().Get("scope"); want != "" && want != scope {
		return refuse(http.StatusNotFound, "network %s not found", ref)
	}
	out := network.Inspect{}
	if n == nil {
		out.Network = s.predefinedOf(snap, name, s.contact(r))
	} else {
		out.Network = networkOf(n)
	}
	out.Containers = s.members(r, snap, out.Network)
	if n != nil && apiVersion(r) >= 52 {
		out.Status = &network.Status{IPAM: network.IPAMStatus{Subnets: network.SubnetStatuses{}}}
		for _, sub := range n.Subnets {
			if p, err := netip.ParsePrefix(sub.Prefix); err == nil {
				used, free := ipam.Usage(snap, n, sub)
				out.Status.IPAM.Subnets[p] = network.SubnetStatus{IPsInUse: used, DynamicIPsAvailable: free}
			}
		}
	}
	return answer(w, http.StatusOK, out)
}

// members returns the containers that run in a network, by id.
func (s *server) members(r *http.Request, snap *state.Snapshot, n network.Network) map[string]network.EndpointResource {
	out := map[string]network.EndpointResource{}
	if predefined[n.Name] != "" {
		return s.predefinedMembers(r, snap, n.Name)
	}
	id, _ := hex.DecodeString(n.ID)
	for e := range snap.EndpointsOfNetwork(id) {
		t := snap.Task(e.TaskId)
		if t == nil || e.Leaving || !state.Running(t) {
			continue
		}
		member := network.EndpointResource{Name: t.Name, EndpointID: hex.EncodeToString(e.Id)}
		_ = member.MacAddress.UnmarshalText([]byte(e.Mac))
		member.IPv4Address, member.IPv6Address = within(n, e.Ip), within(n, e.Ip6)
		out[hexID(t)] = member
	}
	return out
}

// within returns an address with the prefix length of its subnet.
func within(n network.Network, text string) netip.Prefix {
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}
	}
	for _, c := range n.IPAM.Config {
		if c.Subnet.Contains(a) {
			return netip.PrefixFrom(a, c.Subnet.Bits())
		}
	}
	return netip.PrefixFrom(a, a.BitLen())
}

// predefinedMembers are those of a network that no records say who is in.
func (s *server) predefinedMembers(r *http.Request, snap *state.Snapshot, name string) map[string]network.EndpointResource {
	out := map[string]network.EndpointResource{}
	var tasks []*dv1.Task
	for t := range snap.LiveTasksByAge() {
		if v := (&view{shape: s.shapeOf(snap, t)}); v.networkMode() == name && (name != network.NetworkBridge || fields.Bridged(&v.req)) {
			tasks = append(tasks, t)
		}
	}
	seen := s.Fleet.Observe(r.Context(), fleet.Query{Tasks: liveIDs(tasks)})
	for _, t := range tasks {
		v := s.view(snap, seen, t)
		if st := v.state(); st != container.StateRunning && st != container.StatePaused {
			continue
		}
		member := network.EndpointResource{Name: t.Name, EndpointID: hexID(t)}
		if a, err := netip.ParseAddr(v.st.GetIp()); err == nil && name == network.NetworkBridge {
			member.IPv4Address = netip.PrefixFrom(a, int(v.st.GetPrefixLen()))
			_ = member.MacAddress.UnmarshalText([]byte(v.st.GetMac()))
		}
		out[hexID(t)] = member
	}
	return out
}

func (s *server) createNetwork(w http.ResponseWriter, r *http.Request) error {
	var req network.CreateRequest
	sent, err := readBody(r, &req)
	if err != nil {
		return err
	}
	if apiVersion(r) < 48 {
		req.EnableIPv4 = nil
	}
	if _, err := fields.NetworkCreate.Check(&req); err != nil {
		return err
	}
	res, err := s.propose(w, r, sent, &dv1.Command{Of: &dv1.Command_CreateNetwork{CreateNetwork: &dv1.CreateNetwork{Network: newNetwork(&req)}}})
	if err != nil {
		return err
	}
	return answer(w, http.StatusCreated, network.CreateResponse{ID: hex.EncodeToString(res.NetworkId)})
}

// newNetwork is what a request asks for, with a new id.
func newNetwork(req *network.CreateRequest) *dv1.Network {
	n := &dv1.Network{Id: make([]byte, 32), Name: req.Name, Driver: req.Driver, Internal: req.Internal, Attachable: req.Attachable, Options: req.Options, Labels: req.Labels}
	_, _ = rand.Read(n.Id) // never fails
	n.Ipv4 = req.EnableIPv4 == nil || *req.EnableIPv4
	n.Ipv6 = req.EnableIPv6 != nil && *req.EnableIPv6
	if req.IPAM == nil {
		return n
	}
	n.IpamDriver, n.IpamOptions = req.IPAM.Driver, req.IPAM.Options
	for _, c := range req.IPAM.Config {
		if !c.Subnet.IsValid() && !c.IPRange.IsValid() && !c.Gateway.IsValid() && len(c.AuxAddress) == 0 {
			continue // nothing is chosen
		}
		sub := &dv1.Subnet{Reserved: map[string]string{}}
		if c.Subnet.IsValid() {
			sub.Prefix = netip.PrefixFrom(c.Subnet.Addr().Unmap(), c.Subnet.Bits()).String()
		}
		if c.IPRange.IsValid() {
			sub.IpRange = netip.PrefixFrom(c.IPRange.Addr().Unmap(), c.IPRange.Bits()).String()
		}
		if c.Gateway.IsValid() {
			sub.Gateway = c.Gateway.Unmap().String()
		}
		for name, a := range c.AuxAddress {
			sub.Reserved[name] = a.Unmap().String()
		}
		n.Subnets = append(n.Subnets, sub)
	}
	return n
}

func (s *server) removeNetwork(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.state(w, r)
	if err != nil {
		return err
	}
	n, name, err := findNetwork(snap, r.PathValue("id"))
	switch {
	case err != nil:
		return s.doneBefore(w, r, snap, err)
	case n == nil:
		return refuse(http.StatusForbidden, "%s is a pre-defined network and cannot be removed", name)
	}
	if _, err := s.propose(w, r, nil, &dv1.Command{Of: &dv1.Command_RemoveNetwork{RemoveNetwork: &dv1.RemoveNetwork{Id: n.Id}}}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// pruneNetworks removes the networks without containers. A container may come meanwhile:
// its network stays.
func (s *server) pruneNetworks(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.state(w, r)
	if err != nil {
		return err
	}
	f, err := parseFilters(r, "label", "label!", "until")
	if err != nil {
		return err
	}
	keep, err := newNetworkSieve(snap, f)
	if err != nil {
		return err
	}
	p, _ := pki.PrincipalFrom(r.Context())
	out := struct{ NetworksDeleted []string }{}
	for _, n := range slices.Collect(snap.NetworksByNumber()) {
		if n.Removing || keep.used(n) || !keep.passes(networkOf(n), false) {
			continue
		}
		// Without the caller's key, which is of one command.
		res, err := s.Fleet.Propose(r.Context(), &dv1.Command{Principal: p.URI, Of: &dv1.Command_RemoveNetwork{RemoveNetwork: &dv1.RemoveNetwork{Id: n.Id}}})
		if err != nil {
			return fmt.Errorf("removing network %s: %w", n.Name, err)
		}
		if res.Error == nil {
			out.NetworksDeleted = append(out.NetworksDeleted, n.Name)
		}
	}
	s.Fleet.Pruned(string(events.NetworkEventType), 0)
	return answer(w, http.StatusOK, out)
}

// networkSieve holds compiled filters of networks.
type networkSieve struct {
	filters
	snap     *state.Snapshot
	names    []*regexp.Regexp
	ids      []*regexp.Regexp
	dangling string // "", true or false
	until    int64  // Unix nanoseconds, 0: none
}

func newNetworkSieve(snap *state.Snapshot, f filters) (*networkSieve, error) {
	k := &networkSieve{filters: f, snap: snap}
	for key, out := range map[string]*[]*regexp.Regexp{"name": &k.names, "id": &k.ids} {
		for _, v := range f[key] {
			re, err := regexp.Compile(v)
			if err != nil {
				return nil, refuse(http.StatusBadRequest, "invalid filter '%s=%s': %v", key, v, err)
			}
			*out = append(*out, re)
		}
	}
	switch v := f["dangling"]; {
	case len(v) > 1:
		return nil, refuse(http.StatusBadRequest, `got more than one value for filter key "dangling"`)
	case len(v) == 0:
	case v[0] == "1", v[0] == "true":
		k.dangling = "true"
	case v[0] == "0", v[0] == "false":
		k.dangling = "false"
	default:
		return nil, refuse(http.StatusBadRequest, `invalid value for filter 'dangling', must be "true" (or "1"), or "false" (or "0")`)
	}
	for _, v := range f["type"] {
		if v != "builtin" && v != "custom" {
			return nil, refuse(http.StatusBadRequest, "invalid filter: 'type'='%s'", v)
		}
	}
	if v := f["until"]; len(v) > 1 {
		return nil, refuse(http.StatusBadRequest, "more than one until filter specified")
	} else if len(v) == 1 {
		if age, err := time.ParseDuration(v[0]); err == nil {
			k.until = time.Now().Add(-age).UnixNano()
		} else if k.until, err = moment(v[0]); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// used reports whether a network has a container, also one that doesn't run.
func (k *networkSieve) used(n *dv1.Network) bool {
	for e := range k.snap.EndpointsOfNetwork(n.Id) {
		if !e.Leaving {
			return true
		}
	}
	return false
}

func (k *networkSieve) passes(n network.Network, used bool) bool {
	matches := func(res []*regexp.Regexp, text string) bool {
		return len(res) == 0 || slices.ContainsFunc(res, func(re *regexp.Regexp) bool { return re.MatchString(text) })
	}
	builtin := predefined[n.Name] != ""
	has := hasLabel(n.Labels)
	return matches(k.names, n.Name) && matches(k.ids, n.ID) &&
		k.any("driver", func(d string) bool { return d == n.Driver }) &&
		k.any("scope", func(s string) bool { return s == n.Scope }) &&
		k.any("type", func(t string) bool { return (t == "builtin") == builtin }) &&
		k.all("label", has) && (len(k.filters["label!"]) == 0 || !k.all("label!", has)) &&
		(k.dangling == "" || (k.dangling == "true") != used) &&
		(k.until == 0 || n.Created.UnixNano() <= k.until)
}
