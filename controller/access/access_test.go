package access

import (
	"errors"
	"strings"
	"testing"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/route"
)

// fleet has a controller, a node with users, an admin, and identities of each kind that
// are not what they seem.
func fleet(t *testing.T) *state.Snapshot {
	t.Helper()
	txn := state.NewTxn(state.NewStore().Snapshot())
	apply := func(e *dv1.Effect) {
		if err := txn.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	apply(&dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: "n1", Name: "web-1", Roles: map[string]string{"0": "admin", "1000": "user", "7": "", "8": "controller"}}}})
	for id, roles := range map[string]string{
		"controller/c1": "controller", "node/n1": "node", "node/n2": "node", "user/admin": "admin", "user/u": "user",
		"user/idle": "", "node/idle": "", "user/climber": "controller", "node/climber": "admin", "controller/climber": "admin", "node/both": "node,admin",
	} {
		apply(&dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: "spiffe://c/" + id, Roles: strings.FieldsFunc(roles, func(r rune) bool { return r == ',' })}}})
	}
	for id, role := range map[string]string{"controller/gone": "controller", "node/gone": "node", "user/gone": "admin"} {
		apply(&dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: "spiffe://c/" + id, Roles: []string{role}, Revoked: true}}})
	}
	return txn.View()
}

// A caller's roles are those that the state gives to its URI as a whole, and a role of
// another kind of identity is none.
func TestARoleIsOfItsKindAndHost(t *testing.T) {
	s := fleet(t)
	for uri, want := range map[string]string{ // the roles that count, or what is said
		"spiffe://c/controller/c1": "controller",
		"spiffe://c/node/n1":       "node",
		"spiffe://c/user/admin":    "admin user",
		"spiffe://c/user/u":        "user",
		"token:t":                  "token",
		"token:":                   "token",

		"spiffe://c/controller/c1/uid/0":          "admin user",
		"spiffe://c/controller/c1/uid/1000":       "admin user",
		"spiffe://c/node/n1/uid/0":                "admin user",
		"spiffe://c/node/n1/uid/1000":             "user",
		"spiffe://c/node/n1/uid/7":                "drover node grant web-1 --uid 7",
		"spiffe://c/node/n1/uid/8":                "no role that allows this", // a host's user is no controller
		"spiffe://c/node/n1/uid/00":               "uid 00 on node web-1 has no role",
		"spiffe://c/node/n1/uid/01000":            "uid 01000 on node web-1 has no role",
		"spiffe://c/node/n1/uid/":                 `"" is not a uid`,
		"spiffe://c/node/n1/uid/-1":               `"-1" is not a uid`,
		"spiffe://c/node/n1/uid/root":             `"root" is not a uid`,
		"spiffe://c/node/n1/uid/4294967296":       `"4294967296" is not a uid`,
		"spiffe://c/node/n1/uid/0/uid/1000":       `"0/uid/1000" is not a uid`,
		"spiffe://c/node/n2/uid/1000":             "has no role in this fleet", // granted on another node
		"spiffe://c/controller/gone/uid/0":        "no longer a controller",
		"spiffe://c/node/gone/uid/0":              "no longer a node",
		"spiffe://c/controller/new/uid/0":         ErrUnknown.Error(),
		"spiffe://c/user/admin/uid/0":             "is not a host of this fleet",
		"spiffe://c/user/u/uid/0":                 "is not a host of this fleet",
		"spiffe://c/node/idle/uid/0":              "is not a host of this fleet",
		"spiffe://c/controller/climber/uid/0":     "is not a host of this fleet",
		"unix:0/uid/0":                            "is not spiffe://",
		"token:t/uid/0":                           "token", // as an id that no join names
		"spiffe://c/controller/c1?/uid/0":         "is not spiffe://",
		"spiffe://d/controller/c1/uid/0":          ErrUnknown.Error(),
		"spiffe://c/node/n1/uid/0?":               `"0?" is not a uid`,
		"spiffe://c/controller/c1/uid/0x0":        `"0x0" is not a uid`,
		"spiffe://c/controller/c1/uid/4294967295": "admin user",

		"spiffe://c/user/idle":          "no role that allows this",
		"spiffe://c/node/idle":          "no role that allows this",
		"spiffe://c/user/climber":       "no role that allows this",
		"spiffe://c/node/climber":       "no role that allows this",
		"spiffe://c/controller/climber": "no role that allows this",
		"spiffe://c/node/both":          "node",
		"spiffe://c/user/gone":          pki.ErrRevoked.Error(),
		"spiffe://c/node/gone":          pki.ErrRevoked.Error(),
		"spiffe://c/controller/gone":    pki.ErrRevoked.Error(),
		"spiffe://c/user/new":           ErrUnknown.Error(),
		"spiffe://d/user/admin":         ErrUnknown.Error(),
		"spiffe://c/user/ADMIN":         ErrUnknown.Error(),
		"unix:0":                        "is not spiffe://",
		"":                              "is not spiffe://",
	} {
		var roles []string
		var first error
		for _, r := range []struct {
			name string
			who  route.Who
		}{{"admin", route.Admin}, {"user", route.User}, {"node", route.Node}, {"controller", route.Controller}, {"token", route.Token}} {
			p, err := Allowed(s, uri, Request(route.Route{Who: r.who}))
			if err == nil && p.URI != uri {
				t.Errorf("%s is let in as %s", uri, p.URI)
			}
			if err == nil {
				roles = append(roles, r.name)
			} else if first == nil {
				first = err
			}
		}
		if got := strings.Join(roles, " "); got != want && (len(roles) > 0 || !strings.Contains(first.Error(), want)) {
			t.Errorf("%s: %q, %v; want %q", uri, got, first, want)
		}
	}
	for uri, want := range map[string]error{"spiffe://c/user/gone": pki.ErrRevoked, "spiffe://c/node/gone/uid/0": pki.ErrRevoked, "spiffe://c/user/new": ErrUnknown, "spiffe://c/node/new/uid/0": ErrUnknown} {
		if _, err := Known(s, uri); !errors.Is(err, want) {
			t.Errorf("%s: %v is not %v", uri, err, want)
		}
	}
}

// A refusal says what was asked and which role it takes.
func TestARefusalNamesWhatItTakes(t *testing.T) {
	s := fleet(t)
	for _, c := range []struct {
		uri  string
		ask  Asked
		want string
	}{
		{"spiffe://c/user/u", Command(&dv1.Command{Of: &dv1.Command_PutToken{}}), "is not an admin of this fleet"},
		{"spiffe://c/user/u", Command(&dv1.Command{Of: &dv1.Command_SetLiveness{}}), "lacks the required role (controller): set_liveness"},
		{"spiffe://c/node/n1", Command(&dv1.Command{Of: &dv1.Command_RemoveNode{}}), "lacks the required role ("},
		{"spiffe://c/user/admin", Command(&dv1.Command{}), "no command"},
		{"spiffe://c/user/admin", Command(nil), "no command"},
		{"spiffe://c/node/n1", Command(&dv1.Command{Of: &dv1.Command_Report{Report: &dv1.Report{NodeId: "n2"}}}), `may not speak for "n2": report`},
		{"spiffe://c/node/n1", Command(&dv1.Command{Of: &dv1.Command_Report{}}), `may not speak for ""`},
		{"spiffe://c/node/n1", Command(&dv1.Command{Of: &dv1.Command_RegisterNode{RegisterNode: &dv1.RegisterNode{Node: &dv1.Node{Id: "n1x"}}}}), `may not speak for "n1x"`},
		{"spiffe://c/controller/c1", Command(&dv1.Command{Of: &dv1.Command_PutController{PutController: &dv1.PutController{Controller: &dv1.Controller{Id: "c2"}}}}), `may not speak for "c2"`},
		{"token:t", Command(&dv1.Command{Of: &dv1.Command_Join{Join: &dv1.Join{TokenId: "u"}}}), `may not speak for "u"`},
		{"token:t", Command(&dv1.Command{Of: &dv1.Command_Create{}}), "lacks the required role"},
		{"spiffe://c/node/n1/uid/0", Command(&dv1.Command{Of: &dv1.Command_Report{Report: &dv1.Report{NodeId: "0"}}}), "lacks the required role (node)"},
	} {
		if _, err := Allowed(s, c.uri, c.ask); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.uri, err, c.want)
		}
	}
}

// A cluster is created by its own first controller, whom no state knows yet.
func TestWhoCreatesACluster(t *testing.T) {
	init := Command(&dv1.Command{Of: &dv1.Command_Init{Init: &dv1.Init{Cluster: &dv1.Cluster{Id: "c"}}}})
	empty := state.NewStore().Snapshot()
	txn := state.NewTxn(empty)
	if err := txn.Apply(&dv1.Effect{Of: &dv1.Effect_Cluster{Cluster: &dv1.Cluster{Id: "c"}}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		uri     string
		created bool
		ok      bool
	}{
		{"spiffe://c/controller/first", false, true},
		{"spiffe://c/controller/first", true, true}, // again, after a crash: it changes nothing
		{"spiffe://d/controller/first", false, false},
		{"spiffe://d/controller/first", true, true}, // which changes nothing either
		{"spiffe://c/user/admin", false, false},
		{"spiffe://c/node/first", true, false},
		{"spiffe://c/controller/first/uid/0", false, false},
		{"token:t", false, false},
		{"", true, false},
	} {
		s := empty
		if c.created {
			s = txn.View()
		}
		if _, err := Allowed(s, c.uri, init); (err == nil) != c.ok {
			t.Errorf("%q, created already: %v: %v", c.uri, c.created, err)
		}
	}
	if _, err := Allowed(empty, "spiffe:///controller/first", Command(&dv1.Command{Of: &dv1.Command_Init{}})); err == nil {
		t.Error("a cluster without a name was created")
	}
}

func TestForWhomAControllerSpeaks(t *testing.T) {
	const by = "spiffe://c/controller/c1"
	for _, c := range []struct {
		controller, uri string
		ok              bool
	}{
		{by, by, true}, {by, "spiffe://c/user/u", true}, {by, "spiffe://c/node/n", true}, {by, "token:t", true}, {by, "", true}, // which nobody knows
		{by, by + "/uid/0", true}, {by, "spiffe://c/controller/c2/uid/0", true}, // through another controller
		{by, "spiffe://c/controller/c2", false}, {by, "spiffe://d/controller/c1", false},
		{"spiffe://c/node/n", "spiffe://c/user/u", false}, {"spiffe://c/user/admin", "spiffe://c/user/admin", false},
		{by + "/uid/0", "spiffe://c/user/u", false}, {"", "spiffe://c/user/u", false}, {"token:t", "token:t", false},
	} {
		if err := Speaks(c.controller, c.uri); (err == nil) != c.ok {
			t.Errorf("%q for %q: %v", c.controller, c.uri, err)
		}
	}
}
