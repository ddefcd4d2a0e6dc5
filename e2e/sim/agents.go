package main

import (
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/drover/drover/agent/session"
	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/agent/task/faketask"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/roster"
)

// agentsPart is many agents in one process: real sessions, stores and reconcilers over
// engines in memory.
type agentsPart struct {
	Dir         string // of their stores
	Agents      int
	Controllers []string
	Cluster     string
	CA, CAKey   []byte // DER, PKCS#8
	Debug       string // socket that serves agentStats
	Log         string // file
}

// agentStats is the state of all agents.
type agentStats struct {
	Synced  int // have a session welcomed since the given time, and have applied its first sync
	Started int // tasks, in all
}

// opening bounds how many agents open a session at once: they share one address, and a
// controller bounds the handshakes per address.
const opening = 48

func (p agentsPart) run(ctx context.Context, ready func()) error {
	f, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	log := slog.New(slog.NewTextHandler(f, &slog.HandlerOptions{Level: slog.LevelWarn}))
	agents := make([]*agent, p.Agents)
	common := &shared{turns: make(chan struct{}, opening)}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		mux := debugging()
		mux.HandleFunc("/stats", func(w http.ResponseWriter, r *http.Request) {
			since, _ := strconv.ParseInt(r.URL.Query().Get("since"), 10, 64)
			_ = json.NewEncoder(w).Encode(common.stats(agents, since))
		})
		return serve(ctx, p.Debug, mux)
	})
	for n := range agents {
		if agents[n], err = p.open(n, log, common); err != nil {
			return errors.Join(err, ctx.Err())
		}
	}
	for _, a := range agents {
		g.Go(func() error { return a.run(ctx) })
	}
	ready()
	return g.Wait()
}

// shared is what all agents of a process share.
type shared struct {
	turns   chan struct{} // held while opening a session
	started atomic.Int64  // tasks

	mu     sync.Mutex // guards roster
	roster *roster.Roster
}

// stats is called often, so it does not iterate over tasks.
func (s *shared) stats(agents []*agent, since int64) agentStats {
	out := agentStats{Started: int(s.started.Load())}
	for _, a := range agents {
		if a != nil && a.synced.Load() >= max(since, 1) {
			out.Synced++
		}
	}
	return out
}

func (s *shared) take(news *dv1.Roster) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, changed := s.roster.Apply(news); changed {
		s.roster = r
	}
}

func (s *shared) sum() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.roster.Sum()
}

// agent is a host's agent without containers, network and port.
type agent struct {
	part  agentsPart
	n     int
	log   *slog.Logger
	tls   *tls.Config
	store *task.Store
	eng   *faketask.Engine
	rec   *task.Reconciler
	box   session.Outbox

	shared   *shared
	opening  atomic.Bool  // holds one of shared.turns
	welcomed atomic.Int64 // when the session was welcomed, Unix ns
	synced   atomic.Int64 // welcomed, of the last session whose first sync was applied
}

func (p agentsPart) open(n int, log *slog.Logger, common *shared) (*agent, error) {
	ca, err := x509.ParseCertificate(p.CA)
	if err != nil {
		return nil, err
	}
	caKey, err := x509.ParsePKCS8PrivateKey(p.CAKey)
	if err != nil {
		return nil, err
	}
	signer, ok := caKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the authority's key is a %T", caKey)
	}
	key, err := pki.NewKey()
	if err != nil {
		return nil, err
	}
	uri := pki.URI(p.Cluster, pki.KindNode, nodeID(n))
	der, err := (&pki.Authority{Cert: ca, Key: signer}).Issue(uri, key.Public(), nil, time.Now())
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	who, err := pki.FromURI(uri)
	if err != nil {
		return nil, err
	}
	files := &pki.Files{Bundle: []*x509.Certificate{ca}, Cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, Principal: who}
	a := &agent{part: p, n: n, log: log.With("agent", n), eng: faketask.New(), shared: common, tls: pki.PeerClientTLS(files, wire.ALPNSession, pki.Kinds(pki.KindController))}
	a.eng.Images.Add(digest)
	if a.store, err = task.OpenStore(filepath.Join(p.Dir, fmt.Sprint(n))); err != nil {
		return nil, err
	}
	a.rec = task.New(task.Options{Runtime: a.eng, Images: a.eng.Images, Store: a.store, Reporter: a, Log: a.log})
	return a, nil
}

func (a *agent) run(ctx context.Context) error {
	defer func() { _ = a.store.Close() }()
	defer a.eng.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.rec.Run(ctx) })
	g.Go(func() error {
		return session.Run(ctx, session.Options{Controllers: a.controllers, TLS: a.tls, Agent: a, Outbox: &a.box, Log: a.log})
	})
	if err := g.Wait(); ctx.Err() == nil {
		return err
	}
	return nil
}

func (a *agent) opened() {
	if a.opening.CompareAndSwap(true, false) {
		<-a.shared.turns
	}
}

// controllers are in an order of this agent's own, to spread sessions.
func (a *agent) controllers() []string {
	weight := func(addr string) uint64 {
		h := fnv.New64a()
		_, _ = h.Write([]byte(nodeID(a.n) + addr))
		return h.Sum64()
	}
	return slices.SortedFunc(slices.Values(a.part.Controllers), func(x, y string) int { return cmp.Compare(weight(x), weight(y)) })
}

// Status implements task.Reporter.
func (a *agent) Status(s *dv1.TaskStatus) {
	if s.Phase == dv1.Phase_ACTIVE {
		a.shared.started.Add(1)
	}
	a.box.Status(s)
}

// Ack implements task.Reporter.
func (a *agent) Ack(index uint64) { a.box.Ack(index) }

// Removed implements task.Reporter.
func (a *agent) Left(task, network []byte) { a.box.Left(task, network) }
func (a *agent) Removed(id []byte)         { a.box.Removed(id) }

// Hello implements session.Agent. It waits for a turn, which ends with the welcome or
// with the attempt.
func (a *agent) Hello(ctx context.Context) (*dv1.Hello, error) {
	select {
	case a.shared.turns <- struct{}{}:
		a.opening.Store(true)
		context.AfterFunc(ctx, a.opened)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	number, err := a.store.NextSession()
	if err != nil {
		return nil, err
	}
	at, err := a.store.Last()
	if err != nil {
		return nil, err
	}
	node := nodeOf(a.n)
	if node.Subnet, err = a.store.Subnet(); err != nil {
		return nil, err
	}
	select {
	case <-a.rec.Ready():
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	specs, err := a.store.Specs()
	if err != nil {
		return nil, err
	}
	images, err := a.eng.Images.List(ctx)
	if err != nil {
		return nil, err
	}
	return &dv1.Hello{Number: number, Epoch: at.Epoch, Term: at.Term, Index: at.Index, Node: node, Roster: a.shared.sum(), Specs: specs,
		Inventory: &dv1.Observation{Full: true, Images: images, Tasks: a.rec.Statuses()}}, nil
}

// Welcome implements session.Agent.
func (a *agent) Welcome(_ context.Context, w *dv1.Welcome) error {
	a.opened()
	a.shared.take(w.Roster)
	a.welcomed.Store(time.Now().UnixNano())
	return a.store.SetSubnet(w.Subnet)
}

// Changed implements session.Agent. A simulated agent ignores peers and keys.
func (a *agent) Changed(w *dv1.Welcome) { a.shared.take(w.Roster) }

// Take implements session.Agent.
func (a *agent) Take(ctx context.Context, s *dv1.Sync) error {
	if err := a.rec.Take(ctx, s); err != nil {
		return err
	}
	if !s.More {
		a.synced.Store(a.welcomed.Load())
	}
	return nil
}
