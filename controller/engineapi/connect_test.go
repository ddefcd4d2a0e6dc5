package engineapi

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/moby/moby/api/types/container"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// made creates a container through the API, and returns its task.
func (a *api) made(name, rest string) *dv1.Task {
	a.t.Helper()
	r := a.do("POST", "/containers/create?name="+name, `{"Image":"busybox","Cmd":["sleep","9"]`+rest+`}`)
	if r.code != http.StatusCreated {
		a.t.Fatalf("a create of %s: %d %s", name, r.code, r.body)
	}
	return a.f.Snapshot().TaskByName(name)
}

// moving ids of tasks, which creates draw.
func (a *api) steady(r reply, tasks ...*dv1.Task) reply {
	for _, t := range tasks {
		r.body = strings.ReplaceAll(r.body, hexID(t), "ID-OF-"+t.Name)
		r.body = strings.ReplaceAll(r.body, hexID(t)[:12], "SHORT-ID-OF-"+t.Name)
		for e := range a.f.Snapshot().EndpointsOfTask(t.Id) {
			r.body = strings.ReplaceAll(r.body, hex.EncodeToString(e.Id), "ENDPOINT-OF-"+t.Name)
		}
	}
	return r
}

func TestContainersInNetworks(t *testing.T) {
	a := upgraded(t)
	a.network(&dv1.Network{Name: "web", Ipv6: true, Subnets: []*dv1.Subnet{{Prefix: "172.30.0.0/16"}, {Prefix: "fd00::/64"}}})
	a.network(&dv1.Network{Name: "db", Internal: true})
	task := a.made("app", `,"Hostname":"box","HostConfig":{"NetworkMode":"web"},"NetworkingConfig":{"EndpointsConfig":{
		"web":{"Aliases":["www","app"],"Links":["db:database"],"IPAMConfig":{"IPv4Address":"172.30.0.99","LinkLocalIPs":["169.254.7.7"]},"MacAddress":"0a:00:00:00:00:07","GwPriority":3,"DriverOpts":{"com.docker.network.endpoint.ifname":"eth7"}},
		"db":{}}}`)
	golden(t, "inspect-networks-created", a.steady(a.do("GET", "/containers/app/json", ""), task))
	a.f.Run(task.Id)
	golden(t, "inspect-networks", a.steady(a.do("GET", "/containers/app/json", ""), task))
	golden(t, "inspect-networks-1.44", a.steady(a.do("GET", "/v1.44/containers/app/json", ""), task))
	golden(t, "ps-networks", a.steady(a.do("GET", "/containers/json", ""), task))
	for ref, want := range map[string]string{"web": "app", "db": "app", hex.EncodeToString(padded("net-db")): "app", "bridge": "", "nope": ""} {
		r := a.filtered("/containers/json", `{"network":["`+ref+`"]}`)
		if got := strings.Contains(r.body, `"/app"`); r.code != 200 || got != (want != "") {
			t.Errorf("in %s are %s", ref, r.body)
		}
	}
	// Networks that are named without a mode are all that there are, as in docker.
	only := a.made("only", `,"NetworkingConfig":{"EndpointsConfig":{"`+hex.EncodeToString(padded("net-web"))+`":{"Aliases":["o"]}}}`)
	var c container.InspectResponse
	if err := json.Unmarshal([]byte(a.do("GET", "/containers/only/json", "").body), &c); err != nil {
		t.Fatal(err)
	}
	if e := c.NetworkSettings.Networks["web"]; len(c.NetworkSettings.Networks) != 1 || e == nil || !slices.Equal(e.DNSNames, []string{"only", "o", hexID(only)[:12]}) {
		t.Errorf("its networks are %+v", c.NetworkSettings.Networks)
	}
	a.is(a.do("POST", "/containers/create", `{"Image":"busybox","HostConfig":{"NetworkMode":"nope"}}`), "a network that is not there", 400, "network nope not found")
	a.is(a.do("POST", "/containers/create", `{"Image":"busybox","HostConfig":{"NetworkMode":"web"},"NetworkingConfig":{"EndpointsConfig":{"web":{"IPAMConfig":{"IPv4Address":"10.1.1.1"}}}}}`),
		"an address outside", 400, "no configured subnet contains IP address 10.1.1.1")
}

func TestConnectAndDisconnect(t *testing.T) {
	a := upgraded(t)
	a.network(&dv1.Network{Name: "web"})
	task := a.run("app")
	a.f.Create("host", "docker.io/library/busybox:latest", `{"Image":"busybox","HostConfig":{"NetworkMode":"host"}}`)
	connect, disconnect := "/networks/web/connect", "/networks/web/disconnect"
	for _, c := range []struct {
		path, body string
		code       int
		words      string
	}{
		{connect, `{"Container":"app","EndpointConfig":{"Aliases":["www"]}}`, 200, ""},
		{connect, `{"Container":"app"}`, 403, "endpoint with name app already exists in network web"},
		{disconnect, `{"Container":"app"}`, 200, ""},
		{disconnect, `{"Container":"app","Force":true}`, 500, "is not connected to network web"},
		{connect, `{"Container":"nope"}`, 404, "No such container: nope"},
		{connect, `{"Container":"host"}`, 400, "container sharing network namespace with another container or host"},
		{"/networks/nope/connect", `{"Container":"app"}`, 404, "network nope not found"},
		{"/networks/bridge/connect", `{"Container":"app"}`, 501, "the default bridge"},
		{"/networks/host/connect", `{"Container":"app"}`, 400, "host network"},
		{"/networks/none/disconnect", `{"Container":"app"}`, 400, "private (none) mode"},
		{connect, `{"Container":"app","EndpointConfig":{"IPAMConfig":{"IPv4Address":"10.1.1.1"}}}`, 400, "no configured subnet contains IP address 10.1.1.1"},
		{connect, `x`, 400, "invalid JSON"},
		{disconnect, `x`, 400, "invalid JSON"},
	} {
		a.is(a.do("POST", c.path, c.body), c.path+" "+c.body, c.code, c.words)
	}
	if e := a.f.Snapshot().Endpoint(task.Id, padded("net-web")); !e.GetLeaving() || !slices.Equal(e.Aliases, []string{"www"}) {
		t.Errorf("its endpoint is %v", e)
	}
	r := a.do("GET", "/events?since=1&until=1767400000&filters="+url.QueryEscape(`{"type":["network"],"container":["`+hexID(task)+`"]}`), "")
	if r.code != 200 {
		t.Error(r)
	}
	var got []string
	for _, e := range a.events(`{"type":["network"]}`) {
		got = append(got, e.Action)
	}
	if want := []string{"create", "connect", "disconnect"}; !slices.Equal(got, want) {
		t.Errorf("the events are %v, want %v", got, want)
	}
}

type anEvent struct {
	Action string
	Actor  struct {
		ID         string
		Attributes map[string]string
	}
}

func (a *api) events(filters string) (out []anEvent) {
	a.t.Helper()
	r := a.do("GET", "/events?since=1&until=1767400000&filters="+url.QueryEscape(filters), "")
	for _, line := range strings.Split(strings.TrimSpace(r.body), "\n") {
		var e anEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			a.t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// A container is in its networks while it runs, as their events tell.
func TestEventsOfAStartAndAnEnd(t *testing.T) {
	a := upgraded(t)
	a.network(&dv1.Network{Name: "web"})
	task := a.made("app", `,"HostConfig":{"NetworkMode":"web"}`)
	a.f.Run(task.Id)
	a.f.Exit(task.Id, 0)
	var got []string
	for _, e := range a.events(`{}`) {
		switch e.Actor.Attributes["name"] {
		case "web":
			if e.Action != "create" && e.Actor.Attributes["container"] != hexID(task) {
				t.Errorf("a %s of %v", e.Action, e.Actor)
			}
			got = append(got, "network "+e.Action)
		case "app":
			got = append(got, e.Action)
		}
	}
	if want := []string{"network create", "create", "network connect", "start", "die", "network disconnect"}; !slices.Equal(got, want) {
		t.Errorf("the events are %v, want %v", got, want)
	}
}

// Docker's events of a stop and a restart, in its order.
func TestEventsOfAStopAndARestart(t *testing.T) {
	a := upgraded(t)
	a.network(&dv1.Network{Name: "web"})
	task := a.made("app", `,"HostConfig":{"NetworkMode":"web"}`)
	seen := len(a.events(`{}`))
	told := func(what string, want ...string) {
		t.Helper()
		all := a.events(`{}`)
		var got []string
		for _, e := range all[seen:] {
			got = append(got, e.Action)
		}
		if seen = len(all); !slices.Equal(got, want) {
			t.Errorf("of %s the events are %v, want %v", what, got, want)
		}
	}
	restart := func() {
		now := a.f.Snapshot().Task(task.Id)
		a.f.Do(&dv1.Command{Of: &dv1.Command_Restart{Restart: &dv1.Restart{TaskId: task.Id, Attempt: now.Attempt + 1}}})
	}
	report := func(r *dv1.TaskReport) {
		r.TaskId = task.Id
		a.f.Do(&dv1.Command{Of: &dv1.Command_Report{Report: &dv1.Report{NodeId: task.NodeId, Tasks: []*dv1.TaskReport{r}}}})
	}
	a.f.Run(task.Id)
	told("a start", "connect", "start")
	a.f.Do(&dv1.Command{Of: &dv1.Command_Stop{Stop: &dv1.Stop{TaskId: task.Id}}})
	report(&dv1.TaskReport{Attempt: 1, Started: 5, Exit: &dv1.Exit{Attempt: 1}})
	told("a stop", "die", "disconnect", "stop")
	restart()
	report(&dv1.TaskReport{Attempt: 2, Started: 6})
	told("a restart of what had ended", "connect", "start", "restart")
	restart()
	report(&dv1.TaskReport{Attempt: 2, Started: 6, Exit: &dv1.Exit{Attempt: 2}})
	report(&dv1.TaskReport{Attempt: 3, Started: 7})
	told("a restart of what ran", "disconnect", "die", "stop", "connect", "start", "restart")
	report(&dv1.TaskReport{Attempt: 3, Started: 7, Exit: &dv1.Exit{Attempt: 3}})
	told("an end by itself", "die", "disconnect")
	restart()
	report(&dv1.TaskReport{Attempt: 4, Failed: "no"})
	a.f.Do(&dv1.Command{Of: &dv1.Command_Start{Start: &dv1.Start{TaskId: task.Id}}})
	report(&dv1.TaskReport{Attempt: 5, Started: 8})
	told("a start after a restart that failed", "connect", "start")
}

// A start waits until the node of a removed container has let its address go.
func TestAStartWaitsForAnAddressThatIsLeaving(t *testing.T) {
	a := upgraded(t)
	a.network(&dv1.Network{Name: "web", Subnets: []*dv1.Subnet{{Prefix: "172.30.0.0/16"}}})
	const fixed = `,"HostConfig":{"NetworkMode":"web"},"NetworkingConfig":{"EndpointsConfig":{"web":{"IPAMConfig":{"IPv4Address":"172.30.0.9"}}}}`
	old := a.made("old", fixed)
	a.f.Run(old.Id)
	next := a.made("next", fixed)
	a.is(a.do("POST", "/containers/next/start", ""), "while the other one runs", 403, "Address already in use")
	a.is(a.do("DELETE", "/containers/old?force=1", ""), "a removal", 204, "")
	var node sync.WaitGroup
	node.Go(func() {
		a.f.Do(&dv1.Command{Of: &dv1.Command_AckTombstones{AckTombstones: &dv1.AckTombstones{NodeId: old.NodeId, TaskIds: [][]byte{old.Id}}}})
		a.await(next, func(t *dv1.Task) bool { return t.Attempt == 1 })
		a.f.Run(next.Id)
	})
	a.is(a.do("POST", "/containers/next/start", ""), "after its removal", 204, "")
	node.Wait()
	if e := a.f.Snapshot().Endpoint(next.Id, padded("net-web")); e.Ip != "172.30.0.9" {
		t.Errorf("it has %v", e)
	}
}

// What docker shows of a container that shares another one's network.
func TestAContainerInTheNetworkOfAnother(t *testing.T) {
	a := upgraded(t)
	app := a.made("app", `,"Hostname":"front"`)
	side := a.made("side", `,"HostConfig":{"NetworkMode":"container:app"}`)
	a.f.Run(app.Id)
	a.f.Run(side.Id)
	a.f.Do(&dv1.Command{Of: &dv1.Command_Rename{Rename: &dv1.Rename{TaskId: app.Id, Name: "renamed"}}})
	var c container.InspectResponse
	if r := a.do("GET", "/containers/side/json", ""); json.Unmarshal([]byte(r.body), &c) != nil {
		t.Fatal(r.body)
	}
	if got := string(c.HostConfig.NetworkMode); got != "container:"+hexID(app) || side.NodeId != app.NodeId {
		t.Errorf("its network is %s, on %s", got, side.NodeId)
	}
	if n := c.NetworkSettings; len(n.Networks) != 0 || len(n.Ports) != 0 || n.SandboxID != "" || c.Config.Hostname != "front" {
		t.Errorf("it is %s with %+v", c.Config.Hostname, n)
	}
	a.is(a.do("POST", "/containers/create", `{"Image":"busybox","Cmd":["x"],"HostConfig":{"NetworkMode":"container:nobody"}}`), "of nobody's", 400, "No such container: nobody")
	a.is(a.do("POST", "/containers/create", `{"Image":"busybox","Cmd":["x"],"HostConfig":{"NetworkMode":"container:renamed","PublishAllPorts":true}}`), "with ports", 400,
		"conflicting options: port publishing and the container type network mode")
}

// Clients of docker's API before 1.44 ask for a MAC address of the container.
func TestAMACAddressOfAnOlderVersion(t *testing.T) {
	a := upgraded(t)
	a.network(&dv1.Network{Name: "web"})
	a.network(&dv1.Network{Name: "back"})
	const mac = `"MacAddress":"0a:00:00:00:00:07"`
	for i, c := range []struct {
		body  string
		code  int
		words string
	}{
		{`"HostConfig":{"NetworkMode":"web"}`, 201, ""},
		{`"NetworkingConfig":{"EndpointsConfig":{"web":{}}}`, 201, ""},
		{`"HostConfig":{"NetworkMode":"web"},"NetworkingConfig":{"EndpointsConfig":{"web":{"MacAddress":"0a:00:00:00:00:07"},"back":{}}}`, 201, ""},
		{`"HostConfig":{"NetworkMode":"web"},"NetworkingConfig":{"EndpointsConfig":{"web":{"MacAddress":"0a:00:00:00:00:08"}}}`, 400, "must match the endpoint-specific MAC address"},
		{`"NetworkingConfig":{"EndpointsConfig":{"web":{},"back":{}}}`, 400, "HostConfig.NetworkMode must match the identity of a network"},
		{`"HostConfig":{}`, 501, "MacAddress: chosen MAC addresses in the default network are not available"},
		{`"HostConfig":{"NetworkMode":"host"}`, 400, "conflicting options: mac-address and the network mode"},
		{`"HostConfig":{"NetworkMode":"none"}`, 400, "conflicting options: mac-address and the network mode"},
	} {
		name := fmt.Sprint("c", i)
		a.is(a.do("POST", "/v1.41/containers/create?name="+name, `{"Image":"busybox","Cmd":["x"],`+mac+`,`+c.body+`}`), c.body, c.code, c.words)
		if c.code != 201 {
			continue
		}
		snap := a.f.Snapshot()
		if e := snap.Endpoint(snap.TaskByName(name).Id, padded("net-web")); e.GetMac() != "0a:00:00:00:00:07" {
			t.Errorf("%s: it has %v", c.body, e)
		}
	}
}
