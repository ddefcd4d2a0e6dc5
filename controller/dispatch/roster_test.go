package dispatch

import (
	"fmt"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/roster"
)

func identity(i int) *dv1.Effect {
	return &dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: pki.URI("c", pki.KindNode, fmt.Sprint("m", i))}}}
}

// A session learns of each change once, however many there were meanwhile.
func TestNewsOfTheFleet(t *testing.T) {
	for _, c := range []struct {
		name    string
		changes func(f *fakeLog)
		news    bool
		whole   bool
		members int
	}{
		{name: "nothing", changes: func(*fakeLog) {}},
		{name: "a node's liveness", changes: func(f *fakeLog) { f.put(aNode("n1")) }},
		{name: "two members", changes: func(f *fakeLog) { f.put(identity(1), identity(1)); f.put(identity(2)) }, news: true, members: 2},
		{name: "a key", changes: func(f *fakeLog) {
			f.put(&dv1.Effect{Of: &dv1.Effect_Sealed{Sealed: &dv1.Sealed{Name: "gossip"}}})
		}, news: true},
		{name: "more than is kept", changes: func(f *fakeLog) {
			for i := range 2*recentChanges + 1 {
				f.put(identity(i))
			}
		}, news: true, whole: true, members: 2*recentChanges + 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, sessions := crowd(t, 2)
			term := f.hub.term.Load()
			c.changes(f)
			w := term.news(sessions[0])
			if (w != nil) != c.news || len(w.GetRoster().GetMembers()) != c.members || w.GetRoster().GetFull() != c.whole {
				t.Errorf("news are %v", w)
			}
			if w := term.news(sessions[0]); w != nil {
				t.Errorf("it is told again: %v", w)
			}
			if w := term.news(sessions[1]); (w != nil) != c.news {
				t.Errorf("another session is told %v", w)
			}
		})
	}
}

// All that say hello share the roster of a version, which is made once.
func TestTheWholeRosterIsMadeOncePerChange(t *testing.T) {
	f, sessions := crowd(t, 3)
	f.put(identity(1))
	term := f.hub.term.Load()
	first := term.greet(sessions[0], "", nil).Roster
	if again := term.greet(sessions[1], "", nil).Roster; again != first || len(first.Members) != 1 {
		t.Errorf("another session gets %v after %v", again, first)
	}
	f.put(identity(2))
	w := term.greet(sessions[0], "", nil)
	if w.Roster == first || len(w.Roster.Members) != 2 {
		t.Errorf("after a change it is %v", w.Roster)
	}
	r, _ := (*roster.Roster)(nil).Apply(w.Roster)
	if w := term.greet(sessions[2], "10.0.0.0/24", r.Sum()); w.Roster != nil || w.Subnet != "10.0.0.0/24" || len(w.Peers) != 2 {
		t.Errorf("who has it is told %v", w)
	}
}
