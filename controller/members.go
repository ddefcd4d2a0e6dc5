package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/relay"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// members keeps raft's configuration as the log's list of controllers wants it.
// Only the leader acts, and proposes to its own log. Who joins is a non-voter until
// it has caught up; voters are one, three or five, and are promoted when all that
// this takes are ready, so that no moment has two voters of whom one isn't.
type members struct {
	c        *controller
	node     *consensus.Node
	way      *relay.Relay
	compared time.Time // when this leader last compared its clock

	removing chan struct{} // holds one token: removals are judged one after the other
}

func newMembers(c *controller, node *consensus.Node, way *relay.Relay) *members {
	m := &members{c: c, node: node, way: way, removing: make(chan struct{}, 1)}
	m.removing <- struct{}{}
	return m
}

const (
	memberEvery = 500 * time.Millisecond
	memberWait  = 5 * time.Second
	lag         = 64 // entries that a member may be behind and still count as ready
)

// run is one term of this member's leadership, which ends with ctx.
func (m *members) run(ctx context.Context) error {
	m.compared = time.Time{}
	m.c.believe.Store(false)
	t := time.NewTicker(memberEvery)
	defer t.Stop()
	for {
		if err := errors.Join(m.clock(ctx), m.step(ctx)); err != nil && ctx.Err() == nil {
			m.c.Logger.Warn("the members of the quorum are not yet as they should be", "err", err)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (m *members) step(ctx context.Context) error {
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

// remove has do remove a controller, unless the quorum can't do without it. Two at
// a time could each find that the other one is left.
func (m *members) remove(ctx context.Context, name string, do func() error) error {
	select {
	case <-m.removing:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { m.removing <- struct{}{} }()
	if err := m.spare(ctx, name); err != nil {
		return err
	}
	return do()
}

// spare says why the quorum can't do without a controller, nil if it can: those
// that answer must be a majority of what is left. Asked at the leader.
func (m *members) spare(ctx context.Context, name string) error {
	f := m.node.Raft().GetConfiguration()
	if err := f.Error(); err != nil {
		return fmt.Errorf("reading raft's configuration: %w", err)
	}
	snap := m.node.Snapshot()
	var left []*dv1.Controller
	voted := false
	for _, s := range f.Configuration().Servers {
		c := snap.Controller(string(s.ID)) // nil: on its way out
		switch {
		case s.Suffrage != raft.Voter || c == nil:
		case c.Id == name || c.Name == name:
			name, voted = c.Name, true
		default:
			left = append(left, c)
		}
	}
	if !voted || len(left) == 0 { // that one is the only one is said where it is decided
		return nil
	}
	silent := make([]string, len(left))
	var asked sync.WaitGroup
	for i, c := range left {
		if c.Id != m.c.files.Principal.ID {
			asked.Go(func() {
				if _, err := m.status(ctx, c.Id, c.Addr); err != nil {
					silent[i] = c.Name
				}
			})
		}
	}
	asked.Wait()
	silent = slices.DeleteFunc(silent, func(s string) bool { return s == "" })
	need := len(left)/2 + 1
	if have := len(left) - len(silent); have < need {
		slices.Sort(silent)
		return fmt.Errorf("without %s, %d controllers would vote, of which %d must answer, and %s not: bring it back or remove it first; the fleet would have no leader",
			name, len(left), need, strings.Join(silent, " and ")+map[bool]string{true: " does", false: " do"}[len(silent) == 1])
	}
	return nil
}

// ready says whether a member answers and has nearly all entries.
func (m *members) ready(ctx context.Context, id, addr string) bool {
	at, err := m.status(ctx, id, addr)
	return err == nil && at+lag >= m.node.Applied()
}

func (m *members) status(ctx context.Context, id, addr string) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return m.way.Status(ctx, id, addr)
}

// memberList is the controllers, as this one knows raft's configuration.
func (c *controller) memberList(log *tracedLog) (out []*dv1.ControllerInfo) {
	node := c.node.Load()
	roles := map[string]dv1.ControllerInfo_Role{}
	if f := node.Raft().GetConfiguration(); f.Error() == nil {
		for _, s := range f.Configuration().Servers {
			roles[string(s.ID)] = dv1.ControllerInfo_CATCHING_UP
			if s.Suffrage == raft.Voter {
				roles[string(s.ID)] = dv1.ControllerInfo_VOTER
			}
		}
	}
	_, leader := node.Leader()
	for m := range log.Snapshot().Controllers() {
		role := cmp.Or(roles[m.Id], dv1.ControllerInfo_JOINING)
		if m.Id == leader {
			role = dv1.ControllerInfo_LEADER
		}
		out = append(out, &dv1.ControllerInfo{Id: m.Id, Name: m.Name, Addr: m.Addr, Role: role, Joined: m.Joined, Revision: m.Revision})
	}
	return out
}
