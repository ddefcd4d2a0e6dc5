package membership

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/peer"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/pki/pkitest"
)

// cut is the log of a controller without a leader, whose state names others.
type cut struct {
	*quorum // for its raft, which has this controller alone
	leader  string
	propose func(*dv1.Command) (*dv1.CommandResult, error)
	addrs   []string
}

func (c *cut) Leader() (addr, id string) { return c.leader, c.leader }
func (c *cut) Propose(_ context.Context, cmd *dv1.Command) (*dv1.CommandResult, error) {
	return c.propose(cmd)
}
func (c *cut) Snapshot() *state.Snapshot {
	txn := state.NewTxn(state.NewStore().Snapshot())
	for _, a := range c.addrs {
		_ = txn.Apply(&dv1.Effect{Of: &dv1.Effect_Controller{Controller: &dv1.Controller{Id: a, Name: a, Addr: a}}})
	}
	return txn.View()
}

// controllerAt serves the protocol of controllers as files say.
func controllerAt(t *testing.T, files *pki.Files, h http.HandlerFunc) (addr string) {
	t.Helper()
	config := pki.PeerServerTLS(files, pki.Kinds(pki.KindController))
	config.NextProtos = []string{wire.ALPNPeer}
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	var conns sync.Map
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Store(c, true)
			all.Go(func() {
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				if c.(*tls.Conn).Handshake() == nil {
					(&http2.Server{}).ServeConn(c, &http2.ServeConnOpts{Handler: h})
				}
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		conns.Range(func(c, _ any) bool { return c.(net.Conn).Close() != nil || true })
		all.Wait()
	})
	return l.Addr().String()
}

// says answers questions of a controller's place.
func says(code int, leader, removed string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != peer.StatusPath {
			code = http.StatusTeapot
		}
		w.Header().Set(wire.HeaderLeader, leader)
		w.Header().Set(wire.HeaderRemoved, removed)
		w.WriteHeader(code)
	}
}

func newPlace(t *testing.T, log *cut) (*Place, *pki.Authority) {
	t.Helper()
	log.quorum = newQuorum(t, "")
	ca := pkitest.Authority(t, "c")
	return NewPlace(PlaceOptions{Files: pkitest.Files(t, ca, "c", pki.KindController, "a"), DataDir: t.TempDir(), Addr: "127.0.0.1:1", Log: log,
		NotRevoked: func(pki.Principal) error { return nil }, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}), ca
}

// A controller that was removed while it was off is told so by the others: by any of
// them, unless one that has a leader knows it. Who is answered by nobody was not removed.
func TestWhoWasRemovedIsToldByTheOthers(t *testing.T) {
	log := &cut{}
	p, ca := newPlace(t, log)
	at := func(id string, h http.HandlerFunc) string {
		return controllerAt(t, pkitest.Files(t, ca, "c", pki.KindController, id), h)
	}
	knows, leaderless, removed := at("b", says(200, "b", "")), at("c", says(200, "", "")), at("d", says(421, "", "true"))
	stranger := controllerAt(t, pkitest.Files(t, pkitest.Authority(t, "c"), "c", pki.KindController, "e"), says(421, "", "true"))
	off, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := off.Addr().String()
	_ = off.Close()
	for name, c := range map[string]struct {
		addrs []string
		want  string
	}{
		"nobody is known":                  {nil, ""},
		"nobody answers":                   {[]string{nobody}, ""},
		"one knows it":                     {[]string{knows, nobody}, ""},
		"one without a leader":             {[]string{leaderless}, ""},
		"it was removed":                   {[]string{removed}, removed},
		"beside one without a leader":      {[]string{leaderless, removed, nobody}, removed},
		"one that does not know it yet":    {[]string{knows, removed}, ""},
		"somebody who is of another fleet": {[]string{stranger}, ""},
	} {
		log.addrs = c.addrs
		if got := p.removedBy(t.Context()); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	// What only the host's agent was told counts too.
	log.addrs = nil
	if err := identity.WriteFile(hostFile(t, p), identity.Host{Cluster: "c", Node: "a", Controllers: []string{removed}}); err != nil {
		t.Fatal(err)
	}
	if got := p.removedBy(t.Context()); got != removed {
		t.Errorf("by the agent's list: %q", got)
	}
}

func hostFile(t *testing.T, p *Place) string {
	t.Helper()
	file := identity.HostFile(p.o.DataDir)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	return file
}

// It is asked twice before a controller ends by what others say, and never while it has
// a leader.
func TestAnElectionEndsNoController(t *testing.T) {
	log := &cut{}
	p, ca := newPlace(t, log)
	asked := 0
	log.addrs = []string{controllerAt(t, pkitest.Files(t, ca, "c", pki.KindController, "b"), func(w http.ResponseWriter, r *http.Request) {
		asked++
		says(421, "", "true")(w, r)
	})}
	p.every = 10 * time.Millisecond
	if err := p.Run(t.Context()); !errors.Is(err, ErrRemoved) || asked != 2 {
		t.Errorf("%v after %d answers", err, asked)
	}
}

// A removal that the log has is answered for a moment still.
func TestARemovedControllerPartsAfterAMoment(t *testing.T) {
	log := &cut{leader: "b"}
	p, _ := newPlace(t, log)
	self := p.o.Files.Principal.ID
	p.removed = nil // made anew in the bubble
	synctest.Test(t, func(t *testing.T) {
		p.removed = make(chan struct{})
		began := time.Now()
		p.Committed([]*dv1.Effect{{Of: &dv1.Effect_DeleteController{DeleteController: "other"}}})
		time.AfterFunc(time.Minute, func() {
			for range 2 {
				p.Committed([]*dv1.Effect{{Of: &dv1.Effect_DeleteController{DeleteController: self}}})
			}
		})
		if err := p.Run(t.Context()); !errors.Is(err, ErrRemoved) || time.Since(began) != time.Minute+Parting {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// A host with several addresses stays at the one that is known, while that is its own.
func TestAnAddressThatIsStillOnesOwnStays(t *testing.T) {
	p, ca := newPlace(t, &cut{})
	own, other := controllerAt(t, p.o.Files, says(200, "", "")), controllerAt(t, pkitest.Files(t, ca, "c", pki.KindController, "b"), says(200, "", ""))
	if !p.answersAt(t.Context(), own) {
		t.Error("it is not found at its own address")
	}
	if p.answersAt(t.Context(), other) || p.answersAt(t.Context(), "127.0.0.1:1") {
		t.Error("somebody else's address is its own, or nobody's")
	}
}

// A controller that comes back at another address has the leader record it: itself, or
// the first of the others that leads.
func TestANewAddressIsRecordedByWhoeverLeads(t *testing.T) {
	log := &cut{}
	p, ca := newPlace(t, log)
	p.o.Addr = "10.9.9.9:2" // raft has it at "a"
	recorded := make(chan string, 9)
	record := func(by string, cmd *dv1.Command) {
		recorded <- by + " " + cmd.GetPutController().GetController().GetAddr() + " " + cmd.Principal
	}
	log.propose = func(cmd *dv1.Command) (*dv1.CommandResult, error) {
		record("itself", cmd)
		return &dv1.CommandResult{}, nil
	}
	first := func() string {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Announce(ctx) }()
		got := <-recorded
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for len(recorded) > 0 {
			<-recorded
		}
		return got
	}
	uri := p.o.Files.Principal.URI
	if got := first(); got != "itself 10.9.9.9:2 "+uri {
		t.Error(got)
	}
	log.propose = func(*dv1.Command) (*dv1.CommandResult, error) { return nil, consensus.ErrNotLeader }
	follower := controllerAt(t, pkitest.Files(t, ca, "c", pki.KindController, "b"), func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no leader", http.StatusMisdirectedRequest)
	})
	leader := controllerAt(t, pkitest.Files(t, ca, "c", pki.KindController, "d"), func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		cmd := &dv1.Command{}
		if err := proto.Unmarshal(b, cmd); err != nil || r.URL.Path != peer.ProposePath {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
		record("the leader", cmd)
		out, _ := proto.Marshal(&dv1.CommandResult{})
		_, _ = w.Write(out)
	})
	log.addrs = []string{follower, leader}
	if got := first(); got != "the leader 10.9.9.9:2 "+uri {
		t.Error(got)
	}
	log.addrs = []string{follower}
	if err := p.propose(t.Context(), &dv1.Command{}); err == nil {
		t.Error("no error, though nobody leads")
	}
}

var _ Log = (*cut)(nil)
