package route

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/drover/drover/pkg/pki"
)

func TestTheFirstRouteThatMatchesCounts(t *testing.T) {
	var table Table[int]
	for i, r := range []Route{
		{Method: "GET", Pattern: "/images/json"},
		{Method: "GET", Pattern: "/images/{name...}/json"},
		{Method: "DELETE", Pattern: "/images/{name...}"},
		{Method: "POST", Pattern: "/things/{id}/start"},
		{Method: "GET", Pattern: "/things/last"},
		{Method: "GET", Pattern: "/things/{id}"},
		{Pattern: "/ours/{rest...}"},
	} {
		table = append(table, Handled[int]{r, i})
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
		h, v, ok := table.Match(c.method, c.path)
		i := h.Handle
		if !ok {
			i = -1
		} else if h.Route != table.Routes()[i] {
			t.Errorf("%s %s: handler %d of route %s", c.method, c.path, i, h.Route)
		}
		if i != c.want || fmt.Sprint(v) != c.values {
			t.Errorf("%s %s: %d %v, want %d %s", c.method, c.path, i, v, c.want, c.values)
		}
	}
	if h, _, ok := append(table, Handled[int]{Route{Pattern: "/"}, 99}).Match("POST", ""); !ok || h.Handle != 99 {
		t.Errorf("a path of nothing: %v", h)
	}
}

func TestBodiesEndAtTheirLimits(t *testing.T) {
	for _, c := range []struct {
		body Body
		long int // what is read of 10 bytes
		said string
	}{
		{Body{}, 0, "0 bytes at most"},
		{Bounded(4), 4, "4 bytes at most"},
		{Bounded(10), 10, "10 bytes at most"},
		{Streamed(4), 4, "streamed, 4 bytes at most"},
		{Streamed(0), 10, "streamed"},
	} {
		b, err := io.ReadAll(c.body.Limit(httptest.NewRecorder(), io.NopCloser(strings.NewReader("0123456789"))))
		var over *http.MaxBytesError
		if len(b) != c.long || errors.As(err, &over) != (c.long < 10) || c.body.String() != c.said {
			t.Errorf("%s: %d bytes and %v, want %s", c.body, len(b), err, c.said)
		}
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
