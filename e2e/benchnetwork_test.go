package e2e

import (
	"bufio"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/drover/drover/e2e/fleet"
	"github.com/drover/drover/e2e/peers"
	"github.com/drover/drover/pkg/testenv"
)

// Networks that rows make in each contender, and their containers.
const (
	openNetwork   = "open"
	closedNetwork = "closed" // internal: there, an unknown name is asked nowhere else
	loadServer    = "server"
	loadClient    = "client"
)

// engine is a contender's side on one host: its command, as docker's.
type engine struct {
	name    string
	group   *peers.Group
	command func(args ...string) *exec.Cmd
	driver  string   // of its networks
	place   []string // flags of run that place a container on the host
}

func (e engine) run(args ...string) (string, error) { return e.group.Run(e.command(args...)) }

func (d *droverSide) on(h *fleet.Host, name string) engine {
	return engine{name, d.group, func(args ...string) *exec.Cmd { return d.command(d.lead, args...) }, "overlay", []string{"--on", "node==" + h.Name}}
}

func dockerEngine(p *peers.Docker, name, driver string) engine {
	return engine{name: name, group: p.Group, command: p.Command, driver: driver}
}

// netload returns the program that makes traffic, which containers mount.
func (c *contest) netload() string {
	c.b.Helper()
	path := filepath.Join(c.f.Dir, "netload")
	if _, err := exec.LookPath(path); err != nil {
		testenv.Build(c.b, path, "./peers/netload")
	}
	return path
}

// network makes a network, unless it is there.
func (c *contest) network(e engine, name string) {
	c.b.Helper()
	if _, err := e.run("network", "inspect", name); err == nil {
		return
	}
	args := []string{"network", "create", "-d", e.driver, "--attachable"}
	if name == closedNetwork {
		args = append(args, "--internal")
	}
	if _, err := e.run(append(args, name)...); err != nil {
		c.b.Fatal(err)
	}
}

// container makes a container of a network that can make traffic, unless it is there, and
// returns its address.
func (c *contest) container(e engine, name, network string, command ...string) string {
	c.b.Helper()
	if _, err := e.run("inspect", name); err != nil {
		args := append([]string{"run", "-d", "--name", name, "--network", network, "-v", c.netload() + ":/netload:ro"}, e.place...)
		if _, err := e.run(append(append(args, "busybox"), command...)...); err != nil {
			c.b.Fatal(err)
		}
	}
	ip, err := e.run("inspect", "-f", fmt.Sprintf("{{(index .NetworkSettings.Networks %q).IPAddress}}", network), name)
	if err != nil {
		c.b.Fatal(err)
	}
	return strings.TrimSpace(ip)
}

// between makes a server and a client on two sides of a contender, and returns the
// server's address.
func (c *contest) between(from, to engine, suffix string) string {
	c.b.Helper()
	c.network(from, openNetwork)
	c.container(from, loadClient, openNetwork, "sleep", "100000")
	return c.container(to, loadServer+suffix, openNetwork, "/netload", "serve")
}

// loads is a contender whose client makes traffic. Who answers for its packets in the
// kernel is no process, so that CPU time says nothing.
func (e engine) loads(goal float64, what, whom string) peers.Contender {
	return peers.Contender{Name: e.name, Goal: goal, Do: func(int) (float64, error) {
		out, err := e.run("exec", loadClient, "/netload", what, whom)
		if err != nil {
			return 0, err
		}
		return strconv.ParseFloat(strings.TrimSpace(out), 64)
	}}
}

// oneNode compares containers of one network on one node.
func oneNode(what string) func(*contest, *row) []peers.Contender {
	return func(c *contest, _ *row) []peers.Contender {
		d := c.one()
		e := d.on(d.lead, d.name)
		all := []peers.Contender{e.loads(0, what, c.between(e, e, ""))}
		if p := c.docker(); p != nil {
			e := dockerEngine(p, "docker, a bridge of the user's", "bridge")
			all = append(all, e.loads(0.9, what, c.between(e, e, "")))
		}
		return all
	}
}

// answers compares what resolves names in containers.
func answers(c *contest, _ *row) []peers.Contender {
	d := c.one()
	e := d.on(d.lead, d.name)
	c.between(e, e, "")
	all := []peers.Contender{e.loads(0, "ask", loadServer)}
	if p := c.docker(); p != nil {
		e := dockerEngine(p, "docker", "bridge")
		c.between(e, e, "")
		all = append(all, e.loads(0, "ask", loadServer))
	}
	return all
}

// tunnel is drover's link to nodes that are not on one of this host's.
const tunnel = "dvx"

// twoNodes compares containers of one network on two nodes, which are on one link or not.
func twoNodes(what string, tunneled bool) func(*contest, *row) []peers.Contender {
	return func(c *contest, _ *row) []peers.Contender {
		d := c.three()
		near, far, suffix := d.hosts[0], d.hosts[1], ""
		if tunneled {
			far, suffix = c.apart(), "-apart"
		}
		to := c.between(d.on(near, ""), d.on(far, ""), suffix)
		c.f.Eventually(time.Minute, "traffic goes the way that is to be measured", func() bool {
			way := near.In(nil, "ip", "route", "get", to)
			return way.Code == 0 && strings.Contains(way.Out, "dev "+tunnel) == tunneled && (tunneled || strings.Contains(way.Out, "dev eth0"))
		})
		all := []peers.Contender{d.on(near, "drover").loads(0, what, to)}
		if s := c.swarm(); s != nil {
			from, other := dockerEngine(s.Engines[0], "Swarm, overlay", "overlay"), dockerEngine(s.Engines[1], "", "overlay")
			all = append(all, from.loads(1, what, c.between(from, other, "")))
		}
		return all
	}
}

// named measures from when a container runs on one node until its name is answered on
// another one. Docker is not compared: it answers before there is anybody at the address.
func named(c *contest, _ *row) []peers.Contender {
	const watcher = "watcher"
	d := c.three()
	runs, asks := d.on(d.hosts[0], d.name), d.on(d.hosts[2], "")
	c.network(runs, closedNetwork)
	c.container(asks, watcher, closedNetwork, "sleep", "100000")
	return []peers.Contender{{
		Name: runs.name,
		Do: func(round int) (took float64, err error) {
			asking := asks.command("exec", watcher, "/netload", "await", made(round))
			out, err := asking.StdoutPipe()
			if err == nil {
				err = asks.group.Start(asking)
			}
			if err != nil {
				return 0, err
			}
			defer func() {
				if err != nil {
					_ = asking.Process.Kill()
				}
				_ = asking.Wait()
			}()
			lines := bufio.NewScanner(out)
			lines.Scan() // it asks
			args := append([]string{"run", "-d", "--name", made(round), "--network", closedNetwork}, runs.place...)
			if _, err := runs.run(append(args, "busybox", "sleep", "100000")...); err != nil {
				return 0, err
			}
			lines.Scan()
			ns, err := strconv.ParseInt(lines.Text(), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("awaiting the name of %s: %w", made(round), err)
			}
			at, err := runs.run("inspect", "-f", "{{.State.StartedAt}}", made(round))
			if err != nil {
				return 0, err
			}
			ran, err := time.Parse(time.RFC3339Nano, strings.TrimSpace(at))
			return peers.Milliseconds(time.Unix(0, ns).Sub(ran)), err
		},
		Undo: func(round int) error { _, err := runs.run("rm", "-f", made(round)); return err },
	}}
}

// joinApart joins a host whose network carries packets of nodes' own addresses only, as
// those of clouds do: containers of other nodes reach its own through the tunnel.
func (c *contest) joinApart(h *fleet.Host) *fleet.Host {
	c.b.Helper()
	const rules = `add table netdev cloud
add chain netdev cloud in { type filter hook ingress device eth0 priority 0; }
add rule netdev cloud in ip saddr 10.208.0.0/12 drop
add rule netdev cloud in ip daddr 10.208.0.0/12 drop
`
	if r := h.In([]byte(rules), "nft", "-f", "-"); r.Code != 0 {
		c.b.Fatal(r)
	}
	first := c.three().hosts[0]
	h.Join(first, first.Must("token", "create", "-q", "--role", "agent"))
	return h
}
