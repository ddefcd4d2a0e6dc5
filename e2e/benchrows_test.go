package e2e

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/drover/drover/e2e/fleet"
	"github.com/drover/drover/e2e/peers"
)

// rows are what is compared, with the goals that each has.
var rows = []row{
	{Row: peers.Row{Name: "run --rm busybox true", Unit: "ms"}, contend: runOnce},
	{Row: peers.Row{Name: "run -d, until running", Unit: "ms", Goal: 45}, contend: runDetached},
	{Row: peers.Row{Name: "exec true", Unit: "ms"}, contend: execTrue},
	{Row: peers.Row{Name: "restart -t 0", Unit: "ms"}, contend: restart},
	{Row: peers.Row{Name: "100 starts at once on one host", Unit: "ms", Count: burst, Goal: 45}, slow: true, contend: startBurst},
	{Row: peers.Row{Name: "60 starts over three hosts", Unit: "ms", Count: spread}, slow: true, contend: startSpread},
	{Row: peers.Row{Name: "rm -f of 200", Unit: "ms", Count: removed}, slow: true, contend: removeMany},
	{Row: peers.Row{Name: "memory of a container", Unit: "MB", Goal: 2}, slow: true, contend: memoryOfContainers},
	{Row: peers.Row{Name: "leader killed, until the next write", Unit: "ms", Goal: 1000}, slow: true, contend: leaderKilled},
	{Row: peers.Row{Name: "memory of an idle host", Unit: "MB", Goal: 60}, slow: true, contend: memoryOfHosts},
	{Row: peers.Row{Name: "3 s of idling", Unit: "ms"}, slow: true, contend: idling},
	{Row: peers.Row{Name: "network: a stream on one node", Unit: "Gbit/s", More: true}, contend: oneNode("send")},
	{Row: peers.Row{Name: "network: connections on one node", Unit: "/s", More: true}, contend: oneNode("connect")},
	{Row: peers.Row{Name: "network: a stream between nodes on one link", Unit: "Gbit/s", More: true}, contend: twoNodes("send", false)},
	{Row: peers.Row{Name: "network: connections between nodes on one link", Unit: "/s", More: true}, contend: twoNodes("connect", false)},
	{Row: peers.Row{Name: "network: a stream through the tunnel", Unit: "Gbit/s", More: true}, contend: twoNodes("send", true)},
	{Row: peers.Row{Name: "network: connections through the tunnel", Unit: "/s", More: true}, contend: twoNodes("connect", true)},
	{Row: peers.Row{Name: "network: answers of names", Unit: "/s", More: true}, contend: answers},
	{Row: peers.Row{Name: "network: a container runs, until another node answers its name", Unit: "ms", Goal: 50}, contend: named},
}

func runOnce(c *contest, _ *row) []peers.Contender {
	d := c.three()
	all := []peers.Contender{d.does("run", "--rm", "busybox", "true")}
	follower := d.hosts[0]
	if follower == d.lead {
		follower = d.hosts[1]
	}
	all = append(all, peers.Contender{Name: "the same through a follower", CPU: d.group.CPU, Do: peers.Timed(func(int) error {
		_, err := d.run(follower, "run", "--rm", "busybox", "true")
		return err
	})}, c.one().does("run", "--rm", "busybox", "true"))
	if p := c.ctr(); p != nil {
		all = append(all, peers.Contender{Name: "ctr, no network", Goal: 0.6, CPU: p.Group.CPU, Do: peers.Timed(func(round int) error {
			return p.Start(made(round), []string{"--rm"}, "true")
		})})
	}
	if p := c.docker(); p != nil {
		all = append(all, dockerDoes(p, 0.25, "run", "--rm", "busybox", "true"))
	}
	return all
}

func dockerDoes(p *peers.Docker, goal float64, args ...string) peers.Contender {
	return peers.Contender{Name: "docker", Goal: goal, CPU: p.Group.CPU, Do: peers.Timed(func(int) error {
		_, err := p.Run(args...)
		return err
	})}
}

func runDetached(c *contest, _ *row) []peers.Contender {
	d := c.three()
	all := []peers.Contender{{Name: d.name, CPU: d.group.CPU, Undo: d.remove, Do: peers.Timed(func(round int) error {
		_, err := d.run(d.lead, "run", "-d", "--name", made(round), "busybox", "sleep", "100000")
		return err
	})}}
	if p := c.ctr(); p != nil {
		all = append(all, peers.Contender{
			Name: "ctr, no network", CPU: p.Group.CPU, Undo: func(round int) error { return p.Remove(made(round)) },
			Do: peers.Timed(func(round int) error { return p.Start(made(round), []string{"-d"}, "sleep", "100000") }),
		})
	}
	if p := c.docker(); p != nil {
		all = append(all, peers.Contender{
			Name: "docker", CPU: p.Group.CPU, Undo: func(round int) error { _, err := p.Run("rm", "-f", made(round)); return err },
			Do: peers.Timed(func(round int) error {
				_, err := p.Run("run", "-d", "--name", made(round), "busybox", "sleep", "100000")
				return err
			}),
		})
	}
	return all
}

// idle is a container that is there from the first row that needs it.
const idle = "idle"

func (c *contest) idleEverywhere() {
	d := c.three()
	if _, err := d.run(d.lead, "inspect", idle); err == nil {
		return
	}
	if _, err := d.run(d.lead, "run", "-d", "--name", idle, "busybox", "sleep", "100000"); err != nil {
		c.b.Fatal(err)
	}
	if p := c.docker(); p != nil {
		if _, err := p.Run("run", "-d", "--name", idle, "busybox", "sleep", "100000"); err != nil {
			c.b.Fatal(err)
		}
	}
	if p := c.ctr(); p != nil {
		if err := p.Start(idle, []string{"-d"}, "sleep", "100000"); err != nil {
			c.b.Fatal(err)
		}
	}
}

func execTrue(c *contest, _ *row) []peers.Contender {
	c.idleEverywhere()
	all := []peers.Contender{c.three().does("exec", idle, "true")}
	if p := c.ctr(); p != nil {
		all = append(all, peers.Contender{Name: "ctr", CPU: p.Group.CPU, Do: peers.Timed(func(round int) error {
			_, err := p.Ctr("task", "exec", "--exec-id", made(round), idle, "true")
			return err
		})})
	}
	if p := c.docker(); p != nil {
		all = append(all, dockerDoes(p, 0.5, "exec", idle, "true"))
	}
	return all
}

func restart(c *contest, _ *row) []peers.Contender {
	c.idleEverywhere()
	all := []peers.Contender{c.three().does("restart", "-t", "0", idle)}
	if p := c.docker(); p != nil {
		all = append(all, dockerDoes(p, 0, "restart", "-t", "0", idle))
	}
	return all
}

func startBurst(c *contest, _ *row) []peers.Contender {
	d := c.one()
	all := []peers.Contender{{
		Name: d.name, CPU: d.group.CPU, Do: peers.Timed(func(int) error { return startMany(c, burst, burst, d.lead.Socket()) }),
		Undo: func(int) error {
			return removeEach(func(args ...string) (string, error) { return d.run(d.lead, args...) })
		},
	}}
	if p := c.ctr(); p != nil {
		var ids []string
		for i := range burst {
			ids = append(ids, fmt.Sprint("burst", i))
		}
		all = append(all, peers.Contender{
			Name: "ctr, no network", CPU: p.Group.CPU, Undo: func(int) error { return p.Remove(ids...) },
			Do: peers.Timed(func(int) error {
				var all errgroup.Group
				for _, id := range ids {
					all.Go(func() error { return p.Start(id, []string{"-d"}, "sleep", "100000") })
				}
				return all.Wait()
			}),
		})
	}
	if p := c.docker(); p != nil {
		all = append(all, peers.Contender{
			Name: "docker", CPU: p.Group.CPU, Do: peers.Timed(func(int) error { return startMany(c, burst, burst, p.Socket()) }),
			Undo: func(int) error { return removeEach(p.Run) },
		})
	}
	return all
}

func startSpread(c *contest, _ *row) []peers.Contender {
	d := c.three()
	var sockets []string
	for _, h := range d.hosts {
		sockets = append(sockets, h.Socket())
	}
	all := []peers.Contender{{
		Name: d.name, CPU: d.group.CPU, Do: peers.Timed(func(int) error { return startMany(c, spread, spread, sockets...) }),
		Undo: func(int) error {
			return removeEach(func(args ...string) (string, error) { return d.run(d.lead, args...) })
		},
	}}
	if s := c.swarm(); s != nil {
		all = append(all, peers.Contender{
			Name: "Swarm, 3 managers, a service", Goal: 0.3, CPU: s.Group.CPU, Undo: func(round int) error { return s.Remove(made(round)) },
			Do: peers.Timed(func(round int) error { return s.Scale(made(round), spread) }),
		})
	}
	return all
}

func removeMany(c *contest, r *row) []peers.Contender {
	d := c.one()
	all := []peers.Contender{removal(c, r, d.name, d.group, d.lead.Socket(), func(args ...string) (string, error) { return d.run(d.lead, args...) })}
	if p := c.docker(); p != nil {
		all = append(all, removal(c, r, "docker", p.Group, p.Socket(), p.Run))
	}
	return all
}

// removal starts containers for each round, unmeasured, and measures their removal by one
// command.
func removal(c *contest, r *row, name string, g *peers.Group, socket string, run func(args ...string) (string, error)) peers.Contender {
	var spent time.Duration
	return peers.Contender{Name: name, CPU: func() time.Duration { return spent }, Do: func(int) (float64, error) {
		if err := startMany(c, r.Count, few, socket); err != nil {
			return 0, err
		}
		ids, err := run("ps", "-aq")
		if err != nil {
			return 0, err
		}
		before, begin := g.CPU(), time.Now()
		_, err = run(append([]string{"rm", "-f"}, strings.Fields(ids)...)...)
		took := peers.Milliseconds(time.Since(begin))
		spent += g.CPU() - before
		return took, err
	}}
}

// memoryOfContainers is what processes beside the containers' own take for each container.
func memoryOfContainers(c *contest, _ *row) []peers.Contender {
	d := c.one()
	grown := func(g *peers.Group, socket string) func(int) (float64, error) {
		return func(int) (float64, error) {
			before := g.PSS()
			err := startMany(c, resting, few, socket)
			settle()
			return megabytes(g.PSS()-before) / resting, err
		}
	}
	all := []peers.Contender{{
		Name: d.name, Do: grown(d.group, d.lead.Socket()),
		Undo: func(int) error {
			return removeEach(func(args ...string) (string, error) { return d.run(d.lead, args...) })
		},
	}}
	if p := c.docker(); p != nil {
		all = append(all, peers.Contender{Name: "docker", Do: grown(p.Group, p.Socket()), Undo: func(int) error { return removeEach(p.Run) }})
	}
	return all
}

func megabytes(n int) float64 { return float64(n) / 1e6 }

// settle lets processes end what they do behind an answer.
func settle() { time.Sleep(2 * time.Second) }

func memoryOfHosts(c *contest, _ *row) []peers.Contender {
	d := c.three()
	first, agent := d.hosts[0], c.apart()
	time.Sleep(15 * time.Second) // what a start took is given back by then
	of := func(h *fleet.Host) func(int) (float64, error) {
		return func(int) (total float64, _ error) {
			for _, pid := range h.Pids() {
				total += megabytes(peers.Memory(pid, "Pss:"))
			}
			return total, nil
		}
	}
	all := []peers.Contender{{Name: "drover, agent only", Do: of(agent)}, {Name: "drover, controller too", Do: of(first)}}
	if p := c.docker(); p != nil {
		all = append(all, peers.Contender{Name: "docker", Do: func(int) (float64, error) { return megabytes(p.Group.PSS()), nil }})
	}
	return all
}

func idling(c *contest, _ *row) []peers.Contender {
	rest := peers.Timed(func(int) error { time.Sleep(3 * time.Second); return nil })
	all := []peers.Contender{{Name: c.three().name, CPU: c.three().group.CPU, Do: rest}}
	if p := c.docker(); p != nil {
		all = append(all, peers.Contender{Name: "docker, one host", CPU: p.Group.CPU, Do: rest})
	}
	if s := c.swarm(); s != nil {
		all = append(all, peers.Contender{Name: "Swarm, 3 managers", CPU: s.Group.CPU, Do: rest})
	}
	return all
}

// leaderKilled kills the leader in each round; it is back before the next one.
func leaderKilled(c *contest, _ *row) []peers.Contender {
	d := c.three()
	var killed *fleet.Host
	all := []peers.Contender{{
		Name: d.name, Do: func(round int) (float64, error) {
			killed = c.f.Leader()
			other := d.hosts[0]
			if other == killed {
				other = d.hosts[1]
			}
			killed.Kill("controller", "--data-dir")
			return peers.Timed(func(int) error {
				_, err := d.run(other, "node", "label", d.hosts[0].Name, fmt.Sprintf("round=%d", round))
				return err
			})(round)
		},
		Undo: func(int) error {
			c.f.Eventually(30*time.Second, "the killed controller is back", func() bool {
				return killed.In(nil, "curl", "-sf", "-m1", "--unix-socket", killed.Socket(), "http://x/_ping").Out == "OK"
			})
			d.lead = c.f.Leader()
			return nil
		},
	}}
	s := c.swarm()
	if s == nil {
		return all
	}
	var dead *peers.Docker
	return append(all, peers.Contender{
		Name: "Swarm, 3 managers", Do: func(round int) (float64, error) {
			var other *peers.Docker
			dead, other = s.Leader()
			dead.Kill()
			return peers.Timed(func(int) error {
				for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
					err := other.Write(made(round))
					if err == nil || time.Now().After(end) {
						return err
					}
				}
			})(round)
		},
		Undo: func(int) error { dead.Start(); s.Healthy(); return nil },
	})
}
