package server

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/drover/drover/agent/resolver/resolverapi"
)

func ips(all ...string) (out []netip.Addr) {
	for _, a := range all {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func in(networks ...string) (out []resolverapi.Endpoint) {
	for _, n := range networks {
		out = append(out, resolverapi.Endpoint{Network: n})
	}
	return out
}

// example is two networks, red and Blue, seen from node n1.
func example() *table {
	t := newTable()
	t.change(&resolverapi.Update{Full: true, Node: "n1", Networks: []resolverapi.Network{{ID: "r", Name: "red"}, {ID: "b", Name: "Blue.net"}},
		Names: []resolverapi.Name{
			{Network: "r", Task: "t1", Node: "n2", IPs: ips("10.0.0.1", "fd00::1"), Names: []string{"Web-1", "web", "web.v1"}, Running: true},
			{Network: "r", Task: "t2", Node: "n3", IPs: ips("10.0.0.2"), Names: []string{"web-2", "web"}, Running: true},
			{Network: "r", Task: "t3", Node: "n3", IPs: ips("10.0.0.3"), Names: []string{"web-3", "web"}},
			{Network: "b", Task: "t2", Node: "n3", IPs: ips("10.0.1.2"), Names: []string{"web-2", "db"}, Running: true},
			{Network: "b", Task: "t4", Node: "n1", IPs: ips("10.0.1.4"), Names: []string{"own"}, Running: true},
		}})
	return t
}

func TestNames(t *testing.T) {
	table := example()
	linked := []resolverapi.Endpoint{{Network: "r", Links: map[string]string{"db": "web-2", "web": "Web-1"}}, {Network: "b"}}
	for _, c := range []struct {
		in    []resolverapi.Endpoint
		name  string
		want  []string
		known bool
	}{
		{in("r"), "web-1.", []string{"10.0.0.1", "fd00::1"}, true},
		{in("r"), "WEB-1", []string{"10.0.0.1", "fd00::1"}, true},
		{in("r"), "web.", []string{"10.0.0.1", "10.0.0.2", "fd00::1"}, true},
		{in("r"), "web-3.", nil, false}, // it does not run
		{in("r"), "db.", nil, false},    // of another network
		{in("b"), "db.", []string{"10.0.1.2"}, true},
		{in("r", "b"), "web-2.", []string{"10.0.0.2"}, true}, // the first network has it
		{in("b", "r"), "web-2.", []string{"10.0.1.2"}, true},
		{in("r", "b"), "web-2.blue.NET.", []string{"10.0.1.2"}, true},
		{in("r"), "web-2.blue.net.", nil, false}, // a network that the container is not in
		{in("r"), "web.v1.", []string{"10.0.0.1", "fd00::1"}, true},
		{in("r"), "web.v1.red.", []string{"10.0.0.1", "fd00::1"}, true},
		{in("r"), "example.org.", nil, false},
		{in("r"), ".", nil, false},
		{nil, "web.", nil, false},
		{in("x"), "web.", nil, false},
		{linked, "db.", []string{"10.0.0.2"}, true}, // its own link hides the other network's name
		{linked, "DB.red.", []string{"10.0.0.2"}, true},
		{linked, "db.blue.net.", []string{"10.0.1.2"}, true},
		{linked, "web.", []string{"10.0.0.1", "fd00::1"}, true}, // and an alias of the same
	} {
		got, known := table.lookup(c.in, c.name)
		got = slices.Clone(got)
		slices.SortFunc(got, netip.Addr.Compare)
		if known != c.known || fmt.Sprint(got) != fmt.Sprint(ips(c.want...)) {
			t.Errorf("%v %q: %v, %v, want %v", c.in, c.name, got, known, c.want)
		}
	}
}

// Of its own tasks a node knows earlier than the log whether they run.
func TestATaskOfThisNodeIsAnsweredAsLongAsItHasASandbox(t *testing.T) {
	table := example()
	known := func() bool { _, ok := table.lookup(in("b"), "own."); return ok }
	if known() {
		t.Error("it is answered without a sandbox, because the log says that it runs")
	}
	table.present("t4", true)
	if !known() || table.nameOf(in("b"), netip.MustParseAddr("10.0.1.4")) != "own.Blue.net" {
		t.Error("it is not answered although it has a sandbox")
	}
	table.change(&resolverapi.Update{Names: []resolverapi.Name{{Network: "b", Task: "t4", Node: "n1", IPs: ips("10.0.1.5"), Names: []string{"own"}}}})
	if got, _ := table.lookup(in("b"), "own."); fmt.Sprint(got) != "[10.0.1.5]" {
		t.Errorf("after a change that says that it does not run: %v", got)
	}
	table.present("t4", false)
	if known() {
		t.Error("it is answered after its sandbox went")
	}
}

func TestChangesOfNames(t *testing.T) {
	table := example()
	ask := func(name string) string {
		got, known := table.lookup(in("r"), name)
		got = slices.Clone(got)
		slices.SortFunc(got, netip.Addr.Compare)
		return fmt.Sprint(got, known)
	}
	name := func(n resolverapi.Name) {
		n.Network = "r"
		table.change(&resolverapi.Update{Names: []resolverapi.Name{n}})
	}
	ask("web.") // its list is made
	name(resolverapi.Name{Task: "t3", Node: "n3", IPs: ips("10.0.0.3"), Names: []string{"web-3", "web"}, Running: true})
	if got := ask("web."); got != "[10.0.0.1 10.0.0.2 10.0.0.3 fd00::1] true" {
		t.Error("one more runs:", got)
	}
	name(resolverapi.Name{Task: "t1", Node: "n2", IPs: ips("10.0.0.9"), Names: []string{"renamed"}, Running: true})
	if got := ask("web.") + ask("web-1.") + ask("renamed."); got != "[10.0.0.2 10.0.0.3] true[] false[10.0.0.9] true" {
		t.Error("one was renamed:", got)
	}
	if table.nameOf(in("r"), netip.MustParseAddr("10.0.0.1")) != "" {
		t.Error("an address that nobody has has a name")
	}
	// Another task gets the address before the first is forgotten.
	name(resolverapi.Name{Task: "t5", Node: "n2", IPs: ips("10.0.0.9"), Names: []string{"next"}, Running: true})
	name(resolverapi.Name{Task: "t1", Gone: true})
	if got := ask("renamed.") + table.nameOf(in("r"), netip.MustParseAddr("10.0.0.9")); got != "[] falsenext.red" {
		t.Error("the first was forgotten:", got)
	}
	table.change(&resolverapi.Update{NetworksGone: []string{"r"}, Networks: []resolverapi.Network{{ID: "r", Name: "red"}}})
	if got := ask("web."); got != "[] false" || table.zones["r"] == nil {
		t.Error("the network is another one:", got)
	}
	table.change(&resolverapi.Update{NetworksGone: []string{"r"}})
	if got := ask("web."); got != "[] false" {
		t.Error("the network is gone:", got)
	}
	name(resolverapi.Name{Task: "t6", Node: "n2", IPs: ips("10.0.0.9"), Names: []string{"late"}, Running: true}) // of a network that is gone
	table.change(&resolverapi.Update{Full: true, Node: "n9"})
	if len(table.zones) != 0 {
		t.Error("a full update left names that it did not name")
	}
}

func TestWhatANameOfAnAddressMeans(t *testing.T) {
	for name, want := range map[string]string{
		"4.3.2.10.in-addr.arpa.": "10.2.3.4",
		"4.3.2.10.IN-ADDR.arpa.": "10.2.3.4",
		"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.D.f.ip6.arpa.": "fd00::1",
		"3.2.10.in-addr.arpa.":       "",
		"4.3.2.x.in-addr.arpa.":      "",
		"4.3.2.300.in-addr.arpa.":    "",
		"5.4.3.2.10.in-addr.arpa.":   "",
		"in-addr.arpa.":              "",
		"10.in-addr.arpa.example.":   "",
		"1.0.ip6.arpa.":              "",
		"4.3.2.10.in-addr.arpa.org.": "",
	} {
		got, ok := reversed(name)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%s: %v, %v, want %q", name, got, ok, want)
		}
	}
}
