package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/drover/drover/e2e/fleet"
	"github.com/drover/drover/e2e/peers"
	"github.com/drover/drover/pkg/identity"
)

// Sizes of rows.
const (
	burst   = 100 // starts on one host
	spread  = 60  // starts over three hosts
	removed = 200
	resting = 20 // containers whose memory is measured
	few     = 8  // starts at a time where they are not measured
)

// contest is what rows measure. Each contender starts when a row first asks for it.
type contest struct {
	b      *testing.B
	f      *fleet.Fleet
	three  func() *droverSide
	apart  func() *fleet.Host // an agent of three's, on no link with the others
	one    func() *droverSide
	docker func() *peers.Docker // nil: not on this machine
	ctr    func() *peers.Ctr    // nil likewise
	swarm  func() *peers.Swarm  // nil likewise
}

// row is a comparison that can be run alone.
type row struct {
	peers.Row
	slow    bool // a tenth of the rounds, and no warm-up
	contend func(c *contest, r *row) []peers.Contender
}

// BenchmarkPeers prints what drover costs beside ctr, Docker Engine and Swarm, as one table.
// BENCH is a regular expression of the rows to measure, N the number of rounds.
func BenchmarkPeers(b *testing.B) {
	only, err := regexp.Compile("(?i)" + os.Getenv("BENCH"))
	if err != nil {
		b.Fatal(err)
	}
	rounds := 30
	if n := os.Getenv("N"); n != "" {
		if rounds, err = strconv.Atoi(n); err != nil || rounds < 1 {
			b.Fatalf("N=%s is no number of rounds", n)
		}
	}
	c := newContest(b)
	fmt.Println(machine())
	peers.Heading(os.Stdout)
	for _, r := range rows {
		if !only.MatchString(r.Name) {
			continue
		}
		all := r.contend(c, &r)
		warmUp, n := 1, rounds
		if r.slow {
			warmUp, n = 0, max(1, rounds/10)
		}
		measured, err := peers.Measure(r.Row, warmUp, n, all)
		if err != nil {
			b.Errorf("%v", err) // the other sides and rows are still worth it
		}
		measured.Write(os.Stdout)
	}
}

// newContest returns a contest with hosts, on which nothing runs yet.
func newContest(b *testing.B) *contest {
	c := &contest{b: b}
	rules := firewall()
	b.Cleanup(func() {
		if c.f == nil {
			return
		}
		if left := c.f.Left(); len(left) > 0 {
			b.Errorf("left on this machine: %q", left)
		}
		if now := firewall(); now > rules {
			b.Errorf("docker has %d lines in this machine's firewall, and had %d", now, rules)
		}
	})
	// These groups are removed after the fleet, which ends the processes in them.
	three, one := peers.NewGroup(b, "three"), peers.NewGroup(b, "one")
	c.f = fleet.New(b, "a", "b", "c", "d", "s", "p", "q", "r")
	lone := c.f.Hosts[4]
	c.three = once(func() *droverSide {
		d := c.drover("drover, 3 controllers", three, c.f.Hosts[:3])
		for _, h := range d.hosts[1:] {
			h.Join(d.hosts[0], d.hosts[0].Must("token", "create", "-q", "--role", "controller"))
			d.account(h)
		}
		c.f.Voters(3)
		d.hosts[0].Must("pull", "-q", "--each", "busybox")
		d.lead = c.f.Leader()
		return d
	})
	c.one = once(func() *droverSide {
		d := c.drover("drover, one host", one, []*fleet.Host{lone})
		d.lead.Must("pull", "-q", "busybox")
		return d
	})
	c.apart = once(func() *fleet.Host { return c.joinApart(c.f.Hosts[3]) })
	c.docker = peer(b, func() (*peers.Docker, error) { return peers.StartDocker(b, c.f, lone, peers.NewGroup(b, "docker")) })
	c.ctr = peer(b, func() (*peers.Ctr, error) { return peers.StartCtr(b, c.f, lone, peers.NewGroup(b, "ctr")) })
	c.swarm = peer(b, func() (*peers.Swarm, error) {
		return peers.StartSwarm(b, c.f, c.f.Hosts[5:], peers.NewGroup(b, "swarm"))
	})
	return c
}

// firewall counts docker's chains and rules outside of namespaces.
func firewall() int {
	out, _ := exec.Command("nft", "list", "ruleset").Output()
	return strings.Count(string(out), "DOCKER")
}

func once[T any](start func() T) func() T {
	var v T
	started := false
	return func() T {
		if !started {
			v, started = start(), true
		}
		return v
	}
}

// peer is once for what may be missing on this machine: it is nil then.
func peer[T any](b *testing.B, start func() (*T, error)) func() *T {
	return once(func() *T {
		v, err := start()
		if err != nil {
			fmt.Println("not compared:", err)
			return nil
		}
		return v
	})
}

// machine says what the numbers were measured on.
func machine() string {
	out := func(name string, args ...string) string {
		b, err := exec.Command(name, args...).Output()
		if err != nil {
			return name + " missing"
		}
		first, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
		return first
	}
	load, _ := os.ReadFile("/proc/loadavg")
	return strings.Join([]string{"kernel " + out("uname", "-r"), out("nproc") + " processors", "load " + strings.Join(strings.Fields(string(load))[:1], ""),
		out("dockerd", "--version"), out("ctr", "--version"), out("runc", "--version")}, "; ")
}

// droverSide is drover on some hosts, as a contender.
type droverSide struct {
	name  string
	hosts []*fleet.Host
	lead  *fleet.Host
	group *peers.Group
	c     *contest
}

func (c *contest) drover(name string, g *peers.Group, hosts []*fleet.Host) *droverSide {
	d := &droverSide{name: name, hosts: hosts, lead: hosts[0], group: g, c: c}
	hosts[0].Up()
	d.account(hosts[0])
	return d
}

// account makes a host's processes and containers count.
func (d *droverSide) account(h *fleet.Host) {
	d.c.b.Helper()
	d.group.Adopt(h.Pids())
	d.group.Adopt(h.Pids()) // what they started meanwhile
	id, err := identity.Load(h.Dir + "/data")
	if err != nil {
		d.c.b.Fatal(err)
	}
	d.group.Include(d.c.b, "drover/"+id.Node)
}

// run runs drover against a host.
func (d *droverSide) run(h *fleet.Host, args ...string) (string, error) {
	return d.group.Run(d.command(h, args...))
}

func (d *droverSide) command(h *fleet.Host, args ...string) *exec.Cmd {
	c := exec.Command(filepath.Join(d.c.f.Bin, "drover"), args...)
	c.Env = h.Env()
	return c
}

// does is a contender whose command is drover's.
func (d *droverSide) does(args ...string) peers.Contender {
	return peers.Contender{Name: d.name, CPU: d.group.CPU, Do: peers.Timed(func(int) error {
		_, err := d.run(d.lead, args...)
		return err
	})}
}

func (d *droverSide) remove(round int) error {
	_, err := d.run(d.lead, "rm", "-f", made(round))
	return err
}

// made is the name of what a round makes.
func made(round int) string { return "made" + strconv.Itoa(round) }

// removeEach removes all containers of an engine, with its own command.
func removeEach(run func(args ...string) (string, error)) error {
	ids, err := run("ps", "-aq")
	for some := range slices.Chunk(strings.Fields(ids), 20) { // docker 20.10 may hang in a hundred
		_, e := run(append([]string{"rm", "-f"}, some...)...)
		err = errors.Join(err, e)
	}
	return err
}

// startMany starts n containers through docker's API, spread over sockets, most at once.
// Its client is this process, whose CPU time counts for nobody.
func startMany(c *contest, n, most int, sockets ...string) error {
	var all errgroup.Group
	all.SetLimit(most)
	for i := range n {
		all.Go(func() error {
			api, err := peers.API(sockets[i%len(sockets)])
			if err != nil {
				return err
			}
			defer func() { _ = api.Close() }()
			return peers.StartBusybox(c.b.Context(), api)
		})
	}
	return all.Wait()
}
