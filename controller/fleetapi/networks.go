package fleetapi

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"github.com/drover/drover/controller/dispatch"
	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
)

const (
	checkWithin = 10 * time.Second // for a node to answer
	checkAtOnce = 32               // nodes
	// settleWithin bounds how long differences are looked at again: while containers come
	// and go, nodes are a moment behind the state.
	settleWithin = 5 * time.Second
	settleEvery  = 250 * time.Millisecond
	// maxAnswer bounds a node's answer, in bytes.
	maxAnswer = 16 << 20
)

// CheckNetworks asks nodes until what differs still does a while later.
func (s nodes) CheckNetworks(ctx context.Context, r *connect.Request[dv1.CheckNetworksRequest]) (*connect.Response[dv1.CheckNetworksResponse], error) {
	snap, err := s.state(ctx, r.Header())
	if err != nil {
		return nil, err
	}
	names := map[string]string{} // by id
	for _, name := range r.Msg.Nodes {
		n := snap.NodeByName(name)
		if n == nil {
			return nil, refuse(dv1.Error_NOT_FOUND, "No such node: %s", name)
		}
		names[n.Id] = n.Name
	}
	if len(r.Msg.Nodes) == 0 {
		for n := range snap.Nodes() {
			names[n.Id] = n.Name
		}
	}
	checks := map[string]*dv1.NetworkCheck{}
	open := slices.Collect(maps.Keys(names))
	for end := time.Now().Add(settleWithin); ; {
		told, err := dispatch.ToldOf(snap)
		if err != nil {
			return nil, err
		}
		again, err := s.checkNetworks(ctx, snap, told, open, checks)
		if err != nil {
			return nil, err
		}
		if open = again; len(open) == 0 || time.Now().After(end) {
			break
		}
		select {
		case <-time.After(settleEvery):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if snap, err = s.state(ctx, r.Header()); err != nil {
			return nil, err
		}
	}
	out := &dv1.CheckNetworksResponse{}
	for id, c := range checks {
		c.Node = names[id]
		out.Nodes = append(out.Nodes, c)
	}
	slices.SortFunc(out.Nodes, func(a, b *dv1.NetworkCheck) int { return cmp.Compare(a.Node, b.Node) })
	return reply(snap, out), nil
}

// checkNetworks asks nodes, and returns those where something differs.
func (s nodes) checkNetworks(ctx context.Context, snap *state.Snapshot, told *dispatch.Told, ids []string, checks map[string]*dv1.NetworkCheck) (differ []string, err error) {
	var mu sync.Mutex // guards checks and differ
	var asking errgroup.Group
	asking.SetLimit(checkAtOnce)
	for _, id := range ids {
		want, err := told.Networks(id)
		if err != nil {
			return nil, errors.Join(err, asking.Wait())
		}
		asking.Go(func() error {
			var got bulk.NetworkCheck
			c := &dv1.NetworkCheck{}
			if err := s.ask(ctx, id, "/v1/network/check", &got); err != nil {
				c.Error = unanswered(err)
			} else {
				c.Differences = append(compare(snap, told.Peers(), want, got), got.Differences...)
			}
			mu.Lock()
			defer mu.Unlock()
			checks[id] = c
			if len(c.Differences) > 0 {
				differ = append(differ, id)
			}
			return nil
		})
	}
	return differ, errors.Join(asking.Wait(), ctx.Err())
}

// compare returns how what a node was told differs from the state.
func compare(snap *state.Snapshot, peers string, networks map[string]string, got bulk.NetworkCheck) (out []string) {
	if got.Peers != peers {
		out = append(out, "what the node was told of the fleet's nodes is not what they are now")
	}
	for _, id := range slices.Sorted(maps.Keys(networks)) {
		raw, _ := hex.DecodeString(id)
		name := cmp.Or(snap.Network(raw).GetName(), id[:min(12, len(id))])
		if d, ok := got.Networks[id]; !ok {
			out = append(out, fmt.Sprintf("network %s: the node was not told of it", name))
		} else if d != networks[id] {
			out = append(out, fmt.Sprintf("network %s: what the node was told of it is not what it is now", name))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(got.Networks)) {
		if _, ok := networks[id]; !ok {
			out = append(out, fmt.Sprintf("network %s: the node carries it, but has no container in it", id[:min(12, len(id))]))
		}
	}
	return out
}

// ListWays shows how a node reaches all others.
func (s nodes) ListWays(ctx context.Context, r *connect.Request[dv1.ListWaysRequest]) (*connect.Response[dv1.ListWaysResponse], error) {
	snap, n, err := s.find(ctx, r.Header(), r.Msg.Node)
	if err != nil {
		return nil, err
	}
	var got []bulk.Way
	if err := s.ask(ctx, n.Id, "/v1/network/ways", &got); err != nil {
		return nil, refuse(dv1.Error_UNAVAILABLE, "node %s does not say how it reaches others: %s", n.Name, unanswered(err))
	}
	out := &dv1.ListWaysResponse{}
	for _, w := range got {
		way := &dv1.Way{Node: w.Node, Kind: dv1.Way_TUNNEL, Link: w.Link, Mtu: uint32(max(0, w.MTU)), Rtt: int64(w.RTT)}
		switch {
		case w.Link == "":
			way.Kind = dv1.Way_UNREACHED
		case w.Direct:
			way.Kind = dv1.Way_DIRECT
		}
		if peer := snap.Node(w.Node); peer != nil {
			way.Node = peer.Name
			if at, err := netip.ParseAddrPort(peer.Addr); err == nil {
				way.Addr = at.Addr().Unmap().String()
			}
		}
		out.Ways = append(out.Ways, way)
	}
	slices.SortFunc(out.Ways, func(a, b *dv1.Way) int { return cmp.Compare(a.Node, b.Node) })
	return reply(snap, out), nil
}

// ask decodes a node's answer into out.
func (s nodes) ask(ctx context.Context, id, path string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, checkWithin)
	defer cancel()
	resp, err := fleet.Ask(ctx, s.Fleet, id, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return errors.New(cmp.Or(fleet.Refusal(resp), resp.Status))
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("its answer can't be read: %w", err)
	}
	return nil
}

// unanswered says why a node that was asked about itself said nothing.
func unanswered(err error) string {
	var silent *fleet.SilentError
	var unreachable *fleet.UnreachableError
	switch {
	case errors.As(err, &silent):
		return fmt.Sprintf("it has not answered for %s", silent.For.Round(time.Second))
	case errors.As(err, &unreachable):
		return fmt.Sprintf("it does not answer: %v", unreachable.Err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("it has not answered within %s", checkWithin)
	}
	return err.Error()
}
