package membership

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Changes of raft's configuration.
const (
	addNonvoter = iota
	addVoter
	removeServer
)

// change is one step of raft's configuration, which takes one at a time.
type change struct {
	what int
	id   raft.ServerID
	addr raft.ServerAddress
}

// next is the first change that makes raft's members the controllers that are wanted,
// at their addresses: new ones as non-voters, before any goes. nil is none. An empty
// list removes nobody: it is a state that was not read yet.
func next(have []raft.Server, want []*dv1.Controller) *change {
	for _, c := range want {
		at := slices.IndexFunc(have, func(s raft.Server) bool { return string(s.ID) == c.Id })
		id, addr := raft.ServerID(c.Id), raft.ServerAddress(c.Addr)
		switch {
		case at < 0:
			return &change{addNonvoter, id, addr}
		case have[at].Address == addr:
		case have[at].Suffrage == raft.Voter:
			return &change{addVoter, id, addr}
		default:
			return &change{addNonvoter, id, addr}
		}
	}
	for _, s := range have {
		if len(want) > 0 && !slices.ContainsFunc(want, func(c *dv1.Controller) bool { return c.Id == string(s.ID) }) {
			return &change{what: removeServer, id: s.ID}
		}
	}
	return nil
}

// promotable returns the non-voters, and how many of them are to vote together: voters
// are one, three or five, and no moment has two voters of whom one isn't ready. 0 is
// none.
func promotable(have []raft.Server, controllers int) (need int, candidates []raft.Server) {
	voters := 0
	for _, s := range have {
		if s.Suffrage == raft.Voter {
			voters++
		} else {
			candidates = append(candidates, s)
		}
	}
	target := 1
	switch {
	case voters%2 == 0: // one left: any that is ready makes it odd again
		target = voters + 1
	case controllers >= 5:
		target = 5
	case controllers >= 3:
		target = 3
	}
	need = min(target-voters, 2) // from one to five by way of three
	if need <= 0 || need > len(candidates) {
		return 0, nil
	}
	return need, candidates
}

// without returns the name of the voter that is to go, "" if none is, and the voters
// that are left. Who is no controller any more is on its way out.
func without(have []raft.Server, s *state.Snapshot, name string) (going string, left []*dv1.Controller) {
	for _, v := range have {
		c := s.Controller(string(v.ID))
		switch {
		case v.Suffrage != raft.Voter || c == nil:
		case c.Id == name || c.Name == name:
			going = c.Name
		default:
			left = append(left, c)
		}
	}
	return going, left
}

// affordable says why the quorum can't do without a voter, nil if it can: those that
// answer must be a majority of what is left. That the only one stays is decided
// elsewhere.
func affordable(going string, left []*dv1.Controller, silent []string) error {
	need := len(left)/2 + 1
	if going == "" || len(left) == 0 || len(left)-len(silent) >= need {
		return nil
	}
	slices.Sort(silent)
	do := "do"
	if len(silent) == 1 {
		do = "does"
	}
	return fmt.Errorf("without %s, %d controllers would vote, of which %d must answer, and %s %s not: bring it back or remove it first; the fleet would have no leader",
		going, len(left), need, strings.Join(silent, " and "), do)
}
