package route

import (
	"fmt"
	"testing"

	"github.com/drover/drover/pkg/pki"
)

func TestTheFirstRouteThatMatchesCounts(t *testing.T) {
	table := Table{
		{Method: "GET", Pattern: "/images/json"},
		{Method: "GET", Pattern: "/images/{name...}/json"},
		{Method: "DELETE", Pattern: "/images/{name...}"},
		{Method: "POST", Pattern: "/things/{id}/start"},
		{Method: "GET", Pattern: "/things/last"},
		{Method: "GET", Pattern: "/things/{id}"},
		{Pattern: "/ours/{rest...}"},
	}
	for _, c := range []struct {
		method, path string
		want         int
		values       string
	}{
		{"GET", "/images/json", 0, "map[]"},
		{"HEAD", "/images/json", 0, "map[]"},
		{"POST", "/images/json", -1, "map[]"},
		{"GET", "/images/reg:5000/a/b:1/json", 1, "map[name:reg:5000/a/b:1]"},
		{"GET", "/images/json/json", 1, "map[name:json]"},
		{"DELETE", "/images/a/b", 2, "map[name:a/b]"},
		{"DELETE", "/images/", -1, "map[]"},
		{"DELETE", "/images", -1, "map[]"},
		{"POST", "/things/x/start", 3, "map[id:x]"},
		{"POST", "/things//start", -1, "map[]"},
		{"POST", "/things/x/y/start", -1, "map[]"},
		{"POST", "/things/x/start/", -1, "map[]"},
		{"GET", "/things/last", 4, "map[]"},
		{"GET", "/things/first", 5, "map[id:first]"},
		{"PUT", "/ours/a/b", 6, "map[rest:a/b]"},
		{"GET", "/ours", -1, "map[]"},
		{"GET", "", -1, "map[]"},
	} {
		if i, v := table.Match(c.method, c.path); i != c.want || fmt.Sprint(v) != c.values {
			t.Errorf("%s %s: %d %v, want %d %s", c.method, c.path, i, v, c.want, c.values)
		}
	}
	if i, _ := append(table, Route{Pattern: "/"}).Match("POST", ""); i != len(table) {
		t.Errorf("a path of nothing: %d", i)
	}
}

// What somebody is takes a kind and a role that go together.
func TestNobodyIsTwoThings(t *testing.T) {
	all := []string{pki.KindNode, pki.KindController, pki.KindUser, pki.RoleAdmin}
	for kind, want := range map[string]Who{
		pki.KindNode: Node, pki.KindController: Controller, pki.KindUser: User | Admin, pki.KindLocal: User | Admin, pki.KindToken: Token, "": 0,
	} {
		if got := Of(pki.Principal{Kind: kind, Roles: all}); got != want|Anyone {
			t.Errorf("kind %q with every role is %s", kind, got)
		}
		if got := Of(pki.Principal{Kind: kind}); got&^Token != Anyone {
			t.Errorf("kind %q without a role is %s", kind, got)
		}
	}
	if Who(0).Has(pki.Principal{Kind: pki.KindUser, Roles: all}) {
		t.Error("nobody has an admin")
	}
}
