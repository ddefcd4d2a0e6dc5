package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/opencontainers/go-digest"

	"github.com/drover/drover/agent/images/peers"
	"github.com/drover/drover/agent/images/registry"
	"github.com/drover/drover/agent/payload"
	"github.com/drover/drover/agent/session"
	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/agent/task/faketask"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/pki"
	upstream "github.com/drover/drover/pkg/registry"
)

// bare is an agent that has nothing open but its store.
func bare(t *testing.T, files *pki.Files) *agent {
	t.Helper()
	a := &agent{Config: Config{NodeID: "n1", Name: "web-1", ClusterID: cluster, Logger: nilLog(), Labels: map[string]string{"zone": "a"}, Reserved: []uint16{7444}},
		files: files, fleet: openFleet(t.TempDir(), nilLog()), addr: "10.0.0.1:7444"}
	a.ctx = t.Context()
	a.peers = a.openPeers()
	t.Cleanup(a.peers.Close)
	var err error
	if a.store, err = task.OpenStore(filepath.Join(t.TempDir(), "tasks.db")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.store.Close() })
	return a
}

func TestAHostThatCanBeNoNodeSaysWhy(t *testing.T) {
	ca := newAuthority(t)
	for what, c := range map[string]struct {
		c     Config
		words string
	}{
		"no identity":            {Config{PKI: t.TempDir()}, "no agent's identity"},
		"a strange mirror":       {Config{PKI: ca.dir(pki.KindNode, "n1"), Registries: []upstream.Mirror{{}}}, "configuring registries"},
		"a folder that's a file": {Config{PKI: ca.dir(pki.KindNode, "n1"), DataDir: "/dev/null"}, "/dev/null"},
	} {
		if c.c.DataDir == "" {
			c.c.DataDir = t.TempDir()
		}
		err := Run(t.Context(), c.c)
		if testing.Short() && errors.Is(err, payload.ErrMissing) {
			continue // make unit goes without
		}
		if err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want %q", what, err, c.words)
		}
	}
}

// A session is opened at this host's own controller first; the others follow in an
// order of the node's own, so that a controller's end spreads its sessions.
func TestTheOrderOfControllers(t *testing.T) {
	all := []string{"a:1", "b:1", "c:1", "d:1"}
	a := &agent{Config: Config{NodeID: "n1", Controllers: all, Preferred: "c:1"}}
	got := a.controllers()
	if got[0] != "c:1" || len(got) != 4 {
		t.Errorf("%v, want c:1 first", got)
	}
	if again := a.controllers(); !slices.Equal(got, again) {
		t.Errorf("once %v, then %v", got, again)
	}
	first := map[string]bool{}
	for _, id := range []string{"n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8"} {
		first[(&agent{Config: Config{NodeID: id, Controllers: all}}).controllers()[0]] = true
	}
	if len(first) < 2 {
		t.Errorf("eight nodes all go to %v", first)
	}
	a.known.Store(&dv1.Welcome{Controllers: []string{"e:1"}})
	if got := a.controllers(); !slices.Equal(got, []string{"e:1"}) {
		t.Errorf("after a welcome it is %v", got)
	}
	if slices.Sort(all); !slices.Equal(all, []string{"a:1", "b:1", "c:1", "d:1"}) {
		t.Errorf("the configuration became %v", all)
	}
}

func TestWhereControllersAreIsKeptWhenItChanges(t *testing.T) {
	a := bare(t, newAuthority(t).files(pki.KindNode, "n1"))
	var saved [][]string
	a.SaveControllers = func(c []string) error { saved = append(saved, c); return errors.New("disk full") } // which is logged
	for _, c := range [][]string{{"a:1"}, {"a:1"}, nil, {"a:1", "b:1"}, {"a:1", "b:1"}} {
		a.Changed(&dv1.Welcome{Controllers: c})
	}
	if len(saved) != 2 && len(saved) != 3 || !slices.Equal(saved[0], []string{"a:1"}) || !slices.Equal(saved[len(saved)-1], []string{"a:1", "b:1"}) {
		t.Errorf("saved were %v", saved)
	}
}

// A node hears of no other cluster, and keeps the subnet that its containers have.
func TestAWelcomeOfSomebodyElseIsRefused(t *testing.T) {
	a := bare(t, newAuthority(t).files(pki.KindNode, "n1"))
	if err := a.Welcome(t.Context(), &dv1.Welcome{ClusterId: "other", Controllers: []string{"x:1"}}); err == nil || !strings.Contains(err.Error(), "cluster other") {
		t.Errorf("of another cluster: %v", err)
	}
	if a.known.Load() != nil {
		t.Error("what another cluster says is believed")
	}
	for _, s := range []string{"10.1.1.0", "10.1.1.0/33", "10.1.1.1/24", "10.1.0.0/16", "fd00::/64"} {
		if err := a.Welcome(t.Context(), &dv1.Welcome{ClusterId: cluster, Subnet: s}); err == nil || !strings.Contains(err.Error(), strconv.Quote(s)) {
			t.Errorf("with %s: %v", s, err)
		}
		if have, err := a.store.Subnet(); err != nil || have != "" {
			t.Errorf("with %s: stored is %q (%v)", s, have, err)
		}
	}
	if err := a.store.SetSubnet("10.1.1.0/24"); err != nil {
		t.Fatal(err)
	}
	err := a.Welcome(t.Context(), &dv1.Welcome{ClusterId: cluster, Subnet: "10.1.2.0/24"})
	if err == nil || !strings.Contains(err.Error(), "10.1.2.0/24, containers here have 10.1.1.0/24") {
		t.Errorf("with another subnet: %v", err)
	}
}

func TestAHelloOfANodeThatNeverRanAnything(t *testing.T) {
	a := bare(t, newAuthority(t).files(pki.KindNode, "n1"))
	for n := uint64(1); n < 3; n++ {
		h, err := a.Hello(t.Context())
		if err != nil || h.Number < n || h.Node.Id != "n1" || h.Node.Name != "web-1" || h.Node.Addr != "10.0.0.1:7444" || h.Node.Subnet != "" ||
			h.Node.Labels["zone"] != "a" || !slices.Equal(h.Node.ReservedPorts, []uint32{7444}) || !h.Inventory.Full || h.Node.Capacity.GetMemory() == 0 {
			t.Errorf("%v, %v", h, err)
		}
	}
}

func TestAnOldSyncIsOneOfAnOldController(t *testing.T) {
	a := bare(t, newAuthority(t).files(pki.KindNode, "n1"))
	e := faketask.New()
	t.Cleanup(e.Close)
	a.rec = task.New(task.Options{Runtime: e, Images: e.Images, Store: a.store, Reporter: &a.box, Log: nilLog()})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { _ = a.rec.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	sources := []*dv1.Source{{Digest: "sha256:a", Holders: []string{"127.0.0.1:1"}, Public: true}}
	if err := a.Take(t.Context(), &dv1.Sync{Epoch: 1, Term: 2, Index: 9, Full: true, Sources: sources}); err != nil {
		t.Fatal(err)
	}
	if !a.peers.Public("sha256:a") || len(a.peers.Clients("sha256:a")) != 1 {
		t.Error("what a sync says of images is not known to pulls")
	}
	if err := a.Take(t.Context(), &dv1.Sync{Epoch: 1, Term: 1, Index: 8, Full: true}); !errors.Is(err, session.ErrStale) {
		t.Errorf("an older one: %v", err)
	}
}

func TestWhatChangesInTheStoreIsReported(t *testing.T) {
	e := faketask.New()
	e.Images.AddRemote("sha256:a")
	changed := 0
	r := &reporting{store: e.Images, box: &session.Outbox{}, changed: func() { changed++ }}
	if _, err := r.Pull(t.Context(), "box", "sha256:none", nil, func(task.Progress) {}); err == nil || changed != 0 {
		t.Errorf("a pull that failed: %v, announced %d times", err, changed)
	}
	if _, err := r.Pull(t.Context(), "box", "sha256:a", nil, func(task.Progress) {}); err != nil || changed != 1 {
		t.Errorf("a pull: %v, announced %d times", err, changed)
	}
	if err := r.Remove(t.Context(), "sha256:a"); err != nil {
		t.Error(err)
	}
	if all, err := r.List(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("images are %v (%v)", all, err)
	}
}

// A probe says that a node is there only if it is that node.
func TestAProbeKnowsWhomItReaches(t *testing.T) {
	ca := newAuthority(t)
	self, other := ca.files(pki.KindNode, "self"), ca.files(pki.KindNode, "other")
	there := openFleet(t.TempDir(), nilLog())
	there.take(&dv1.Roster{Index: 1, Full: true, Members: []*dv1.Member{{Uri: self.Principal.URI}}})
	addr := port(t, there, other, http.NotFoundHandler())
	a := bare(t, self)
	if err := a.probe(t.Context(), "other", addr); err != nil {
		t.Errorf("the node: %v", err)
	}
	if err := a.probe(t.Context(), "third", addr); err == nil || !strings.Contains(err.Error(), "is node other, not third") {
		t.Errorf("another: %v", err)
	}
	a.fleet.take(&dv1.Roster{Index: 2, Full: true, Revoked: []string{other.Principal.URI}})
	if err := a.probe(t.Context(), "other", addr); err == nil {
		t.Error("a removed one is there")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := a.probe(t.Context(), "other", l.Addr().String()); err == nil {
		t.Error("nobody is there")
	}
}

// tags are those of a fleet with one image.
type tags struct{ digest digest.Digest }

func (f tags) Resolve(_ context.Context, r *connect.Request[dv1.ResolveImageRequest]) (*connect.Response[dv1.ResolveImageResponse], error) {
	code, ok := map[string]connect.Code{"none": connect.CodeNotFound, "secret": connect.CodePermissionDenied, "late": connect.CodeUnavailable}[r.Msg.Reference]
	if ok {
		return nil, connect.NewError(code, errors.New("because"))
	}
	return connect.NewResponse(&dv1.ResolveImageResponse{Digest: f.digest.String(), Holders: []string{"127.0.0.1:1"}, Grant: []byte("g"), Public: true}), nil
}

// What a reference names is the fleet's to say; the answer's reasons are kept apart.
func TestATagIsAskedOfAController(t *testing.T) {
	ca := newAuthority(t)
	a := bare(t, ca.files(pki.KindNode, "n1"))
	conf := pki.PeerServerTLS(ca.files(pki.KindController, "c"), func(pki.Principal) error { return nil })
	conf.NextProtos = []string{"http/1.1"}
	l, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	want := digest.FromString("box")
	routes := http.NewServeMux()
	routes.Handle(dv1connect.NewImagesHandler(tags{want}))
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: routes}
	done := make(chan struct{})
	go func() { _ = srv.Serve(l); close(done) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	a.Controllers = []string{l.Addr().String()}
	if d, err := a.tag(t.Context(), "box"); err != nil || d != want || !a.peers.Public(want.String()) || len(a.peers.Clients(want.String())) != 1 {
		t.Errorf("%s, %v", d, err)
	}
	for ref, is := range map[string]error{"none": registry.ErrUnknown, "secret": registry.ErrPrivate} {
		if _, err := a.tag(t.Context(), ref); !errors.Is(err, is) {
			t.Errorf("%s: %v, want %v", ref, err, is)
		}
	}
	if _, err := a.tag(t.Context(), "late"); err == nil || !strings.Contains(err.Error(), "asking the fleet for late: unavailable: because") {
		t.Errorf("late: %v", err)
	}
	a.Controllers = []string{"127.0.0.1:1"}
	if _, err := a.tag(t.Context(), "box"); err == nil {
		t.Error("nobody answered")
	}
}

func TestAMirrorIsOnLoopbackOrNowhere(t *testing.T) {
	a := bare(t, newAuthority(t).files(pki.KindNode, "n1"))
	for _, addr := range []string{"0.0.0.0:5000", "localhost", "mirror:5000", "127.0.0.1"} {
		if a.Mirror = addr; a.serveMirror(nil) == nil {
			t.Errorf("%s is served", addr)
		}
	}
	if a.Mirror = ""; a.serveMirror(nil) != nil {
		t.Error("none was asked for")
	}
}

func TestWhatIsSaidOfImagesIsKept(t *testing.T) {
	a := bare(t, newAuthority(t).files(pki.KindNode, "n1"))
	if all, err := a.digests(t.Context()); all != nil || err != nil {
		t.Errorf("before there is a store: %v, %v", all, err)
	}
	a.pulling(bulk.PullRequest{Digest: "sha256:a", Public: true, Holders: []string{"127.0.0.1:1"}})
	a.peers.Named("sha256:a", peers.Source{Grant: []byte("g")})
	if !a.peers.Public("sha256:a") || len(a.peers.Clients("sha256:a")) != 1 {
		t.Error("what a pull says is not kept")
	}
}

func TestPorts(t *testing.T) {
	for addr, want := range map[string]uint16{"0.0.0.0:7444": 7444, "[::1]:1": 1, "host": 0, "host:http": 0, "host:70000": 0, "": 0} {
		if got := Port(addr); got != want {
			t.Errorf("%q: %d, want %d", addr, got, want)
		}
	}
}
