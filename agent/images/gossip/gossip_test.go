package gossip

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

const cluster = "c"

// fleet signs nodes, and knows some of them.
type fleet struct {
	t  *testing.T
	ca *pki.Authority

	mu   sync.Mutex // guards gone
	gone map[string]bool
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	ca, err := pki.NewAuthority(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &fleet{t: t, ca: ca, gone: map[string]bool{}}
}

func (f *fleet) known(p pki.Principal) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone[p.ID] {
		return pki.ErrRevoked
	}
	return nil
}

func (f *fleet) remove(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone[id] = true
}

func (f *fleet) files(kind, id string) *pki.Files {
	f.t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		f.t.Fatal(err)
	}
	der, err := f.ca.Issue(pki.URI(cluster, kind, id), key.Public(), nil, time.Now())
	if err != nil {
		f.t.Fatal(err)
	}
	dir := f.t.TempDir()
	if err := pki.WriteFiles(dir, [][]byte{f.ca.Cert.Raw}, der, key, nil); err != nil {
		f.t.Fatal(err)
	}
	files, err := pki.LoadFiles(dir)
	if err != nil {
		f.t.Fatal(err)
	}
	return files
}

// member is a node on an address of loopback's net, all on one port.
type member struct {
	*Gossip
	mu   sync.Mutex // guards have
	have []string
}

func (m *member) holds(digests ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.have = digests
}

func (f *fleet) begin(i int, port string, keys ...[]byte) *member {
	f.t.Helper()
	m := &member{}
	host := fmt.Sprintf("127.0.0.%d", 10+i)
	id := fmt.Sprint("n", i)
	g, err := Start(Options{Node: id, Bind: net.JoinHostPort(host, port), Advertise: host, Keys: keys, Files: f.files(pki.KindNode, id), Known: f.known,
		Have: func() []string { m.mu.Lock(); defer m.mu.Unlock(); return m.have }})
	if err != nil {
		f.t.Fatal(err)
	}
	m.Gossip = g
	f.t.Cleanup(g.Close)
	return m
}

// of is a digest for a word.
func of(word string) string { return digest.FromString(word).String() }

func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.10:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestNodesHearWhatOthersHold(t *testing.T) {
	f := newFleet(t)
	key, next, port := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32), freePort(t)
	a, b := f.begin(1, port, key), f.begin(2, port, key)
	a.holds(of("one"))
	stranger := f.begin(3, port, bytes.Repeat([]byte{9}, 32))
	stranger.holds(of("poison"))
	if err := b.Join([]string{"127.0.0.11:7444"}); err != nil {
		t.Fatal(err)
	}
	until(t, "b knows that a holds one", func() bool { return slices.Equal(b.Holders(of("one")), []string{"n1"}) })
	a.holds(of("one"), of("two"))
	a.Announce()
	until(t, "b hears of two", func() bool { return len(b.Holders(of("two"))) == 1 })
	if err := stranger.Join([]string{"127.0.0.11:7444"}); err == nil {
		t.Error("who has another key was let in")
	}
	if h := a.Holders(of("poison")); len(h) > 0 {
		t.Errorf("a believes a stranger: %v", h)
	}
	// Keys change one node after the other: both are understood meanwhile.
	for _, m := range []*member{a, b} {
		if err := m.SetKeys([][]byte{next, key}); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.SetKeys([][]byte{next}); err != nil {
		t.Fatal(err)
	}
	a.holds(of("three"))
	a.Announce()
	until(t, "b hears under the new key", func() bool { return len(b.Holders(of("three"))) == 1 })
	a.Close()
	until(t, "who left holds nothing", func() bool { return len(b.Holders(of("three"))) == 0 })
}

// A node may lie about itself, and about nobody else: what it says in another's
// name, out of the future or again is not believed; and who was removed holds nothing.
func TestANodeIsBelievedOfItselfOnly(t *testing.T) {
	f := newFleet(t)
	key, port := bytes.Repeat([]byte{1}, 32), freePort(t)
	a, b := f.begin(1, port, key), f.begin(2, port, key)
	a.holds(of("real"))
	if err := b.Join([]string{"127.0.0.11:7444"}); err != nil {
		t.Fatal(err)
	}
	until(t, "b knows what a holds", func() bool { return len(b.Holders(of("real"))) == 1 })
	liar, ctl := f.files(pki.KindNode, "n9"), f.files(pki.KindController, "n1")
	other := newFleet(t).files(pki.KindNode, "n1")
	say := func(files *pki.Files, node string, at time.Time, word string) *dv1.Holding {
		t.Helper()
		sum, _ := hex.DecodeString(strings.TrimPrefix(of(word), "sha256:"))
		said, err := proto.Marshal(&dv1.Held{Node: node, At: at.UnixNano(), Digests: [][]byte{sum}})
		if err != nil {
			t.Fatal(err)
		}
		sig, err := files.Sign(purpose, said)
		if err != nil {
			t.Fatal(err)
		}
		return &dv1.Holding{Said: said, Signature: sig, Cert: files.Cert.Certificate[0]}
	}
	tell := func(h *dv1.Holding) {
		t.Helper()
		m, err := proto.Marshal(&dv1.Holdings{All: []*dv1.Holding{h}})
		if err != nil {
			t.Fatal(err)
		}
		b.take(m)
	}
	now := time.Now()
	future := now.Add(2 * maxFuture)
	asA := say(liar, "n1", now.Add(time.Second), "poison")
	bare := say(liar, "n1", now.Add(time.Second), "poison")
	bare.Cert = nil
	stolen := say(liar, "n1", now.Add(time.Second), "poison")
	stolen.Cert = a.o.Files.Cert.Certificate[0]
	changed := say(a.o.Files, "n1", now.Add(time.Second), "x")
	changed.Said = say(liar, "n1", now.Add(time.Second), "poison").Said
	for name, h := range map[string]*dv1.Holding{
		"another's name": asA, "another's name without a certificate": bare, "another's certificate": stolen, "other words": changed,
		"a controller": say(ctl, "n1", now.Add(time.Second), "poison"), "another fleet's": say(other, "n1", now.Add(time.Second), "poison"),
		"the future": say(a.o.Files, "n1", future, "poison"), "the past": say(a.o.Files, "n1", now.Add(-time.Hour), "poison"),
	} {
		tell(h)
		if got := b.Holders(of("poison")); len(got) > 0 {
			t.Fatalf("%s: b believes that %v hold it", name, got)
		}
		if got := b.Holders(of("real")); len(got) != 1 {
			t.Fatalf("%s: b forgot what a holds", name)
		}
	}
	b.take([]byte("no protobuf"))
	tell(say(a.o.Files, "n1", now.Add(2*time.Second), "newer"))
	if got := b.Holders(of("newer")); !slices.Equal(got, []string{"n1"}) {
		t.Fatalf("a's newer word: %v", got)
	}
	f.remove("n1")
	if got := b.Holders(of("newer")); len(got) > 0 {
		t.Fatalf("a removed node holds: %v", got)
	}
	tell(say(a.o.Files, "n1", now.Add(3*time.Second), "newest"))
	if got := b.Holders(of("newest")); len(got) > 0 {
		t.Fatalf("a removed node is heard: %v", got)
	}
}

// What a node holds reaches those that never met it, in its own words.
func TestHoldingsArePassedOn(t *testing.T) {
	f := newFleet(t)
	key, port := bytes.Repeat([]byte{1}, 32), freePort(t)
	a, b, c := f.begin(1, port, key), f.begin(2, port, key), f.begin(3, port, key)
	a.holds(of("one"))
	b.take(a.state())
	c.take(b.state())
	if h := c.Gossip.have["n1"]; !h.digests[of("one")] {
		t.Fatalf("c knows %v of a", h.digests)
	}
}

func FuzzTake(f *testing.F) {
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		g := &Gossip{have: map[string]holding{}}
		g.o.Known = func(pki.Principal) error { return nil }
		g.o.Files = &pki.Files{}
		g.take(b)
		if len(g.have) > 0 {
			t.Fatal("something unsigned was believed")
		}
	})
}
