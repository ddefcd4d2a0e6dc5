package network

import (
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// nft runs a script in the test thread's namespace and returns its output.
func nft(t testing.TB, script string) string {
	t.Helper()
	c := exec.Command("nft", "-f", "-")
	c.Stdin = strings.NewReader(script)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("nft: %v\n%s\n%s", err, script, out)
	}
	return string(out)
}

func (w *world) ruleset() string { return nft(w.t, "list ruleset\n") }

// foreign is the ruleset without our tables.
func (w *world) foreign() string {
	all := w.ruleset()
	for _, ours := range []string{"table inet drover_", "table bridge drover_"} {
		if i := strings.Index(all, ours); i >= 0 {
			all = all[:i] + all[i+strings.Index(all[i:], "\n}\n")+3:]
		}
	}
	return all
}

// reached waits until the published port answers with the attachment's id.
func (w *world) reached(what string, a *Sandbox, addr string) {
	w.t.Helper()
	var err error
	var got string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if got, err = w.askWithin(100*time.Millisecond, w.nbr, "tcp", addr); got == a.ID {
			return
		}
	}
	w.t.Fatalf("%s: %s answers %q, %v\n%s", what, addr, got, err, w.ruleset())
}

// becomes waits until the ruleset is as it should be.
func (w *world) becomes(what string, as func() bool) {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); !as(); {
		if time.Now().After(end) {
			w.t.Fatalf("%s:\n%s", what, w.ruleset())
		}
	}
}

func TestAFlushedRulesetIsMadeAgain(t *testing.T) {
	w := newWorld(t)
	a, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 8080 80", hostIP+" tcp 8081 80", " udp 8080 80")))
	must(t, err)
	w.answer(a, 80)
	before := w.ruleset()
	for what, script := range map[string]string{
		"nft flush ruleset":           "flush ruleset\n",
		"the table deleted":           "delete table inet drover_drv0\n",
		"the table's rules flushed":   "flush table inet drover_drv0\n",
		"a chain flushed":             "flush chain inet drover_drv0 prerouting\n",
		"reload as Debian's nftables": "flush ruleset\ntable inet filter { chain forward { type filter hook forward priority filter; }\n}\n",
	} {
		nft(t, script)
		w.reached(what, a, hostIP+":8080")
		w.reached(what, a, hostIP+":8081")
		if got, err := w.ask(w.nbr, "udp", hostIP+":8080"); got != a.ID {
			t.Errorf("%s: over udp %q, %v", what, got, err)
		}
		nft(t, "table inet filter\ndelete table inet filter\n")
	}
	nft(t, "flush ruleset\n")
	w.becomes("the ruleset is another one than before", func() bool { return sorted(w.ruleset()) == sorted(before) })
}

// sorted makes rulesets comparable: rules for tcp and udp come in any order.
func sorted(ruleset string) string {
	lines := strings.Split(ruleset, "\n")
	for i, l := range lines {
		if f := strings.Fields(l); len(f) > 0 && strings.HasPrefix(l, "\t\telements") {
			lines[i] = strings.Join(f, " ")
		}
	}
	slices.Sort(lines)
	return uncounted(strings.Join(lines, "\n"))
}

var counts = regexp.MustCompile(`packets \d+ bytes \d+`)

func uncounted(ruleset string) string { return counts.ReplaceAllString(ruleset, "") }

// Starts and ends don't wait for the event of what took the table away.
func TestContainersStartAndEndRightAfterAFlush(t *testing.T) {
	w := newWorld(t)
	must(t, w.n.fire.Close()) // no event comes
	a, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 8080 80")))
	must(t, err)
	w.answer(a, 80)
	nft(t, "flush ruleset\n")
	b, err := w.n.Attach(t.Context(), name(2), on(publish(" tcp 8082 80")))
	must(t, err)
	w.answer(b, 80)
	for addr, want := range map[string]*Sandbox{hostIP + ":8080": a, hostIP + ":8082": b} {
		if got, err := w.ask(w.nbr, "tcp", addr); got != want.ID {
			t.Errorf("%s answers %q, %v", addr, got, err)
		}
	}
	nft(t, "flush ruleset\n")
	must(t, w.n.Detach(t.Context(), a.ID))
	if got, err := w.ask(w.nbr, "tcp", hostIP+":8082"); got != b.ID {
		t.Errorf("the other one answers %q, %v", got, err)
	}
	if got, err := w.ask(w.nbr, "tcp", hostIP+":8080"); err == nil {
		t.Errorf("what ended answers %q", got)
	}
}

func TestATableAsItShouldBeIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	_, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 8080 80", "127.0.0.1 udp 8081 81")))
	must(t, err)
	changed, err := w.n.nft.reconcile(false)
	if err != nil || changed {
		t.Fatalf("changed %v, %v", changed, err)
	}
}

// Firewalls that drop what is forwarded, unless a rule of theirs lets it through.
var droppers = map[string]string{
	"FORWARD DROP":           "table ip filter {\n chain FORWARD { type filter hook forward priority filter; policy drop; counter; }\n}\n",
	"inet policy drop":       "table inet fw {\n chain forward { type filter hook forward priority filter + 10; policy drop; ct state invalid drop; }\n}\n",
	"ip, last rule rejects":  "table ip filter {\n chain FORWARD { type filter hook forward priority filter; policy accept; iifname \"lo\" accept; counter reject with icmp type host-prohibited; }\n}\n",
	"as firewalld":           "table inet firewalld {\n chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept; ct state { established, related } accept; iifname \"lo\" accept; jump zones; reject with icmpx type admin-prohibited; }\n chain zones { iifname \"none\" goto zones2; }\n chain zones2 { }\n}\n",
	"as ufw":                 "table ip filter {\n chain FORWARD { type filter hook forward priority filter; policy drop; jump before; jump last; }\n chain before { ct state related,established accept; }\n chain last { }\n}\n",
	"a chain that drops all": "table ip filter {\n chain FORWARD { type filter hook forward priority filter; jump last; }\n chain last { log; drop; }\n}\n",
	"behind docker's":        "table ip filter {\n chain FORWARD { type filter hook forward priority filter; policy drop; counter jump DOCKER-USER; }\n chain DOCKER-USER { ip saddr 192.0.2.1 drop; }\n}\n",
}

func TestForeignForwardDropsDoNotCutContainersOff(t *testing.T) {
	for what, script := range droppers {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			a, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 8080 80")))
			must(t, err)
			w.answer(a, 80)
			nft(t, script)
			w.reached("while drover runs", a, hostIP+":8080")
			if _, err := w.ask(w.ns(a), "tcp", nbrIP+":9"); err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("a container to the outside: %v", err)
			}
			must(t, w.n.Close())
			again := w.ruleset()
			w.open()
			w.reached("after a restart", a, hostIP+":8080")
			if n := strings.Count(w.foreign(), "drover:"); n != 2 {
				t.Errorf("%d rules of drover's in the chains of others\nat first\n%s\nnow\n%s", n, again, w.foreign())
			}
			must(t, w.n.Destroy(t.Context()))
			left := w.foreign()
			nft(t, "flush ruleset\n"+script)
			if fresh := w.foreign(); uncounted(left) != uncounted(fresh) {
				t.Errorf("left of the firewall:\n%s\nwas\n%s", left, fresh)
			}
		})
	}
}

func TestAdministratorsRulesForContainersStayFirst(t *testing.T) {
	w := newWorld(t)
	a, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 8080 80")))
	must(t, err)
	w.answer(a, 80)
	nft(t, droppers["behind docker's"])
	w.reached("while drover runs", a, hostIP+":8080")
	nft(t, "add rule ip filter DOCKER-USER ip saddr "+nbrIP+" drop\n")
	if got, err := w.ask(w.nbr, "tcp", hostIP+":8080"); err == nil {
		t.Errorf("dropped in DOCKER-USER, and yet: %q\n%s", got, w.ruleset())
	}
}

// Rules of the builds before are replaced: they stood in front of the administrator's,
// and in chains that dropped only then.
func TestRulesOfEarlierBuildsGo(t *testing.T) {
	w := newWorld(t)
	must(t, w.n.Close())
	nft(t, droppers["behind docker's"]+"table ip open {\n chain f { type filter hook forward priority 0; }\n}\n")
	c, err := nftables.New()
	must(t, err)
	for table, chain := range map[string]string{"filter": "FORWARD", "open": "f"} {
		in := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: table}
		for range 2 {
			c.InsertRule(&nftables.Rule{Table: in, Chain: &nftables.Chain{Name: chain, Table: in}, UserData: []byte("drover:drv0"),
				Exprs: all(is(outLink, ifname("drv0")), accept())})
		}
	}
	must(t, c.Flush())
	if n := strings.Count(w.foreign(), "drv0"); n != 4 {
		t.Fatalf("%d rules:\n%s", n, w.foreign())
	}
	w.open()
	all := w.foreign()
	if strings.Count(all, "drv0") != 4 || strings.Count(all, "drover:") != 2 || strings.Index(all, "DOCKER-USER") > strings.Index(all, "drover:") {
		t.Errorf("drover's rules are not two, with a comment each, behind the administrator's:\n%s", all)
	}
	must(t, w.n.Destroy(t.Context()))
	if all := w.foreign(); strings.Contains(all, "drv0") {
		t.Errorf("drover's rules stay:\n%s", all)
	}
}

// A chain that doesn't drop everything, or no longer does, is left alone.
func TestOtherChainsAreLeftAlone(t *testing.T) {
	w := newWorld(t)
	nft(t, droppers["FORWARD DROP"])
	w.becomes("no rules in the chain that drops", func() bool { return strings.Contains(w.foreign(), "drover:") })
	nft(t, "add chain ip filter FORWARD { policy accept; }\n")
	w.becomes("rules stay in a chain that accepts", func() bool { return !strings.Contains(w.foreign(), "drover:") })
	quiet := `table inet a {
 chain f { type filter hook forward priority 0; ip saddr 192.0.2.0/24 drop; limit rate 1/second drop; accept; drop; }
 chain i { type filter hook input priority 0; policy drop; }
 chain u { drop; }
}
table ip6 b {
 chain f { type filter hook forward priority 0; policy drop; }
}
`
	nft(t, "delete table ip filter\n"+quiet)
	nft(t, droppers["inet policy drop"]) // this one shows when the others were seen
	w.becomes("no rules in the chain that drops", func() bool { return strings.Contains(w.foreign(), "drover:") })
	if n := strings.Count(w.foreign(), "drover:"); n != 2 {
		t.Errorf("drover's rules are in other chains as well:\n%s", w.foreign())
	}
}

// A table can belong to a process, as newer firewalld's does. Ours works on.
func TestATableThatTakesNoRulesDoesNotHinderOurs(t *testing.T) {
	w := newWorld(t)
	owner := exec.Command("nft", "-i")
	in, err := owner.StdinPipe()
	must(t, err)
	must(t, owner.Start())
	defer func() { _ = in.Close(); _ = owner.Wait() }()
	_, err = in.Write([]byte("add table inet owned { flags owner; }\nadd chain inet owned f { type filter hook forward priority 0; policy drop; }\n"))
	must(t, err)
	w.becomes("the owner's table is missing", func() bool { return strings.Contains(w.ruleset(), "policy drop") })
	nft(t, "delete table inet drover_drv0\n")
	w.becomes("drover's table is missing", func() bool { return strings.Contains(w.ruleset(), "table inet drover_drv0") })
	if changed, err := w.n.nft.reconcile(false); changed || err != nil {
		t.Errorf("what is refused counts as a change: %v, %v", changed, err)
	}
	if _, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 8080 80"))); err != nil {
		t.Error(err)
	}
}

// setForwarding sets whether the host forwards packets.
func setForwarding(t *testing.T, v string) {
	t.Helper()
	must(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte(v), 0))
}

// A host that forwards because of drover only is nobody's router.
func TestAHostThatDidNotForwardIsNobodysRouter(t *testing.T) {
	for before, want := range map[string]bool{"0": false, "1": true} {
		w := newWorld(t)
		must(t, w.n.Destroy(t.Context()))
		must(t, w.n.Close())
		setForwarding(t, before)
		far, err := netns.New() // a network behind the host
		must(t, err)
		defer far.Close()
		must(t, netns.Set(w.host))
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "far0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(far)}))
		up := func(ns netns.NsHandle, dev, cidr, via string) {
			h, err := netlink.NewHandleAt(ns)
			must(t, err)
			defer h.Close()
			l, err := h.LinkByName(dev)
			must(t, err)
			if addr, err := netlink.ParseAddr(cidr); err == nil {
				must(t, h.AddrAdd(l, addr))
			}
			must(t, h.LinkSetUp(l))
			if gw := net.ParseIP(via); gw != nil {
				must(t, h.RouteAdd(&netlink.Route{Gw: gw.To4()}))
			}
		}
		up(w.host, "far0", "10.98.0.1/24", "")
		up(far, "eth0", "10.98.0.2/24", "10.98.0.1")
		up(w.nbr, "eth0", "", hostIP)
		w.open()
		a, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 8080 80")))
		must(t, err)
		w.answer(a, 80)
		routed := func(when string) {
			t.Helper()
			_, err := w.askWithin(300*time.Millisecond, w.nbr, "tcp", "10.98.0.2:9")
			if got := err != nil && strings.Contains(err.Error(), "refused"); got != want {
				t.Errorf("ip_forward=%s, %s: routed %v, want %v: %v", before, when, got, want, err)
			}
			w.reached(when, a, hostIP+":8080")
			if _, err := w.ask(w.ns(a), "tcp", "10.98.0.2:9"); err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("ip_forward=%s, %s: a container to the outside: %v", before, when, err)
			}
		}
		routed("at first")
		must(t, w.n.Close())
		w.open()
		routed("after a restart")
		nft(t, "flush ruleset\n")
		w.becomes("drover's table is missing", func() bool { return strings.Contains(w.ruleset(), "table inet drover_drv0") })
		routed("after a flush")
		if !want {
			nft(t, "add chain ip filter FORWARD { policy accept; }\n")
			want = true
			routed("with the administrator's policy")
			must(t, w.n.Close())
			w.open()
			routed("with the administrator's policy, after a restart")
		}
	}
}

// A chain of that name can be anything.
func TestAForwardChainOfNoHookKeepsNoNodeFromWorking(t *testing.T) {
	w := newWorld(t)
	must(t, w.n.Close())
	setForwarding(t, "0")
	nft(t, "table ip filter {\n chain FORWARD { accept; }\n}\n")
	w.open()
	a, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 8080 80")))
	must(t, err)
	w.answer(a, 80)
	w.reached("with such a chain", a, hostIP+":8080")
}

// The host routes for containers, not from the neighbours to them.
func TestWhatIsNotPublishedIsNotReachedFromOutside(t *testing.T) {
	w := newWorld(t)
	a, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 8080 80", "127.0.0.1 tcp 8081 81")))
	must(t, err)
	w.answer(a, 80)
	w.answer(a, 81)
	h, err := netlink.NewHandleAt(w.nbr)
	must(t, err)
	defer h.Close()
	must(t, h.RouteAdd(&netlink.Route{Dst: ipNet(w.o.Subnet.Addr(), w.o.Subnet.Bits()), Gw: []byte{10, 99, 0, 1}}))
	for _, port := range []string{"80", "81"} {
		if got, err := w.ask(w.nbr, "tcp", ip(a).String()+":"+port); err == nil {
			t.Errorf("port %s by the container's own address answers %q", port, got)
		}
	}
	for _, proto := range []string{"tcp", "udp"} {
		if got, err := w.ask(w.host, proto, ip(a).String()+":81"); got != a.ID {
			t.Errorf("from the host itself over %s: %q, %v", proto, got, err)
		}
	}
	w.reached("published", a, hostIP+":8080")
}

func TestIptablesLegacyIsNamed(t *testing.T) {
	for tables, want := range map[string]bool{"": false, "nat\nfilter\n": true, "nat\n": false} {
		file := filepath.Join(t.TempDir(), "names")
		must(t, os.WriteFile(file, []byte(tables), 0o600))
		var b strings.Builder
		warnOfLegacy(slog.New(slog.NewTextHandler(&b, nil)), file, "drv0")
		if got := strings.Contains(b.String(), "iptables-legacy"); got != want {
			t.Errorf("with %q: %s", tables, &b)
		}
	}
}
