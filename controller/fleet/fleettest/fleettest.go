// Package fleettest has a fleet in memory, for tests of APIs: commands are decided
// by package command on a real state, agents' reports are scripted, and their bulk
// ports are HTTP handlers. Views of these are fleet.Local's.
package fleettest

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/access/accesstest"
	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

// Cluster is the fleet's id.
const Cluster = "fleet"

// Principals of the fleet.
var (
	Admin = pki.URI(Cluster, pki.KindUser, "admin")
	User  = pki.URI(Cluster, pki.KindUser, "user")
)

// Start is when the fleet was created; each entry of the log is a millisecond later.
var Start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// Fleet has one controller, which leads, and scripted nodes. It is safe for
// concurrent use, and implements what engineapi and fleetapi use of a fleet.
type Fleet struct {
	*fleet.Local
	t       testing.TB
	store   *state.Store
	reports *reports
	agents  *agents

	deciding sync.Mutex // serializes entries, including everything done with one

	mu       sync.Mutex // guards the fields below
	index    uint64
	leading  bool
	changed  chan struct{}
	proposed []*dv1.Command
}

// New returns a fleet with nodes of these names, whose ids are n0, n1, … and which
// have four CPUs and 4 GiB each. There is no image yet.
func New(t testing.TB, nodes ...string) *Fleet {
	t.Helper()
	f := &Fleet{t: t, store: state.NewStore(), reports: newReports(), agents: newAgents(t), leading: true, changed: make(chan struct{})}
	contact := ""
	if len(nodes) > 0 {
		contact = "n0"
	}
	f.Local = fleet.NewLocal(fleet.LocalOptions{Log: f, Reports: f.reports, Contact: contact,
		Dial: func(n *dv1.Node) (*http.Client, error) { return f.agents.client(n.Id), nil }})
	var ids []string
	for i := range nodes {
		ids = append(ids, fmt.Sprint("n", i))
	}
	users := append(accesstest.Identities(Cluster, ids...), &dv1.Identity{Uri: User, Roles: []string{pki.KindUser}})
	f.Do(&dv1.Command{Of: &dv1.Command_Init{Init: &dv1.Init{Cluster: &dv1.Cluster{Id: Cluster, Name: Cluster, Pool: "10.210.0.0/16", FeatureLevel: state.FeatureLevel}, Identities: users,
		Controller: &dv1.Controller{Id: "c1", Name: "ctl", Addr: "10.0.0.1:7443"}}}})
	for i, name := range nodes {
		f.AddNode(&dv1.Node{Id: ids[i], Name: name})
	}
	return f
}

// AddNode registers a node. Fields that aren't set are as in New.
func (f *Fleet) AddNode(n *dv1.Node) {
	f.t.Helper()
	n = proto.CloneOf(n)
	if n.Capacity == nil {
		n.Capacity = &dv1.Capacity{NanoCpus: 4e9, Memory: 4 << 30, Arch: "amd64", Os: "linux", OsName: "Linux", Kernel: "6.1", CgroupDriver: "cgroupfs", CgroupVersion: "2"}
	}
	if n.Addr == "" {
		n.Addr = n.Name + ":7444"
	}
	if f.Snapshot().Identity(pki.URI(Cluster, pki.KindNode, n.Id)) == nil {
		f.Apply(&dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: pki.URI(Cluster, pki.KindNode, n.Id), Roles: []string{pki.KindNode}}}})
	}
	f.Do(&dv1.Command{Of: &dv1.Command_RegisterNode{RegisterNode: &dv1.RegisterNode{Node: n}}})
}

// Upgrade raises the fleet's feature level to this build's.
func (f *Fleet) Upgrade() {
	f.t.Helper()
	f.Do(&dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: &dv1.Identity{Uri: pki.URI(Cluster, pki.KindController, "c1"), Roles: []string{pki.KindController}}}}})
	f.Do(&dv1.Command{Of: &dv1.Command_PutController{PutController: &dv1.PutController{Controller: &dv1.Controller{Id: "c1", Level: state.FeatureLevel}}}})
}

// AddImage commits an image under its references.
func (f *Fleet) AddImage(i *dv1.Image, refs ...string) {
	f.t.Helper()
	f.Do(&dv1.Command{Of: &dv1.Command_CommitImage{CommitImage: &dv1.CommitImage{Image: i, Refs: refs}}})
}

// Create creates a container's task from a create request's body, on the contact if
// possible. Its id is derived from its name.
func (f *Fleet) Create(name, image, body string) *dv1.Task {
	f.t.Helper()
	id := fmt.Appendf(nil, "%-32s", name)[:32]
	snap := f.Snapshot()
	digest := image
	if t := snap.Tag(image); t != nil {
		digest = t.Digest
	}
	f.Do(&dv1.Command{Of: &dv1.Command_Create{Create: &dv1.CreateRun{RunId: slices.Repeat(id[:16], 2), TaskIds: [][]byte{id}, Name: name, Contact: f.Contact(),
		Spec: &dv1.Spec{Id: fmt.Appendf(nil, "spec %-27s", name)[:32], Body: []byte(body), Image: image, Digest: digest}}}})
	return f.Snapshot().Task(id)
}

// Do has a command decided, with a suitable principal if it has none, and fails the
// test if it is refused.
func (f *Fleet) Do(c *dv1.Command) *dv1.CommandResult {
	f.t.Helper()
	res, err := f.propose(accesstest.Named(f.Snapshot(), c))
	if err != nil || res.Error != nil {
		f.t.Fatalf("%T: %v %v", c.Of, res.GetError(), err)
	}
	return res
}

// Propose decides a command as a leader does, including keys and refusals.
func (f *Fleet) Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	f.mu.Lock()
	leading := f.leading
	f.proposed = append(f.proposed, c)
	f.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case !leading:
		return nil, fleet.ErrNoLeader
	}
	return f.propose(c)
}

// Proposed returns all commands that were proposed so far, including refused ones.
func (f *Fleet) Proposed() []*dv1.Command {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.proposed)
}

func (f *Fleet) propose(c *dv1.Command) (*dv1.CommandResult, error) {
	f.deciding.Lock()
	defer f.deciding.Unlock()
	snap := f.store.Snapshot()
	if r := snap.Result(c.Key); c.Key != "" && r != nil {
		if !bytes.Equal(r.Hash, c.Hash) {
			return nil, consensus.ErrKeyReused
		}
		return r.Result, nil
	}
	now := f.now()
	effects, res := command.Decide(state.NewTxn(snap), proto.CloneOf(c), now)
	if res.Error != nil {
		return res, nil
	}
	var kept []*dv1.KeyResult
	if c.Key != "" {
		kept = append(kept, &dv1.KeyResult{Key: c.Key, Hash: c.Hash, Result: res, At: now})
	}
	if len(effects)+len(kept) == 0 {
		res.Index = snap.Index()
		return res, nil
	}
	if err := f.commit(now, effects, kept); err != nil {
		return nil, err
	}
	res.Index = f.store.Snapshot().Index()
	return res, nil
}

func (f *Fleet) now() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Start.UnixNano() + int64(f.index)*int64(time.Millisecond)
}

// commit applies one entry, with deciding held.
func (f *Fleet) commit(now int64, effects []*dv1.Effect, results []*dv1.KeyResult) error {
	b, err := proto.Marshal(&dv1.Entry{Format: state.Format, Type: state.EntryEffects, Base: f.store.Snapshot().Index(), Time: now, Effects: effects, Results: results})
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.index++
	_, err = f.store.Apply(f.index, b)
	close(f.changed)
	f.changed = make(chan struct{})
	f.mu.Unlock()
	if err != nil {
		return err
	}
	f.Committed(effects, f.store.Snapshot().Time())
	return nil
}

// Apply commits effects directly, without a command.
func (f *Fleet) Apply(effects ...*dv1.Effect) {
	f.t.Helper()
	f.deciding.Lock()
	defer f.deciding.Unlock()
	if err := f.commit(f.now(), effects, nil); err != nil {
		f.t.Fatal(err)
	}
}

// Snapshot returns the state as of the last entry.
func (f *Fleet) Snapshot() *state.Snapshot { return f.store.Snapshot() }

// State blocks until the state is at index least or later.
func (f *Fleet) State(ctx context.Context, least uint64) (*state.Snapshot, error) {
	for {
		f.mu.Lock()
		changed := f.changed
		f.mu.Unlock()
		if s := f.store.Snapshot(); s.Index() >= least {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Find is State; without a leader it doesn't wait and the state isn't fresh.
func (f *Fleet) Find(ctx context.Context, least uint64, _ func(*state.Snapshot) bool) (*state.Snapshot, bool, error) {
	snap, err := f.State(ctx, least)
	known, _ := f.Leader()
	return snap, known, err
}

// SetLeader sets whether a leader is known; initially one is.
func (f *Fleet) SetLeader(known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leading = known
	close(f.changed)
	f.changed = make(chan struct{})
}

// Leader reports whether a leader is known.
func (f *Fleet) Leader() (known bool, changed <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.leading, f.changed
}

// As makes h serve requests of a principal, with the roles that it has in the state.
func (f *Fleet) As(uri string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, err := pki.FromURI(uri)
		if err != nil {
			f.t.Errorf("principal %s: %v", uri, err)
		}
		p.Roles = f.Snapshot().Identity(uri).GetRoles()
		h.ServeHTTP(w, r.WithContext(pki.WithPrincipal(r.Context(), p)))
	})
}
