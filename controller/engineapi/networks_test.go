package engineapi

import (
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
)

// upgraded is an API of a fleet whose controllers know networks.
func upgraded(t *testing.T) *api {
	t.Helper()
	a := newAPI(t)
	a.f.Upgrade()
	return a
}

// network makes a network with an id of its name.
func (a *api) network(n *dv1.Network) *dv1.Network {
	a.t.Helper()
	n = &dv1.Network{Id: padded("net-" + n.Name), Name: n.Name, Driver: n.Driver, Ipv4: true, Ipv6: n.Ipv6, Internal: n.Internal, Subnets: n.Subnets, Labels: n.Labels, Options: n.Options}
	a.f.Do(&dv1.Command{Of: &dv1.Command_CreateNetwork{CreateNetwork: &dv1.CreateNetwork{Network: n}}})
	return a.f.Snapshot().NetworkByName(n.Name)
}

func padded(s string) []byte { return []byte((s + strings.Repeat(" ", 32))[:32]) }

// attach connects a container, which has run before or not.
func (a *api) attach(task *dv1.Task, network string, with ...func(*dv1.Endpoint)) {
	a.t.Helper()
	e := &dv1.Endpoint{TaskId: task.Id}
	for _, f := range with {
		f(e)
	}
	a.f.Do(&dv1.Command{Of: &dv1.Command_Connect{Connect: &dv1.Connect{NetworkId: padded("net-" + network), Endpoint: e}}})
}

func (a *api) filtered(path, filters string) reply {
	return a.do("GET", path+"?filters="+url.QueryEscape(filters), "")
}

func TestGoldensOfNetworks(t *testing.T) {
	a := upgraded(t)
	a.network(&dv1.Network{Name: "web", Ipv6: true, Subnets: []*dv1.Subnet{{Prefix: "172.30.0.0/16", IpRange: "172.30.5.0/24", Gateway: "172.30.5.254", Reserved: map[string]string{"router": "172.30.0.9"}}},
		Labels: map[string]string{"tier": "front"}, Options: map[string]string{"com.docker.network.driver.mtu": "1400"}})
	a.network(&dv1.Network{Name: "db", Internal: true, Driver: "overlay"})
	on := a.run("on")
	a.attach(on, "web")
	a.f.Create("off", "docker.io/library/busybox:latest", `{"Image":"busybox","Cmd":["true"]}`)
	a.attach(a.f.Snapshot().TaskByName("off"), "web")
	a.f.Observed(&dv1.TaskStatus{Id: on.Id, Attempt: 1, Phase: dv1.Phase_ACTIVE, Started: 5, Ip: "10.210.0.2", Gateway: "10.210.0.1", PrefixLen: 24, Mac: "02:42:0a:d2:00:02"})
	golden(t, "networks", a.do("GET", "/networks", ""))
	golden(t, "network-bridge", a.do("GET", "/networks/bridge", ""))
	golden(t, "network-host", a.do("GET", "/networks/host", ""))
	golden(t, "network-web", a.do("GET", "/networks/web", ""))
	golden(t, "network-1.41", a.do("GET", "/v1.41/networks/db", ""))
}

// What docker's own client makes of networks.
func TestDockersClientAndNetworks(t *testing.T) {
	a := upgraded(t)
	c, err := client.New(client.WithHost("tcp://"+strings.TrimPrefix(a.url, "http://")), client.WithAPIVersion("1.52"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	made, err := c.NetworkCreate(ctx, "web", client.NetworkCreateOptions{Driver: "bridge", Labels: map[string]string{"a": "b"}})
	if err != nil || len(made.ID) != 64 {
		t.Fatalf("a create: %+v %v", made, err)
	}
	got, err := c.NetworkInspect(ctx, made.ID[:12], client.NetworkInspectOptions{Verbose: true})
	if err != nil || got.Network.Name != "web" || got.Network.ID != made.ID || got.Network.IPAM.Config[0].Subnet.String() != "10.220.0.0/20" || got.Network.Labels["a"] != "b" {
		t.Fatalf("an inspect: %+v %v", got.Network, err)
	}
	list, err := c.NetworkList(ctx, client.NetworkListOptions{Filters: client.Filters{}.Add("type", "custom")})
	if err != nil || len(list.Items) != 1 || list.Items[0].Name != "web" {
		t.Fatalf("a list: %+v %v", list.Items, err)
	}
	if _, err := c.NetworkCreate(ctx, "web", client.NetworkCreateOptions{}); err == nil || !strings.Contains(err.Error(), "network with name web already exists") {
		t.Errorf("a second one: %v", err)
	}
	pruned, err := c.NetworkPrune(ctx, client.NetworkPruneOptions{})
	if err != nil || !slices.Equal(pruned.Report.NetworksDeleted, []string{"web"}) {
		t.Errorf("a prune: %+v %v", pruned, err)
	}
	if _, err := c.NetworkRemove(ctx, "web", client.NetworkRemoveOptions{}); err == nil || !strings.Contains(err.Error(), "network web not found") {
		t.Errorf("a removal of what is gone: %v", err)
	}
}

func TestNetworksThatAreRefused(t *testing.T) {
	a := upgraded(t)
	a.network(&dv1.Network{Name: "web", Subnets: []*dv1.Subnet{{Prefix: "172.30.0.0/16"}}})
	a.attach(a.run("on"), "web")
	bridge := networkID("bridge")
	for _, c := range []struct {
		request, body string
		code          int
		words         string
	}{
		{"GET /networks/nope", "", 404, "network nope not found"},
		{"GET /networks/web?scope=swarm", "", 404, "network web not found"},
		{"GET /networks/" + bridge[:12], "", 200, `"Name":"bridge"`},
		{"GET /networks/" + bridge, "", 200, `"Name":"bridge"`},
		{"POST /networks/create", `{"Name":"bridge"}`, 403, "operation is not permitted on predefined bridge network"},
		{"POST /networks/create", `{}`, 400, "invalid name: name is empty"},
		{"POST /networks/create", `{"Name":"x","Driver":"macvlan"}`, 404, `plugin \"macvlan\" not found`},
		{"POST /networks/create", `{"Name":"web"}`, 409, "network with name web already exists"},
		{"POST /networks/create", `{"Name":"x","IPAM":{"Config":[{"Subnet":"172.30.1.0/24"}]}}`, 403, "Pool overlaps with other one on this address space"},
		{"POST /networks/create", `{"Name":"x","IPAM":{"Config":[{"Subnet":"172.31.1.0/24","Gateway":"10.0.0.1"}]}}`, 400, "invalid gateway 10.0.0.1"},
		{"POST /networks/create", `{"Name":"x","IPAM":{"Config":[{"Gateway":"10.0.0.1"}]}}`, 400, "invalid network config"},
		{"POST /networks/create", `{"Name":"x","IPAM":{"Driver":"dhcp"}}`, 501, "IPAM.Driver: address drivers are not available"},
		{"POST /networks/create", `{"Name":"x","Ingress":true}`, 501, "Ingress: Swarm's routing mesh is not available"},
		{"POST /networks/create", `{"Name":"x","ConfigOnly":true}`, 501, "networks of configuration only"},
		{"POST /networks/create", `{"Name":"x","Scope":"swarm"}`, 501, "scopes of networks"},
		{"POST /v1.47/networks/create", `{"Name":"old","EnableIPv4":false}`, 201, "Id"}, // not known to that version
		{"POST /networks/create", `{"Name":"x","EnableIPv4":false}`, 400, "IPv4 or IPv6 must be enabled"},
		{"POST /networks/create", `{"Name":"x","EnableIPv4":false,"EnableIPv6":true}`, 201, "Id"},
		{"POST /networks/create", `{"Name":"nothing","IPAM":{"Config":[{}]}}`, 201, "Id"},
		{"DELETE /networks/bridge", "", 403, "bridge is a pre-defined network and cannot be removed"},
		{"DELETE /networks/nope", "", 404, "network nope not found"},
		{"DELETE /networks/web", "", 403, `error while removing network: network web has active endpoints (name:\"on\" id:`},
		{"POST /networks/prune?filters={\"name\":[\"x\"]}", "", 400, "invalid filter 'name'"},
		{"GET /networks?filters={\"type\":[\"x\"]}", "", 400, "invalid filter: 'type'='x'"},
		{"GET /networks?filters={\"dangling\":[\"x\"]}", "", 400, "invalid value for filter 'dangling'"},
		{"GET /networks?filters={\"name\":[\"(\"]}", "", 400, "invalid filter 'name=('"},
		{"POST /networks/prune?filters={\"until\":[\"x\"]}", "", 400, "invalid time"},
	} {
		method, path, _ := strings.Cut(c.request, " ")
		path = strings.NewReplacer("{", "%7B", "}", "%7D", `"`, "%22", "[", "%5B", "]", "%5D").Replace(path)
		a.is(a.do(method, path, c.body), c.request+" "+c.body, c.code, c.words)
	}
}

func TestNetworksAreFiltered(t *testing.T) {
	a := upgraded(t)
	a.network(&dv1.Network{Name: "web", Labels: map[string]string{"tier": "front", "x": ""}})
	a.network(&dv1.Network{Name: "webhook", Driver: "overlay"})
	a.attach(a.run("on"), "web")
	web := hex.EncodeToString(padded("net-web "))
	for filters, want := range map[string]string{
		`{}`:                                         "bridge host none web webhook",
		`{"name":["web"]}`:                           "web webhook",
		`{"name":["^web$","none"]}`:                  "none web",
		`{"id":["` + web[:16] + `"]}`:                "web",
		`{"driver":["overlay","null"]}`:              "none webhook",
		`{"scope":["local"]}`:                        "bridge host none web webhook",
		`{"scope":["swarm"]}`:                        "",
		`{"type":["builtin"]}`:                       "bridge host none",
		`{"type":["custom"]}`:                        "web webhook",
		`{"label":["tier"]}`:                         "web",
		`{"label":["tier=front","x"]}`:               "web",
		`{"label":["tier=back"]}`:                    "",
		`{"dangling":["true"]}`:                      "webhook",
		`{"dangling":["0"]}`:                         "bridge host none web",
		`{"type":{"custom":true},"name":{"k":true}}`: "webhook",
	} {
		r := a.filtered("/networks", filters)
		var list []network.Summary
		if err := json.Unmarshal([]byte(r.body), &list); err != nil {
			t.Fatalf("%s: %d %s", filters, r.code, r.body)
		}
		var names []string
		for _, n := range list {
			names = append(names, n.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s lists %q, want %q", filters, got, want)
		}
	}
}

func TestPruneLeavesWhatIsUsed(t *testing.T) {
	a := upgraded(t)
	for _, name := range []string{"used", "kept", "new", "free"} {
		n := &dv1.Network{Name: name}
		if name == "kept" {
			n.Labels = map[string]string{"keep": "1"}
		}
		a.network(n)
	}
	a.attach(a.run("on"), "used")
	deleted := func(filters string) string {
		r := a.do("POST", "/networks/prune?filters="+url.QueryEscape(filters), "")
		var out struct{ NetworksDeleted []string }
		if err := json.Unmarshal([]byte(r.body), &out); err != nil || r.code != http.StatusOK {
			t.Fatalf("%s: %d %s", filters, r.code, r.body)
		}
		return strings.Join(out.NetworksDeleted, " ")
	}
	for _, c := range [][2]string{{`{"until":["1999-01-01T00:00:00Z"]}`, ""}, {`{"label":["keep=2"]}`, ""}, {`{"label!":["keep"]}`, "new free"}, {`{"until":["1h"]}`, "kept"}, {`{}`, ""}} {
		if got := deleted(c[0]); got != c[1] {
			t.Errorf("%s deletes %q, want %q", c[0], got, c[1])
		}
	}
	if a.f.Snapshot().NetworkByName("used") == nil {
		t.Error("a network with a container is gone")
	}
}

// A repeated create is the same network, and a repeated removal has removed it.
func TestNetworkRequestsAreRepeated(t *testing.T) {
	a := upgraded(t)
	first := a.do("POST", "/networks/create", `{"Name":"web"}`, wire.HeaderKey, "k1")
	if again := a.do("POST", "/networks/create", `{"Name":"web"}`, wire.HeaderKey, "k1"); again.code != 201 || again.body != first.body {
		t.Errorf("repeated it answers %d %s, first %s", again.code, again.body, first.body)
	}
	for range 2 {
		a.is(a.do("DELETE", "/networks/web", "", wire.HeaderKey, "k2"), "a removal", 204, "")
	}
}

func TestEventsOfNetworks(t *testing.T) {
	a := upgraded(t)
	a.network(&dv1.Network{Name: "web"})
	t1 := a.run("on")
	a.attach(t1, "web")
	a.f.Do(&dv1.Command{Of: &dv1.Command_Remove{Remove: &dv1.Remove{TaskId: t1.Id, Force: true}}})
	a.is(a.do("DELETE", "/networks/web", ""), "a removal", 204, "")
	r := a.do("GET", "/events?since=1&until=1767400000&filters="+url.QueryEscape(`{"type":["network"]}`), "")
	var got []string
	for _, line := range strings.Split(strings.TrimSpace(r.body), "\n") {
		var e struct {
			Action string
			Actor  struct {
				ID         string
				Attributes map[string]string
			}
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e.Actor.ID != hex.EncodeToString(padded("net-web")) || e.Actor.Attributes["name"] != "web" || e.Actor.Attributes["type"] != "bridge" {
			t.Errorf("an event of %+v", e.Actor)
		}
		got = append(got, e.Action)
	}
	if want := []string{"create", "connect", "disconnect", "destroy"}; !slices.Equal(got, want) {
		t.Errorf("the events are %v, want %v", got, want)
	}
}

func TestPredefinedNetworksAreDockers(t *testing.T) {
	if len(predefined) != len(command.Predefined) || state.FeatureLevel < state.LevelNetworks {
		t.Errorf("%v are predefined, and %v", predefined, command.Predefined)
	}
}
