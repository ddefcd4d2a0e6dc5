package network

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/network/probe"
)

const (
	answerWithin = 500 * time.Millisecond
	// Nodes that did not answer yet are asked again after firstAgain, and ever less often.
	firstAgain = 250 * time.Millisecond
	lastAgain  = 5 * time.Second
	// Nodes on a link are asked so often, each; of many, less often.
	asksEvery   = 5 * time.Second
	asksPerNode = 50 * time.Millisecond
	// missesAllowed is how many questions in a row a node on a link may leave open.
	missesAllowed = 3
)

// scout finds out by which way other nodes are reached.
type scout struct {
	f    *fabric
	log  *slog.Logger
	ns   netns.NsHandle
	wake chan struct{} // buffers one token
	stop context.CancelFunc
	done sync.WaitGroup
	once sync.Once

	// what follows is the goroutine's own
	ways   map[string]way // by node
	misses map[string]int
	all    time.Time // when all were asked last
}

// newScout starts one in the calling thread's namespace, until Close.
func newScout(f *fabric, log *slog.Logger) (*scout, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background()) //nolint:forbidigo // it ends with Close
	s := &scout{f: f, log: log, ns: ns, wake: make(chan struct{}, 1), stop: stop, ways: f.known(), misses: map[string]int{}}
	s.done.Go(func() { s.run(ctx) })
	return s, nil
}

func (s *scout) Close() (err error) {
	s.once.Do(func() {
		s.stop()
		s.done.Wait()
		err = s.ns.Close()
	})
	return err
}

// again makes it ask at once.
func (s *scout) again() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *scout) run(ctx context.Context) {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	if err := netns.Set(s.ns); err != nil {
		s.log.Error("entering the host's network namespace", "err", err)
		return
	}
	pause := firstAgain
	for ctx.Err() == nil {
		open, known := s.ask(ctx, time.Now())
		if err := s.f.setWays(s.ways); err != nil && ctx.Err() == nil {
			s.log.Error("routes to other nodes can't be changed", "err", err)
		}
		next := every(known)
		if open {
			next, pause = min(next, pause), min(2*pause, lastAgain)
		} else {
			pause = firstAgain
		}
		select {
		case <-ctx.Done():
		case <-time.After(next):
		case <-s.wake:
			pause = firstAgain
		}
	}
}

// every is how often so many nodes are asked.
func every(nodes int) time.Duration { return max(asksEvery, time.Duration(nodes)*asksPerNode) }

// ask asks nodes that may be on a link: all of them now and then, else those of which it
// is open. It reports whether it is of any, and how many there are.
func (s *scout) ask(ctx context.Context, now time.Time) (open bool, known int) {
	may := s.f.neighbours()
	known = len(may)
	for id := range s.ways {
		if t, ok := may[id]; !ok || t.Link != s.ways[id].dev {
			delete(s.ways, id)
			delete(s.misses, id)
		}
	}
	if now.Sub(s.all) < every(known) {
		maps.DeleteFunc(may, func(id string, _ probe.Target) bool { return s.ways[id].proven && s.misses[id] == 0 })
	} else {
		s.all = now
	}
	var targets []probe.Target
	for _, t := range may {
		targets = append(targets, t)
		if err := s.loosen(t.Link); err != nil {
			s.log.Warn("nodes on a link may be reached through the tunnel only", "link", t.Link, "err", err)
		}
	}
	if len(targets) == 0 {
		return false, known
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	answers, err := probe.Ask(ctx, targets)
	if err != nil {
		s.log.Debug("nodes on a link are not found", "err", err)
	}
	for id, t := range may {
		a, ok := answers[t]
		s.heard(id, t.Link, a, ok)
		open = open || !s.ways[id].proven || s.misses[id] > 0
	}
	return open, known
}

// loosen lets packets of other nodes' containers in by a link while ours still take
// another way to them. Whose they may be is checked by hardware address.
func (s *scout) loosen(link string) error {
	strict := false
	for _, conf := range []string{"all", link} {
		b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + conf + "/rp_filter")
		if err != nil {
			return err
		}
		switch strings.TrimSpace(string(b)) {
		case "1":
			strict = true
		case "2":
			return nil
		}
	}
	if !strict {
		return nil
	}
	s.log.Info("the link to other nodes takes packets from sources that are reached by other links (rp_filter 2)", "link", link)
	return sysctl("ipv4/conf/"+link+"/rp_filter", "2")
}

// heard takes in whether a node answered. Its packets are taken from the link from then
// on; ours are sent there once it takes them.
func (s *scout) heard(id, link string, a probe.Answer, ok bool) {
	was, known := s.ways[id]
	switch {
	case ok && a.Takes:
		s.ways[id] = way{dev: link, mac: a.MAC, proven: true}
		delete(s.misses, id)
	case ok && !was.proven:
		s.ways[id] = way{dev: link, mac: a.MAC}
	case known:
		if s.misses[id]++; s.misses[id] >= missesAllowed {
			delete(s.ways, id)
			delete(s.misses, id)
		}
	}
}

// neighbours returns the nodes that may be on a link of this host, for their addresses
// are.
func (f *fabric) neighbours() map[string]probe.Target {
	f.mu.Lock()
	peers, self := f.t.Peers, f.t.Self
	f.mu.Unlock()
	out := map[string]probe.Target{}
	links := map[int]string{}
	for _, p := range peers {
		to := p.Addr.Unmap()
		if p.ID == self || !to.Is4() {
			continue
		}
		rs, err := netlink.RouteGet(to.AsSlice())
		if err != nil || len(rs) == 0 || rs[0].Gw != nil || rs[0].Type != unix.RTN_UNICAST {
			continue
		}
		source, ok := netip.AddrFromSlice(rs[0].Src)
		if _, seen := links[rs[0].LinkIndex]; !seen {
			links[rs[0].LinkIndex] = ethernet(rs[0].LinkIndex)
		}
		if name := links[rs[0].LinkIndex]; ok && name != "" && name != f.o.Tunnel {
			out[p.ID] = probe.Target{Link: name, Source: source.Unmap(), Addr: to, Behind: p.Subnet.Addr().Next(), Inside: f.o.Subnet.Addr().Next()}
		}
	}
	return out
}

// ethernet returns the name of a link that is one, else "".
func ethernet(index int) string {
	l, err := netlink.LinkByIndex(index)
	if err != nil || l.Attrs().EncapType != "ether" {
		return ""
	}
	return l.Attrs().Name
}

// known returns the ways as they are.
func (f *fabric) known() map[string]way {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.ways)
}
