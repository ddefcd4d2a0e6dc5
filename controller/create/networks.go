package create

import (
	"bytes"
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
	"github.com/drover/drover/pkg/fields"
)

func modeOf(req *container.CreateRequest) container.NetworkMode {
	if req.HostConfig == nil {
		return ""
	}
	return req.HostConfig.NetworkMode
}

// joined names the container whose network is shared by its id, as docker does: it may be
// renamed. One that this state lacks is left to the decision.
func joined(snap *state.Snapshot, body []byte, req *container.CreateRequest) ([]byte, *container.CreateRequest, error) {
	mode := modeOf(req)
	if !mode.IsContainer() {
		return body, req, nil
	}
	t, e := command.FindTask(snap, mode.ConnectedContainer())
	if e != nil || mode.ConnectedContainer() == hex.EncodeToString(t.Id) {
		return body, req, nil
	}
	body, err := replaced(body, "container:"+hex.EncodeToString(t.Id), "HostConfig", "NetworkMode")
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
	if mode := modeOf(req); mode != "" && mode.IsUserDefined() && asked[string(mode)] == nil {
		asked[string(mode)] = nil
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

// setMAC asks for a MAC address in a container's main network: that of its network mode, or
// the only one.
func setMAC(snap *state.Snapshot, req *container.CreateRequest, endpoints []*dv1.Endpoint, mac string) error {
	if err := fields.CheckMAC(req); err != nil {
		return err
	}
	main := 0
	if len(endpoints) != 1 {
		n, _ := command.FindNetwork(snap, string(modeOf(req)))
		main = slices.IndexFunc(endpoints, func(e *dv1.Endpoint) bool { return bytes.Equal(e.NetworkId, n.GetId()) })
	}
	if main < 0 {
		return refuse(dv1.Error_INVALID, "if a container-wide MAC address is supplied, HostConfig.NetworkMode must match the identity of a network in NetworkSettings.Networks")
	}
	if e := endpoints[main]; e.AskedMac != "" && e.AskedMac != mac {
		return refuse(dv1.Error_INVALID, "the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left empty")
	}
	endpoints[main].AskedMac = mac
	return nil
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
