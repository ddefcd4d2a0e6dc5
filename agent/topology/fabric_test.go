package topology

import (
	"encoding/json"
	"strings"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// What one record says wrong keeps nothing else from being carried.
func TestFabric(t *testing.T) {
	n := newNode(t)
	alone := name('r', '9', "10.0.0.99", false, "fixed")
	alone.Asked, alone.Ip6 = true, "fd00::99"
	n.take(true, &dv1.Topology{
		Peers: []*dv1.Peer{{NodeId: "n2", Name: "two", Addr: "10.9.0.2:7444", Subnet: "10.8.2.0/24"}, {NodeId: "n1", Name: "one", Addr: "10.9.0.1", Subnet: "10.8.1.0/24", Door: true},
			{NodeId: "n3", Addr: "nowhere", Subnet: "10.8.3.0/24"}, {NodeId: "n4", Addr: "10.9.0.4"}, {NodeId: "n5", Addr: "[::ffff:10.9.0.5]:7444", Subnet: "10.8.5.0/24"}},
		Networks: []*dv1.Network{
			{Id: id('r'), Name: "red", Number: 2, Options: map[string]string{optionMTU: "1400"}, Subnets: []*dv1.Subnet{{Prefix: "10.0.0.0/20", Gateway: "10.0.0.1"}, {Prefix: "fd00::/64", Gateway: "fd00::1"}}},
			{Id: id('b'), Name: "blue", Number: 1, Internal: true, Subnets: []*dv1.Subnet{{Prefix: "10.1.0.0/20", Gateway: "10.1.0.1"}}},
			{Id: id('x'), Name: "none", Number: 3},
			{Id: id('y'), Name: "odd", Number: 4, Options: map[string]string{optionMTU: "much"}, Subnets: []*dv1.Subnet{{Prefix: "10.2.0.0/20", Gateway: "10.2.0.1"}}},
		},
		Slices: []*dv1.Slice{{NetworkId: id('r'), NodeId: "n2", Prefixes: []string{"10.0.0.64/26", "10.0.1.0/26"}}, {NetworkId: id('r'), NodeId: "n1", Prefixes: []string{"10.0.0.0/26"}}},
		Doors:  []*dv1.Door{{Proto: "tcp", Port: 80, NodeId: "n2"}, {Proto: "tcp", Port: 81, NodeId: "n1"}, {Proto: "odd", Port: 82, NodeId: "n2"}},
		Names:  []*dv1.Name{alone, name('r', '1', "10.0.0.2", true, "web")},
	})
	got, version, _, err := n.Fabric("n1")
	if version != n.Version() {
		t.Errorf("version %d of %d", version, n.Version())
	}
	for _, want := range []string{"node n3", "node n4", "network none (787878787878)", "network odd (797979797979)", "82/odd"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not said to be unusable: %v", want, err)
		}
	}
	red, blue := strings.Repeat("72", 32), strings.Repeat("62", 32)
	b, _ := json.Marshal(got)
	want := `{"Self":"n1","Peers":[{"ID":"n1","Name":"one","Addr":"10.9.0.1","Subnet":"10.8.1.0/24","Door":true},{"ID":"n2","Name":"two","Addr":"10.9.0.2","Subnet":"10.8.2.0/24","Door":false},` +
		`{"ID":"n5","Name":"","Addr":"10.9.0.5","Subnet":"10.8.5.0/24","Door":false}],` +
		`"Networks":[{"ID":"` + blue + `","Number":1,"Subnets":[{"Prefix":"10.1.0.0/20","Gateway":"10.1.0.1"}],"Internal":true,"MTU":0,"Routes":null},` +
		`{"ID":"` + red + `","Number":2,"Subnets":[{"Prefix":"10.0.0.0/20","Gateway":"10.0.0.1"},{"Prefix":"fd00::/64","Gateway":"fd00::1"}],"Internal":false,"MTU":1400,` +
		`"Routes":[{"Prefix":"10.0.0.0/26","Node":"n1"},{"Prefix":"10.0.0.64/26","Node":"n2"},{"Prefix":"10.0.0.99/32","Node":"n2"},{"Prefix":"10.0.1.0/26","Node":"n2"},{"Prefix":"fd00::99/128","Node":"n2"}]}],"Doors":[{"Proto":"tcp","Port":80,"Node":"n2"}]}`
	if string(b) != want {
		t.Errorf("the fabric is\n%s\nwant\n%s", b, want)
	}
	if err := got.Validate(); err != nil {
		t.Errorf("no node can do that: %v", err)
	}
}
