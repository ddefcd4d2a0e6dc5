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

// change is one change of raft's configuration, which takes one at a time.
type change struct {
	what int
	id   raft.ServerID
	addr raft.ServerAddress
}

// next returns the first change towards raft's members being the wanted controllers,
// at their addresses: new ones are added as non-voters before any are removed. nil
// means that nothing is to be done. An empty list removes nobody: it is a state that
// hasn't been read yet.
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

// promotable returns the non-voters, and how many of them are to become voters
// together: there are one, three or five voters, and never two of which one isn't
// ready. 0 is none.
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
	case voters%2 == 0: // one left: any ready one makes it odd again
		target = voters + 1
	case controllers >= 5:
		target = 5
	case controllers >= 3:
		target = 3
	}
	need = min(target-voters, 2) // from one to five via three
	if need <= 0 || need > len(candidates) {
		return 0, nil
	}
	return need, candidates
}

// without returns the name of the voter to be removed, "" if it isn't one, and the
// remaining voters. Members that are no longer controllers are being removed
// already.
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

// affordable returns why the quorum can't lose a voter, nil if it can: a majority of
// the remaining voters must answer. That the only controller stays is decided
// elsewhere; here, that the only voter among several does.
func affordable(s *state.Snapshot, going string, left []*dv1.Controller, silent []string) error {
	need := len(left)/2 + 1
	switch {
	case going == "" || len(left)-len(silent) >= need:
		return nil
	case len(left) == 0 && only(s):
		return nil
	case len(left) == 0:
		return fmt.Errorf("without %s, no controller would vote, and the fleet would have no leader: two controllers have one vote, and three have one each once they have caught up", going)
	}
	slices.Sort(silent)
	do := "do"
	if len(silent) == 1 {
		do = "does"
	}
	return fmt.Errorf("without %s, %d controllers would vote, of which %d must answer, and %s %s not: bring it back or remove it first; the fleet would have no leader",
		going, len(left), need, strings.Join(silent, " and "), do)
}

// only reports whether the fleet has one controller.
func only(s *state.Snapshot) bool {
	n := 0
	for range s.Controllers() {
		n++
	}
	return n <= 1
}
