package engineapi

import (
	"context"
	"encoding/hex"
	"net/http"
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/network"

	"github.com/drover/drover/controller/create"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/fields"
)

func (s *server) connectNetwork(w http.ResponseWriter, r *http.Request) error {
	var req network.ConnectRequest
	sent, err := readBody(r, &req)
	if err != nil {
		return err
	}
	if _, err := fields.Connect.Check(&req); err != nil {
		return err
	}
	if apiVersion(r) < 54 && req.EndpointConfig != nil {
		req.EndpointConfig.MacAddress = nil // it was what docker said
	}
	snap, t, n, err := s.joining(w, r, req.Container)
	if err != nil {
		return err
	}
	e := create.Endpoint(n, req.EndpointConfig, s.shapeOf(snap, t).req.Config)
	e.TaskId = t.Id
	if _, err := s.propose(w, r, sent, &dv1.Command{Of: &dv1.Command_Connect{Connect: &dv1.Connect{NetworkId: n.Id, Endpoint: e}}}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *server) disconnectNetwork(w http.ResponseWriter, r *http.Request) error {
	var req network.DisconnectRequest
	sent, err := readBody(r, &req)
	if err != nil {
		return err
	}
	if _, err := fields.Disconnect.Check(&req); err != nil {
		return err
	}
	_, t, n, err := s.joining(w, r, req.Container)
	if err != nil {
		return err
	}
	if _, err := s.propose(w, r, sent, &dv1.Command{Of: &dv1.Command_Disconnect{Disconnect: &dv1.Disconnect{NetworkId: n.Id, TaskId: t.Id, Force: req.Force}}}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// joining finds the container and the network of a request to connect or disconnect them.
func (s *server) joining(w http.ResponseWriter, r *http.Request, container string) (*state.Snapshot, *dv1.Task, *dv1.Network, error) {
	snap, err := s.state(w, r)
	if err != nil {
		return nil, nil, nil, err
	}
	n, name, err := findNetwork(snap, r.PathValue("id"))
	if err != nil {
		return nil, nil, nil, err
	}
	t, err := find(snap, container)
	if err != nil {
		return nil, nil, nil, err
	}
	switch {
	case n != nil:
		return snap, t, n, nil
	case name == network.NetworkBridge:
		return nil, nil, nil, refuse(http.StatusNotImplemented, "connecting a container to the default bridge, or disconnecting it, is not available on this fleet yet")
	case name == network.NetworkHost:
		return nil, nil, nil, refuse(http.StatusBadRequest, "container cannot be disconnected from host network or connected to host network")
	}
	return nil, nil, nil, refuse(http.StatusBadRequest, "container cannot be connected to multiple networks with one of the networks in private (none) mode")
}

// leftWithin bounds how long a start waits for an address that a removed container may
// still have: its node has yet to say that it has not.
const leftWithin = 5 * time.Second

// freed blocks until no endpoint that is leaving has an address that a container asks for.
func (s *server) freed(ctx context.Context, snap *state.Snapshot, t *dv1.Task) {
	ctx, cancel := context.WithTimeout(ctx, leftWithin)
	defer cancel()
	for e := range snap.EndpointsOfTask(t.Id) {
		for _, text := range []string{e.AskedIp, e.AskedIp6} {
			a, err := netip.ParseAddr(text)
			if err != nil {
				continue
			}
			holder := snap.EndpointAt(e.NetworkId, a)
			if !holder.GetLeaving() {
				continue
			}
			// What comes of it is decided by the start.
			_ = s.Fleet.WaitTask(ctx, hex.EncodeToString(holder.TaskId), func(*dv1.Task, *dv1.TaskStatus) bool {
				now, err := s.Fleet.State(ctx, 0)
				return err != nil || !now.EndpointAt(e.NetworkId, a).GetLeaving()
			})
		}
	}
}
