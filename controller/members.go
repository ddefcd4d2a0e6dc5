package controller

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/raft"

	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/fleetapi"
	"github.com/drover/drover/controller/relay"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// members keeps raft's configuration as the log's list of controllers wants it.
// Only the leader acts. Who joins is a non-voter until it has caught up; voters
// are one, three or five, and are promoted when all that this takes are ready, so
// that no moment has two voters of whom one isn't.
type members struct {
	c     *controller
	node  *consensus.Node
	way   *relay.Relay
	seals *seals
}

const (
	memberEvery = 500 * time.Millisecond
	memberWait  = 5 * time.Second
	lag         = 64 // entries that a member may be behind and still count as ready
)

func (m *members) run(ctx context.Context) error {
	t := time.NewTicker(memberEvery)
	defer t.Stop()
	for {
		if m.node.Ready() {
			if err := m.step(ctx); err != nil && ctx.Err() == nil && m.node.Ready() {
				m.c.Logger.Warn("the members of the quorum are not yet as they should be", "err", err)
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (m *members) step(ctx context.Context) error {
	if err := m.gossipKey(ctx); err != nil {
		return err
	}
	f := m.node.Raft().GetConfiguration()
	if err := f.Error(); err != nil {
		return fmt.Errorf("reading raft's configuration: %w", err)
	}
	have := map[string]raft.Server{}
	voters := 0
	for _, s := range f.Configuration().Servers {
		have[string(s.ID)] = s
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	want := map[string]*dv1.Controller{}
	for c := range m.node.Snapshot().Controllers() {
		want[c.Id] = c
		if s, ok := have[c.Id]; !ok {
			return m.node.Raft().AddNonvoter(raft.ServerID(c.Id), raft.ServerAddress(c.Addr), 0, memberWait).Error()
		} else if string(s.Address) != c.Addr {
			if s.Suffrage == raft.Voter {
				return m.node.Raft().AddVoter(s.ID, raft.ServerAddress(c.Addr), 0, memberWait).Error()
			}
			return m.node.Raft().AddNonvoter(s.ID, raft.ServerAddress(c.Addr), 0, memberWait).Error()
		}
	}
	for id, s := range have {
		if want[id] == nil && len(want) > 0 {
			return m.node.Raft().RemoveServer(s.ID, 0, memberWait).Error()
		}
	}
	target := 1
	switch n := len(want); {
	case n >= 5:
		target = 5
	case n >= 3:
		target = 3
	}
	var ready []raft.Server
	for id, s := range have {
		if s.Suffrage != raft.Voter && m.ready(ctx, id, string(s.Address)) {
			ready = append(ready, s)
		}
	}
	if voters%2 == 0 { // one left: any that is ready makes it odd again
		target = voters + 1
	}
	if missing := target - voters; missing > 0 && len(ready) >= missing {
		for _, s := range ready[:missing] {
			if err := m.node.Raft().AddVoter(s.ID, s.Address, 0, memberWait).Error(); err != nil {
				return fmt.Errorf("promoting controller %.12s: %w", s.ID, err)
			}
			m.c.Logger.Info("a controller votes now", "controller", s.ID)
		}
	}
	return nil
}

// ready says whether a member answers and has nearly all entries.
func (m *members) ready(ctx context.Context, id, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	if err != nil {
		return false
	}
	at, err := m.way.Status(req, id, addr)
	return err == nil && at+lag >= m.node.Applied()
}

// gossipKey makes the gossip's first key.
func (m *members) gossipKey(ctx context.Context) error {
	if len(m.seals.gossip()) > 0 {
		return nil
	}
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		return err
	}
	s, err := m.seals.key.Seal(gossipPrefix+"00000001", b)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, memberWait)
	defer cancel()
	_, err = m.way.Propose(ctx, &dv1.Command{Of: &dv1.Command_PutSealed{PutSealed: &dv1.PutSealed{Sealed: s}}})
	return err
}

// memberList is the controllers, as this one knows raft's configuration.
func (c *controller) memberList(log *tracedLog) []fleetapi.Member {
	node := c.node.Load()
	suffrage := map[string]string{}
	if f := node.Raft().GetConfiguration(); f.Error() == nil {
		for _, s := range f.Configuration().Servers {
			suffrage[string(s.ID)] = "catching up"
			if s.Suffrage == raft.Voter {
				suffrage[string(s.ID)] = "voter"
			}
		}
	}
	_, leader := node.Leader()
	var out []fleetapi.Member
	for m := range log.Snapshot().Controllers() {
		role := suffrage[m.Id]
		if role == "" {
			role = "joining"
		}
		if m.Id == leader {
			role = "leader"
		}
		out = append(out, fleetapi.Member{ID: m.Id, Name: m.Name, Addr: m.Addr, Role: role, Joined: m.Joined})
	}
	return out
}
