package create

import (
	"cmp"
	"encoding/hex"
	"maps"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// joined names the container whose network is shared by its id, as docker does: it may be
// renamed. One that this state lacks is left to the decision.
func joined(snap *state.Snapshot, body []byte, req *container.CreateRequest) ([]byte, *container.CreateRequest, error) {
	if req.HostConfig == nil || !req.HostConfig.NetworkMode.IsContainer() {
		return body, req, nil
	}
	t, e := command.FindTask(snap, req.HostConfig.NetworkMode.ConnectedContainer())
	if e != nil {
		return body, req, nil
	}
	mode := "container:" + hex.EncodeToString(t.Id)
	if string(req.HostConfig.NetworkMode) == mode {
		return body, req, nil
	}
	body, err := replaced(body, mode, "HostConfig", "NetworkMode")
	if err != nil {
		return nil, nil, err
	}
	return remembered(body)
}

// Endpoints returns what a container is to have in networks of the fleet: the one of its
// network mode, and those that the request configures by name or id.
func Endpoints(snap *state.Snapshot, req *container.CreateRequest) ([]*dv1.Endpoint, error) {
	asked := map[string]*network.EndpointSettings{}
	if req.NetworkingConfig != nil {
		maps.Copy(asked, req.NetworkingConfig.EndpointsConfig)
	}
	if req.HostConfig != nil && req.HostConfig.NetworkMode != "" && req.HostConfig.NetworkMode.IsUserDefined() {
		if mode := string(req.HostConfig.NetworkMode); asked[mode] == nil {
			asked[mode] = nil
		}
	}
	var out []*dv1.Endpoint
	for _, ref := range slices.Sorted(maps.Keys(asked)) {
		if !container.NetworkMode(ref).IsUserDefined() {
			continue
		}
		n, e := command.FindNetwork(snap, ref)
		if e != nil { // not 404: docker's client would pull the image
			return nil, refuse(dv1.Error_INVALID, "%s", e.Message)
		}
		out = merge(out, Endpoint(n, asked[ref], req.Config))
	}
	return out, nil
}

// merge adds an endpoint, unless its network is named twice, once with settings.
func merge(all []*dv1.Endpoint, e *dv1.Endpoint) []*dv1.Endpoint {
	for i, other := range all {
		if string(other.NetworkId) == string(e.NetworkId) {
			if plain(other) {
				all[i] = e
				return all
			}
			if plain(e) {
				return all
			}
		}
	}
	return append(all, e)
}

// plain reports whether nothing is asked of an endpoint.
func plain(e *dv1.Endpoint) bool {
	return cmp.Or(e.AskedIp, e.AskedIp6, e.AskedMac) == "" && len(e.Aliases)+len(e.LinkLocal)+len(e.DriverOpts)+len(e.Links) == 0 && e.GatewayPriority == 0
}

// Endpoint returns what a container with a configuration asks of a network; both may be
// nil.
func Endpoint(n *dv1.Network, s *network.EndpointSettings, c *container.Config) *dv1.Endpoint {
	e := &dv1.Endpoint{NetworkId: n.Id}
	if c != nil {
		e.Hostname = c.Hostname
	}
	if s == nil {
		return e
	}
	if ipam := s.IPAMConfig; ipam != nil {
		if ipam.IPv4Address.IsValid() {
			e.AskedIp = ipam.IPv4Address.Unmap().String()
		}
		if ipam.IPv6Address.IsValid() {
			e.AskedIp6 = ipam.IPv6Address.String()
		}
		for _, a := range ipam.LinkLocalIPs {
			e.LinkLocal = append(e.LinkLocal, a.Unmap().String())
		}
	}
	e.AskedMac = s.MacAddress.String()
	e.Aliases, e.DriverOpts, e.GatewayPriority = s.Aliases, s.DriverOpts, int32(s.GwPriority)
	for _, link := range s.Links {
		name, alias, ok := strings.Cut(link, ":")
		if !ok {
			alias = name
		}
		if e.Links == nil {
			e.Links = map[string]string{}
		}
		e.Links[alias] = strings.TrimPrefix(name, "/")
	}
	return e
}
