package topology

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

func id(c byte) []byte { return bytes.Repeat([]byte{c}, idLength) }

// node is a Topology in its store.
type node struct {
	*Topology
	t    *testing.T
	db   *bbolt.DB
	seen []string // what was watched
}

func newNode(t *testing.T) *node {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "db"), 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	n := &node{t: t, db: db}
	n.reopen()
	return n
}

func (n *node) reopen() {
	n.t.Helper()
	var err error
	if n.Topology, err = Open(n.db); err != nil {
		n.t.Fatal(err)
	}
	n.Watch(func(c Change) {
		for _, g := range c.Gone {
			n.seen = append(n.seen, "gone "+g[:2])
		}
		for _, x := range c.Networks {
			n.seen = append(n.seen, "network "+x.Name)
		}
		for _, x := range c.Names {
			n.seen = append(n.seen, fmt.Sprint("name ", strings.Join(x.Names, " "), x.Ip, x.Gone))
		}
	})
}

// take takes a sync in parts.
func (n *node) take(full bool, parts ...*dv1.Topology) {
	n.t.Helper()
	named := map[string]bool{}
	for i, y := range parts {
		p, err := Parse(y)
		if err != nil {
			n.t.Fatal(err)
		}
		p.Name(named)
		if full && i == len(parts)-1 {
			p.Sweep(n.Topology, named)
		}
		if err := n.db.Update(p.Store); err != nil {
			n.t.Fatal(err)
		}
		n.Apply(p)
	}
}

// text is all that there is, also as it is read again.
func (n *node) text() string {
	n.t.Helper()
	of := func(t *Topology) string {
		var all []string
		for _, p := range t.peers {
			all = append(all, "peer "+p.NodeId+" "+p.Addr)
		}
		for _, d := range t.doors {
			all = append(all, fmt.Sprint("door ", d.Proto, " ", d.Port, " ", d.NodeId))
		}
		for _, w := range t.networks {
			all = append(all, "network "+w.Name)
			for _, s := range w.slices {
				all = append(all, fmt.Sprint(w.Name, ": slice ", s.NodeId, " ", s.Prefixes))
			}
			for _, x := range w.names {
				all = append(all, fmt.Sprint(w.Name, ": ", x.Names, " ", x.Ip, " ", x.Running, " ", w.alone[string(x.TaskId)] != nil))
			}
		}
		slices.Sort(all)
		return strings.Join(all, "\n")
	}
	stored, err := Open(n.db)
	if err != nil {
		n.t.Fatal(err)
	}
	if of(stored) != of(n.Topology) {
		n.t.Errorf("stored is\n%s\nin memory is\n%s", of(stored), of(n.Topology))
	}
	return of(n.Topology)
}

func (n *node) expect(why string, lines ...string) {
	n.t.Helper()
	slices.Sort(lines)
	if got, want := n.text(), strings.Join(lines, "\n"); got != want {
		n.t.Errorf("%s:\n%s\nwant\n%s", why, got, want)
	}
}

func name(network, task byte, ip string, running bool, names ...string) *dv1.Name {
	return &dv1.Name{NetworkId: id(network), TaskId: id(task), NodeId: "n2", Ip: ip, Names: names, Running: running}
}

func example() *dv1.Topology {
	return &dv1.Topology{
		Peers:    []*dv1.Peer{{NodeId: "n1", Addr: "10.9.0.1:7444"}, {NodeId: "n2", Addr: "10.9.0.2:7444"}},
		Networks: []*dv1.Network{{Id: id('r'), Name: "red"}, {Id: id('b'), Name: "blue"}},
		Slices:   []*dv1.Slice{{NetworkId: id('r'), NodeId: "n1", Prefixes: []string{"10.0.0.0/26"}}, {NetworkId: id('b'), NodeId: "n2", Prefixes: []string{"10.1.0.0/26"}}},
		Names:    []*dv1.Name{name('r', '1', "10.0.0.1", true, "web"), name('b', '1', "10.1.0.1", false, "web"), name('b', '2', "10.1.0.2", true, "db")},
	}
}

func TestChangesAreStored(t *testing.T) {
	n := newNode(t)
	n.take(true, example())
	n.expect("a full sync", "peer n1 10.9.0.1:7444", "peer n2 10.9.0.2:7444", "network red", "network blue", "red: slice n1 [10.0.0.0/26]",
		"blue: slice n2 [10.1.0.0/26]", "red: [web] 10.0.0.1 true false", "blue: [web] 10.1.0.1 false false", "blue: [db] 10.1.0.2 true false")
	n.reopen()
	n.seen = nil
	asked := name('r', '3', "10.0.0.99", true, "cache")
	asked.Asked = true
	n.take(false, &dv1.Topology{
		PeersGone: []string{"n2"}, Peers: []*dv1.Peer{{NodeId: "n1", Addr: "10.9.0.7:7444"}},
		NetworksGone: [][]byte{id('b'), id('x')},
		Slices:       []*dv1.Slice{{NetworkId: id('r'), NodeId: "n1"}, {NetworkId: id('r'), NodeId: "n3", Prefixes: []string{"10.0.0.64/26"}}},
		Names:        []*dv1.Name{{NetworkId: id('r'), TaskId: id('1'), Gone: true}, asked},
	})
	n.expect("changes", "peer n1 10.9.0.7:7444", "network red", "red: slice n3 [10.0.0.64/26]", "red: [cache] 10.0.0.99 true true")
	if want := []string{"gone 62", "name true", "name cache10.0.0.99false"}; !slices.Equal(n.seen, want) {
		t.Errorf("seen were %q, want %q", n.seen, want)
	}
	// A network that comes back has nothing of what it had.
	n.take(false, &dv1.Topology{Networks: []*dv1.Network{{Id: id('b'), Name: "blue"}}})
	n.expect("the network again", "peer n1 10.9.0.7:7444", "network red", "network blue", "red: slice n3 [10.0.0.64/26]", "red: [cache] 10.0.0.99 true true")
}

func TestAFullSyncReplacesAll(t *testing.T) {
	n := newNode(t)
	n.take(true, example())
	n.take(true, &dv1.Topology{Networks: []*dv1.Network{{Id: id('r'), Name: "renamed"}}, Peers: []*dv1.Peer{{NodeId: "n1", Addr: "10.9.0.1:7444"}}},
		nil, &dv1.Topology{Names: []*dv1.Name{name('r', '2', "10.0.0.2", true, "next")}})
	n.expect("a full sync in parts", "peer n1 10.9.0.1:7444", "network renamed", "renamed: [next] 10.0.0.2 true false")
	n.take(true, nil)
	n.expect("a full sync of nothing", "")
}

// A full sync of what is known already, as after each election, costs neither a write nor
// the resolver's work.
func TestWhatIsKnownIsNotToldAgain(t *testing.T) {
	n := newNode(t)
	told := func() *dv1.Topology {
		y := example()
		y.Networks[0].Options = map[string]string{"a": "1", "b": "2", "c": "3", "d": "4", "e": "5"}
		return y
	}
	n.take(true, told())
	n.seen = nil
	p, err := Parse(told())
	if err != nil {
		t.Fatal(err)
	}
	err = n.db.Update(func(tx *bbolt.Tx) error {
		err := p.Store(tx)
		if s := tx.Stats(); s.GetNodeCount() > 0 {
			t.Errorf("the store changes %d of its nodes", s.GetNodeCount())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	n.Apply(p)
	y := told()
	y.Names[0].Running = false
	n.take(true, y)
	if want := []string{"name web10.0.0.1false"}; !slices.Equal(n.seen, want) {
		t.Errorf("seen were %q, want %q", n.seen, want)
	}
	n.expect("in the end", "peer n1 10.9.0.1:7444", "peer n2 10.9.0.2:7444", "network red", "network blue", "red: slice n1 [10.0.0.0/26]",
		"blue: slice n2 [10.1.0.0/26]", "red: [web] 10.0.0.1 false false", "blue: [web] 10.1.0.1 false false", "blue: [db] 10.1.0.2 true false")
}

// A node must start with what can be read, and is told the rest anew.
func TestWhatCantBeReadIsDropped(t *testing.T) {
	n := newNode(t)
	n.take(true, example())
	err := n.db.Update(func(tx *bbolt.Tx) error {
		return errors.Join(
			tx.Bucket(bNetworks).Put(id('b'), []byte{0xff}),
			tx.Bucket(bNetworks).Put([]byte("x"), nil),
			tx.Bucket(bPeers).Put([]byte("n2"), []byte{0xff}),
			tx.Bucket(bSlices).Put(id('r'), nil),
			tx.Bucket(bNames).Put([]byte("short"), nil))
	})
	if err != nil {
		t.Fatal(err)
	}
	n.reopen()
	if _, _, _, err := n.Fabric("n1"); err == nil || strings.Count(err.Error(), "record") != 5 {
		t.Errorf("it is reported as %v", err)
	}
	n.expect("the rest", "peer n1 10.9.0.1:7444", "network red", "red: slice n1 [10.0.0.0/26]", "red: [web] 10.0.0.1 true false")
	y := example()
	y.Names = y.Names[:2] // one has gone meanwhile
	n.take(true, y)
	n.expect("told anew", "peer n1 10.9.0.1:7444", "peer n2 10.9.0.2:7444", "network red", "network blue", "red: slice n1 [10.0.0.0/26]",
		"blue: slice n2 [10.1.0.0/26]", "red: [web] 10.0.0.1 true false", "blue: [web] 10.1.0.1 false false")
	if _, _, _, err := n.Fabric("n1"); err != nil && strings.Contains(err.Error(), "record") {
		t.Errorf("afterwards: %v", err)
	}
}

// What is told of a network that the node is not in is kept by nobody.
func TestWhatIsOfNoNetworkIsPassedOver(t *testing.T) {
	n := newNode(t)
	n.take(false, &dv1.Topology{Names: []*dv1.Name{name('x', '1', "10.0.0.1", true, "web")}, Slices: []*dv1.Slice{{NetworkId: id('x'), NodeId: "n1", Prefixes: []string{"10.0.0.0/26"}}}})
	n.expect("of no network", "")
	n.take(false, &dv1.Topology{Networks: []*dv1.Network{{Id: id('x'), Name: "late"}}})
	n.expect("the network afterwards", "network late")
	n.seen = nil
	n.take(true, nil)
	n.expect("nothing", "")
	n.seen = slices.DeleteFunc(n.seen, func(s string) bool { return s == "gone 78" })
	if len(n.seen) != 0 {
		t.Errorf("seen were %q", n.seen)
	}
}

func TestMalformedRecordsAreRefused(t *testing.T) {
	for why, y := range map[string]*dv1.Topology{
		"a peer without id":         {Peers: []*dv1.Peer{{}}},
		"a network with a short id": {Networks: []*dv1.Network{{Id: []byte("x")}}},
		"a slice of no node":        {Slices: []*dv1.Slice{{NetworkId: id('r')}}},
		"a slice of no network":     {Slices: []*dv1.Slice{{NodeId: "n1"}}},
		"a name of no network":      {Names: []*dv1.Name{{TaskId: id('1')}}},
		"a name of no task":         {Names: []*dv1.Name{{NetworkId: id('r')}}},
	} {
		if _, err := Parse(y); err == nil {
			t.Errorf("%s is taken", why)
		}
	}
}

// The node's routes are computed anew only if they may be others.
func TestOnlyWhatIsRoutedMakesANewVersion(t *testing.T) {
	n := newNode(t)
	n.take(true, example())
	asked := func(ip string, running bool) *dv1.Name {
		x := name('r', '9', ip, running, "fixed")
		x.Asked = true
		return x
	}
	for _, c := range []struct {
		why    string
		y      *dv1.Topology
		routed bool
	}{
		{"a name runs no longer", &dv1.Topology{Names: []*dv1.Name{name('r', '1', "10.0.0.1", false, "web")}}, false},
		{"a name more", &dv1.Topology{Names: []*dv1.Name{name('r', '5', "10.0.0.5", true, "web")}}, false},
		{"the same again", example(), false},
		{"nothing", nil, false},
		{"an address of its own", &dv1.Topology{Names: []*dv1.Name{asked("10.0.0.99", false)}}, true},
		{"it runs", &dv1.Topology{Names: []*dv1.Name{asked("10.0.0.99", true)}}, false},
		{"it is another", &dv1.Topology{Names: []*dv1.Name{asked("10.0.0.98", true)}}, true},
		{"it is gone", &dv1.Topology{Names: []*dv1.Name{{NetworkId: id('r'), TaskId: id('9'), Gone: true}}}, true},
		{"a peer moves", &dv1.Topology{Peers: []*dv1.Peer{{NodeId: "n2", Addr: "10.9.0.3:7444"}}}, true},
		{"a slice", &dv1.Topology{Slices: []*dv1.Slice{{NetworkId: id('r'), NodeId: "n4", Prefixes: []string{"10.0.1.0/26"}}}}, true},
		{"a network becomes internal", &dv1.Topology{Networks: []*dv1.Network{{Id: id('r'), Name: "red", Internal: true}}}, true},
	} {
		was, newer := n.version, n.changed
		n.take(false, c.y)
		if (n.version != was) != c.routed {
			t.Errorf("%s: version %d after %d", c.why, n.version, was)
		}
		select {
		case <-newer:
			if !c.routed {
				t.Errorf("%s: it is announced", c.why)
			}
		default:
			if c.routed {
				t.Errorf("%s: nobody hears of it", c.why)
			}
		}
	}
}

// Doors come and go without a new version: no start waits for them.
func TestDoorsAreKept(t *testing.T) {
	n := newNode(t)
	n.take(true, &dv1.Topology{Doors: []*dv1.Door{{Proto: "tcp", Port: 80, NodeId: "n2"}, {Proto: "udp", Port: 80, NodeId: "n3"}}})
	n.expect("at first", "door tcp 80 n2", "door udp 80 n3")
	version := n.Version()
	for _, c := range []struct {
		what string
		door *dv1.Door
		news bool
		want []string
	}{
		{"the same again", &dv1.Door{Proto: "tcp", Port: 80, NodeId: "n2"}, false, []string{"door tcp 80 n2", "door udp 80 n3"}},
		{"to another node", &dv1.Door{Proto: "tcp", Port: 80, NodeId: "n4"}, true, []string{"door tcp 80 n4", "door udp 80 n3"}},
		{"gone", &dv1.Door{Proto: "tcp", Port: 80}, true, []string{"door udp 80 n3"}},
		{"gone again", &dv1.Door{Proto: "tcp", Port: 80}, false, []string{"door udp 80 n3"}},
	} {
		_, _, newer, _ := n.Fabric("n1")
		n.take(false, &dv1.Topology{Doors: []*dv1.Door{c.door}})
		n.expect(c.what, c.want...)
		select {
		case <-newer:
			if !c.news {
				t.Errorf("%s is news", c.what)
			}
		default:
			if c.news {
				t.Errorf("%s is no news", c.what)
			}
		}
	}
	if n.Version() != version {
		t.Errorf("the version is %d, was %d", n.Version(), version)
	}
	n.reopen()
	n.take(true, &dv1.Topology{})
	n.expect("a full sync names none")
	for _, bad := range []*dv1.Door{{Port: 80}, {Proto: "tcp"}, {Proto: "tcp", Port: 65536}} {
		if _, err := Parse(&dv1.Topology{Doors: []*dv1.Door{bad}}); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}
