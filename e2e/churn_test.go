package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/e2e/fleet"
)

// churn is a fleet whose containers, in three networks, are killed, moved and restarted at
// random, as are agents and nodes. What it does follows from its seed.
type churn struct {
	*fleet.Fleet
	t     *testing.T
	r     *rand.Rand
	boxes []*box
	next  int // of containers' names
	did   []string
}

// box is a container as it should be.
type box struct {
	name     string
	host     *fleet.Host
	networks []string // sorted
	runs     bool
}

var churnNetworks = []string{"red", "blue", "dark"}

const churnBoxes = 6

// TestChurn looks, after each few steps, at whether every name resolves to what runs and to
// nothing else, whether all of it is reached, and whether no node's kernel differs from what
// it should have. CHURN_SEED and CHURN_ROUNDS choose another and a longer run.
func TestChurn(t *testing.T) {
	t.Parallel()
	seed, rounds := numberOf("CHURN_SEED", 1), numberOf("CHURN_ROUNDS", 15)
	c := &churn{Fleet: fleet.New(t, "a", "b", "c"), t: t, r: rand.New(rand.NewPCG(seed, 0))}
	t.Cleanup(func() {
		if t.Failed() || testing.Verbose() {
			t.Logf("CHURN_SEED=%d, and what was done:\n%s", seed, strings.Join(c.did, "\n"))
		}
	})
	c.Quorum()
	c.Hosts[0].Must("pull", "--each", "alpine")
	for _, n := range churnNetworks {
		c.Hosts[0].Must("network", "create", n)
	}
	for range churnBoxes {
		c.make()
	}
	c.settled()
	for done := uint64(0); done < rounds; {
		for range 1 + c.r.IntN(3) {
			c.step()
			done++
		}
		c.settled()
	}
	for _, b := range c.boxes {
		c.must("rm", "-f", b.name)
	}
	for _, n := range churnNetworks {
		c.Eventually(30*time.Second, "network "+n+" can go", func() bool { return c.Hosts[0].Drover("network", "rm", n).Code == 0 })
	}
	c.boxes = nil
	c.settled()
}

func numberOf(name string, otherwise uint64) uint64 {
	if n, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
		return n
	}
	return otherwise
}

func (c *churn) note(format string, args ...any) {
	c.did = append(c.did, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// must runs a command on any host.
func (c *churn) must(args ...string) {
	c.t.Helper()
	h := c.Hosts[c.r.IntN(len(c.Hosts))]
	c.note("%s: %s", h.Name, strings.Join(args, " "))
	h.Must(args...)
}

// some returns one network or more, sorted.
func (c *churn) some() []string {
	var out []string
	for _, i := range c.r.Perm(len(churnNetworks))[:1+c.r.IntN(len(churnNetworks))] {
		out = append(out, churnNetworks[i])
	}
	slices.Sort(out)
	return out
}

func inNetwork(n string) string { return "in-" + n }

// make makes a container in some networks: in the first one from its start.
func (c *churn) make() {
	c.t.Helper()
	c.next++
	b := &box{name: fmt.Sprint("box", c.next), host: c.Hosts[c.r.IntN(len(c.Hosts))], networks: c.some(), runs: true}
	c.boxes = append(c.boxes, b)
	c.start(b)
}

func (c *churn) start(b *box) {
	c.t.Helper()
	// What no network knows is asked outside, where nobody answers: this one refuses at once.
	c.must("run", "-d", "--dns", "127.0.0.1", "--name", b.name, "--on", "node=="+b.host.Name, "--network", b.networks[0], "--network-alias", inNetwork(b.networks[0]), "alpine", "sleep", "1000")
	for _, n := range b.networks[1:] {
		c.must("network", "connect", "--alias", inNetwork(n), n, b.name)
	}
}

// step does one thing.
func (c *churn) step() {
	c.t.Helper()
	b, h := c.boxes[c.r.IntN(len(c.boxes))], c.Hosts[c.r.IntN(len(c.Hosts))]
	switch op := c.r.IntN(12); {
	case op < 2 && b.runs:
		c.must("kill", b.name)
		b.runs = false
	case op < 4 && !b.runs:
		c.must("start", b.name)
		b.runs = true
	case op < 4:
		c.must("restart", "-t", "0", b.name)
	case op == 4: // another one of this name, elsewhere
		c.must("rm", "-f", b.name)
		b.host, b.networks, b.runs = h, c.some(), true
		c.start(b)
	case op == 5: // others begin and end beside it
		c.must("rm", "-f", b.name)
		c.boxes = slices.DeleteFunc(c.boxes, func(x *box) bool { return x == b })
		c.make()
	case op < 8:
		c.rewire(b)
	case op == 8:
		c.note("on %s dies its agent", h.Name)
		h.Kill("agent", "--data-dir")
	case op == 9:
		c.note("on %s dies its resolver", h.Name)
		h.Kill("drover-resolver")
	case op == 10:
		c.note("on %s somebody flushes the firewall", h.Name)
		h.In(nil, "nft", "flush", "ruleset")
	default:
		c.note("all of drover on %s dies, and starts again", h.Name)
		for _, what := range []string{"up", "controller", "agent", "drover-resolver"} {
			h.Kill(what, "--data-dir")
			h.Kill(what)
		}
		h.Start()
		c.Eventually(30*time.Second, h.Name+" answers again", func() bool { return h.Drover("node", "ls").Code == 0 })
	}
}

// rewire connects a container to a network that it is not in, or disconnects it from one.
func (c *churn) rewire(b *box) {
	c.t.Helper()
	n := churnNetworks[c.r.IntN(len(churnNetworks))]
	switch i := slices.Index(b.networks, n); {
	case i < 0:
		c.must("network", "connect", "--alias", inNetwork(n), n, b.name)
		b.networks = append(b.networks, n)
		slices.Sort(b.networks)
	case len(b.networks) > 1:
		c.must("network", "disconnect", n, b.name)
		b.networks = slices.Delete(b.networks, i, i+1)
	}
}

// settled waits until all is as it should be.
func (c *churn) settled() {
	c.t.Helper()
	c.note("now it must settle")
	var wrong []string
	for end := time.Now().Add(30 * time.Second); ; {
		if wrong = c.wrong(); len(wrong) == 0 {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("it does not settle:\n%s", strings.Join(wrong, "\n"))
		}
	}
}

// wrong returns what is not as it should be.
func (c *churn) wrong() (out []string) {
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	h := c.Hosts[c.r.IntN(len(c.Hosts))]
	at := map[string][]string{} // addresses of those that run, by network
	for _, b := range c.boxes {
		r := h.Drover("inspect", "-f", `{{.State.Running}}{{range $n, $e := .NetworkSettings.Networks}},{{$n}}={{$e.IPAddress}}{{end}}`, b.name)
		running, networks, _ := strings.Cut(strings.TrimSpace(r.Out), ",")
		has := map[string]string{}
		for _, f := range strings.Split(networks, ",") {
			n, addr, _ := strings.Cut(f, "=")
			if has[n] = addr; b.runs {
				at[n] = append(at[n], addr)
			}
		}
		if r.Code != 0 || running != fmt.Sprint(b.runs) || !slices.Equal(slices.Sorted(maps.Keys(has)), b.networks) {
			add("%s runs: %v, in %v; want %v, %v (%s)", b.name, running, has, b.runs, b.networks, r.Err)
		}
	}
	for _, all := range at {
		slices.Sort(all)
	}
	for _, b := range c.boxes {
		if b.runs {
			out = append(out, c.wrongIn(h, b, at)...)
		}
	}
	if r := h.Drover("doctor"); r.Code != 0 || strings.Count(r.Out, ": ok\n") != len(c.Hosts) {
		add("doctor on %s: %v", h.Name, r)
	}
	return out
}

// asked looks up names, then reaches for addresses, in one command inside a container.
const asked = `for x; do case $x in
	*[a-z]*) echo "$x $(nslookup $x. 127.0.0.11 2>&1 | awk '/^Name/{n=1} n&&/^Address/{print $NF}' | sort -u | tr '\n' ' ')";;
	*) ping -c1 -W1 $x >/dev/null && echo "$x there" || echo "$x lost";;
	esac; done`

// wrongIn returns what a container that runs does not find as it should, or does not reach.
// at has the addresses of those that run, by network.
func (c *churn) wrongIn(h *fleet.Host, b *box, at map[string][]string) (out []string) {
	want := map[string]string{}
	for _, n := range b.networks {
		want[inNetwork(n)] = strings.Join(at[n], " ")
		for _, addr := range at[n] {
			want[addr] = "there"
		}
	}
	for _, other := range c.boxes {
		if !other.runs {
			want[other.name] = ""
		}
	}
	r := h.Drover(append([]string{"exec", b.name, "/bin/sh", "-c", asked, "asked"}, slices.Sorted(maps.Keys(want))...)...)
	got := map[string]string{}
	for line := range strings.Lines(r.Out) {
		what, answer, _ := strings.Cut(strings.TrimSpace(line), " ")
		got[what] = answer
	}
	for _, what := range slices.Sorted(maps.Keys(want)) {
		if answer, ok := got[what]; !ok || answer != want[what] {
			out = append(out, fmt.Sprintf("for %s, in %v on %s, %s is %q, want %q (%s)", b.name, b.networks, b.host.Name, what, answer, want[what], r.Err))
		}
	}
	return out
}
