package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/e2e/fleet"
)

// Networks of a fleet, by drover's and docker's client: names and addresses over nodes,
// several networks, fixed addresses that move on, and removal.
func TestNetworksOfAFleet(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c")
	f.Quorum()
	a, b, c := f.Hosts[0], f.Hosts[1], f.Hosts[2]
	a.Must("pull", "alpine")
	want(t, a.Drover("network", "create", "--subnet", "172.30.0.0/16", "web"), 0)
	want(t, b.Docker(nil, "network", "create", "back"), 0)
	want(t, c.Drover("network", "ls"), 0, "NETWORK ID +NAME +DRIVER +SCOPE", "web +bridge +local", "back +bridge +local", "none +null +local")

	const serve = `echo from $(hostname) > /tmp/index.html; exec httpd -f -p 80 -h /tmp`
	want(t, a.Drover("run", "-d", "--name", "one", "--hostname", "one", "--on", "node==a", "--network", "web", "--network-alias", "srv", "alpine", "/bin/sh", "-c", serve), 0)
	want(t, b.Docker(nil, "run", "-d", "--name", "two", "--hostname", "two", "-l", "io.drover.on=node==b", "--network", "web", "--ip", "172.30.9.9", "alpine", "/bin/sh", "-c", serve), 0)
	want(t, a.Drover("inspect", "-f", `{{with index .NetworkSettings.Networks "web"}}{{.IPAddress}}/{{.IPPrefixLen}} {{.Gateway}} {{.MacAddress}}{{end}}`, "two"), 0, "172.30.9.9/16 172.30.0.1 02:42:ac:1e:09:09")

	// The image's programs are static: only nslookup can ask for a name.
	const fetch = `case $1 in *[a-z]*) set -- $(nslookup $1. 127.0.0.11 2>&1 | awk '/^Name/{n=1} n&&/^Address/{print $NF; exit}');; esac
		echo "at $1"; [ -n "$1" ] && printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 $1 80`
	get := func(node, from, host string) fleet.Result {
		return a.Drover("run", "--rm", "--on", "node=="+node, "--network", from, "alpine", "/bin/sh", "-c", fetch, "fetch", host)
	}
	for _, node := range []string{"a", "b", "c"} {
		for host, says := range map[string]string{"one": "from one", "srv": "from one", "two": "from two", "172.30.9.9": "from two"} {
			want(t, get(node, "web", host), 0, says)
		}
	}
	if r := get("a", "back", "one"); r.Code == 0 {
		t.Errorf("a name of another network is answered: %+v", r)
	}

	// Connected while it runs, it has a second name there, and loses it again.
	want(t, c.Docker(nil, "network", "connect", "--alias", "uno", "back", "one"), 0)
	f.Eventually(10*time.Second, "a connected container is reached", func() bool {
		r := get("c", "back", "uno")
		return r.Code == 0 && strings.Contains(r.Out, "from one")
	})
	want(t, a.Drover("network", "rm", "back"), 1, "network back has active endpoints")
	want(t, a.Drover("network", "disconnect", "back", "one"), 0)
	f.Eventually(10*time.Second, "a disconnected container is not reached", func() bool { return get("c", "back", "uno").Code != 0 })
	want(t, a.Drover("network", "rm", "back"), 0, "back")

	// An address goes on to who is made with it before the first one goes.
	want(t, a.Drover("create", "--name", "next", "--hostname", "next", "--on", "node==c", "--network", "web", "--ip", "172.30.9.9", "alpine", "/bin/sh", "-c", serve), 0)
	want(t, a.Drover("start", "next"), 1, "Address already in use")
	want(t, a.Drover("rm", "-f", "two"), 0)
	want(t, a.Drover("start", "next"), 0)
	for _, node := range []string{"a", "b", "c"} {
		f.Eventually(10*time.Second, "the next one has the address", func() bool { return strings.Contains(get(node, "web", "172.30.9.9").Out, "from next") })
	}
	want(t, a.Drover("ps", "--filter", "network=web", "--format", "{{.Names}}"), 0, "one", "next")

	// One that shares another one's network goes to its node, has its addresses, and no more of
	// its own; afterwards, as in docker, it starts only while that one runs.
	want(t, b.Docker(nil, "run", "--rm", "--network", "container:one", "alpine", "/bin/sh", "-c", "hostname; nc -w 5 127.0.0.1 80 < /dev/null; echo $?"), 0, "^one\n0\n$")
	want(t, b.Docker(nil, "create", "--name", "side", "--network", "container:one", "alpine", "/bin/sh", "-c", "hostname"), 0)
	want(t, b.Docker(nil, "inspect", "-f", `{{index .Config.Labels "io.drover.node"}} {{.HostConfig.NetworkMode}}`, "side"), 0, "^a container:[0-9a-f]{64}\n$")
	want(t, b.Docker(nil, "run", "--network", "container:one", "-p", "80", "alpine", "true"), 125, "conflicting options: port publishing and the container type network mode")
	want(t, b.Docker(nil, "run", "--network", "container:nobody", "alpine", "true"), 125, "No such container: nobody")
	want(t, b.Docker(nil, "run", "--network", "container:one", "-l", "io.drover.on=node==b", "alpine", "true"), 125, "excluded: the network of one is on a")
	want(t, a.Drover("rename", "one", "uno"), 0)
	want(t, a.Drover("start", "-a", "side"), 0, "^one\n$")
	want(t, a.Drover("stop", "-t", "0", "uno"), 0)
	want(t, a.Drover("start", "side"), 1, "cannot join network namespace of a non running container: container (uno|one) is exited")
	want(t, a.Drover("rm", "-f", "uno"), 0)
	want(t, a.Drover("start", "side"), 1, "No such container: [0-9a-f]{64}")
	want(t, a.Drover("rm", "-f", "side", "next"), 0)
	want(t, a.Drover("network", "prune", "-f"), 0, "web")
}
