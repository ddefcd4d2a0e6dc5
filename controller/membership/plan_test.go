package membership

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// servers reads a configuration: an upper case letter is a voter, a lower case one is
// none; each is at the address of its letter, behind a ' at another.
func servers(text string) (out []raft.Server) {
	for _, r := range text {
		if r == '\'' {
			out[len(out)-1].Address += "'"
			continue
		}
		id := strings.ToLower(string(r))
		s := raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id), Suffrage: raft.Nonvoter}
		if string(r) != id {
			s.Suffrage = raft.Voter
		}
		out = append(out, s)
	}
	return out
}

func controllers(ids string) (out []*dv1.Controller) {
	for _, r := range ids {
		out = append(out, &dv1.Controller{Id: string(r), Name: "n" + string(r), Addr: string(r)})
	}
	return out
}

func (c *change) String() string {
	if c == nil {
		return ""
	}
	return fmt.Sprint([]string{"add nonvoter ", "add voter ", "remove "}[c.what], c.id, c.addr)
}

func TestTheNextChange(t *testing.T) {
	for _, c := range []struct{ have, want, next string }{
		{"A", "a", ""},
		{"A", "ab", "add nonvoter bb"},
		{"Ab", "ab", ""}, // promotions are decided by who is ready
		{"A'b", "ab", "add voter aa"},
		{"Ab'", "ab", "add nonvoter bb"},
		{"ABC", "ab", "remove c"},
		{"ABc", "ab", "remove c"},
		{"ABC", "abd", "add nonvoter dd"}, // before one goes
		{"ABC", "", ""},                   // a state that was not read yet
	} {
		if got := next(servers(c.have), controllers(c.want)).String(); got != c.next {
			t.Errorf("%s to %s: %q, want %q", c.have, c.want, got, c.next)
		}
	}
}

// Voters are one, three or five, and never two of whom one is not ready: all that the
// next odd number takes are promoted together. One that was lost is replaced by any.
func TestPromotable(t *testing.T) {
	for _, c := range []struct {
		have       string
		need       int
		candidates string
	}{
		{"A", 0, ""},
		{"Ab", 0, ""}, // two are no better than one
		{"Abc", 2, "bc"},
		{"Abcd", 2, "bcd"},
		{"Abcde", 2, "bcde"},
		{"ABCde", 2, "de"},
		{"ABCd", 0, ""},
		{"ABCDE", 0, ""},
		{"ABCDEfg", 0, ""},
		{"AB", 0, ""},
		{"ABc", 1, "c"},
		{"ABCDe", 1, "e"},
		{"ABcde", 1, "cde"}, // odd again first
	} {
		have := servers(c.have)
		need, candidates := promotable(have, len(have))
		ids := ""
		for _, s := range candidates {
			ids += string(s.ID)
		}
		if need != c.need || ids != c.candidates {
			t.Errorf("%s: %d of %q, want %d of %q", c.have, need, ids, c.need, c.candidates)
		}
	}
}

func TestWhatTheQuorumCanAfford(t *testing.T) {
	for _, c := range []struct {
		have, going string
		silent      []string
		want        string
	}{
		{"ABC", "c", nil, ""},
		{"ABC", "nc", nil, ""},                  // by its name
		{"ABC", "d", []string{"na", "nb"}, ""},  // not a voter: no vote is lost
		{"ABCd", "d", []string{"na", "nb"}, ""}, // the same
		{"A", "a", nil, ""},                     // refused where it is decided
		{"AB", "b", nil, ""},                    //
		{"Ab", "b", nil, ""},
		{"Ab", "a", nil, "without na, no controller would vote"},
		{"Abc", "a", nil, "without na, no controller would vote"}, // which may be about to
		{"ABC", "c", []string{"nb"}, "without nc, 2 controllers would vote, of which 2 must answer, and nb does not: bring it back"},
		{"ABCDE", "e", []string{"nb"}, ""},
		{"ABCDE", "e", []string{"nc", "nb"}, "of which 3 must answer, and nb and nc do not"},
	} {
		txn := state.NewTxn(state.NewStore().Snapshot())
		for _, m := range controllers(strings.ToLower(c.have)) {
			if err := txn.Apply(&dv1.Effect{Of: &dv1.Effect_Controller{Controller: m}}); err != nil {
				t.Fatal(err)
			}
		}
		going, left := without(servers(c.have), txn.View(), c.going)
		err := affordable(txn.View(), going, left, slices.Clone(c.silent))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s without %s, %v silent: %v, want %q", c.have, c.going, c.silent, err, c.want)
		}
	}
}

func TestMoved(t *testing.T) {
	for _, c := range []struct {
		was, now string
		want     bool
	}{
		{"10.0.0.1:7443", "10.0.0.2:7443", true},
		{"10.0.0.1:7443", "10.0.0.1:7444", true},
		{"10.0.0.1:7443", "10.0.0.1:7443", false},
		{"", "10.0.0.1:7443", false}, // not in raft's configuration yet
		{"10.0.0.1:7443", "127.0.0.1:7443", false},
		{"10.0.0.1:7443", "[::1]:7443", false},
		{"10.0.0.1:7443", "localhost:7443", false},
		{"127.0.0.1:7443", "10.0.0.1:7443", true},
		{"127.0.0.1:7443", "127.0.0.1:7444", true}, // fleets of tests
		{"host:7443", "other:7443", true},
	} {
		if got := moved(c.was, c.now); got != c.want {
			t.Errorf("from %q to %q: %v", c.was, c.now, got)
		}
	}
}

// Nobody was removed while somebody with a leader knows it, or nobody says so.
func TestJudge(t *testing.T) {
	knows, removed, mute := verdict{by: "a", known: true}, verdict{by: "b", removed: true}, verdict{by: "c"}
	for _, c := range []struct {
		all  []verdict
		want string
	}{
		{nil, ""}, {[]verdict{mute, mute}, ""}, {[]verdict{knows}, ""},
		{[]verdict{removed}, "b"}, {[]verdict{mute, removed}, "b"}, {[]verdict{removed, knows}, ""}, {[]verdict{knows, removed}, ""},
	} {
		if got := judge(c.all); got != c.want {
			t.Errorf("%v: %q", c.all, got)
		}
	}
}
