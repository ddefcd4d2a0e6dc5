// Package resolver keeps the embedded resolver (drover-resolver) running beside an agent
// and tells it the names and sandboxes of the node. It is a process of its own, which
// outlives the agent: names are answered while there is none. How they are answered is
// up to the server; what the names are, to whoever tells them here.
package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/drover/drover/agent/resolver/resolverapi"
)

// Names is all that the node was told of its networks.
type Names interface {
	// All returns what there is. What changes afterwards is passed to Changed.
	All() (networks []resolverapi.Network, names []resolverapi.Name)
}

// Options of a Resolver.
type Options struct {
	Binary string        // as returned by payload.Extract
	Dir    string        // volatile and short: of sockets, one for each build of the resolver
	LogTo  string        // a file; "" discards the log
	Node   string        // id of this one
	Root   string        // of the host's files; "" is /
	Idle   time.Duration // until a resolver without sandboxes ends; 0 is a minute
	Names  Names
	Log    *slog.Logger
}

// Times of the supervisor.
const (
	ackWithin   = 10 * time.Second      // a resolver that takes longer is stuck, and replaced
	perSandbox  = 50 * time.Millisecond // that it has more for each sandbox: where another one was, the kernel makes it wait
	probeEvery  = 15 * time.Second      // when there is nothing to say: a stuck process sends no event
	minBackoff  = 20 * time.Millisecond
	maxBackoff  = 5 * time.Second
	steadyAfter = 30 * time.Second // one that ran this long is restarted without delay
)

// maxPending is how many changes wait for a resolver before it is told everything again.
const maxPending = 10_000

// Resolver is a node's. Safe for concurrent use.
type Resolver struct {
	o    Options
	wake chan struct{} // there is something to say

	ackWithin time.Duration // a test's is shorter

	mu        sync.Mutex // guards the fields below
	sandboxes map[string]*sandbox
	told      bool       // the process knows everything but what is pending
	pending   []*message // in order
}

// message is an update, and whom its acknowledgement concerns.
type message struct {
	resolverapi.Update
	of []*sandbox
}

// sandbox is one that the resolver has to serve.
type sandbox struct {
	conf resolverapi.Sandbox
	done chan struct{} // closed when the resolver answered that it serves conf, or does not
	err  error         // why it does not; set before done is closed
}

// New returns a Resolver of which nothing runs until Run is called.
func New(o Options) *Resolver {
	return &Resolver{o: o, wake: make(chan struct{}, 1), ackWithin: ackWithin, sandboxes: map[string]*sandbox{}}
}

// Serve has the resolver answer in a sandbox, as described by s from now on, and blocks
// until it does. If the error is ctx's, it will do so once it runs.
func (r *Resolver) Serve(ctx context.Context, s resolverapi.Sandbox) error {
	x := r.set(s)
	select {
	case <-x.done:
		return x.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for the node's resolver: %w", ctx.Err())
	}
}

// Restore is Serve of sandboxes that may be served already, by an earlier agent's
// resolver. Nobody waits for them.
func (r *Resolver) Restore(all []resolverapi.Sandbox) {
	for _, s := range all {
		r.set(s)
	}
}

func (r *Resolver) set(s resolverapi.Sandbox) *sandbox {
	x := &sandbox{conf: s, done: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.sandboxes[s.ID]; old != nil {
		old.answer(errors.New("the sandbox was changed meanwhile"))
	}
	r.sandboxes[s.ID] = x
	r.queue(&message{resolverapi.Update{Sandboxes: []resolverapi.Sandbox{s}}, []*sandbox{x}})
	return x
}

// Drop has the resolver leave a sandbox. One that is not served is no error.
func (r *Resolver) Drop(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[id]
	if s == nil {
		return
	}
	s.answer(errors.New("the sandbox is gone"))
	delete(r.sandboxes, id)
	r.queue(&message{Update: resolverapi.Update{SandboxesGone: []string{id}}})
}

// Changed passes changes on: first of networks that are gone, by id, then of networks,
// then of names. It doesn't block.
func (r *Resolver) Changed(gone []string, networks []resolverapi.Network, names []resolverapi.Name) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.pending); n > 0 && len(networks)+len(gone) == 0 && r.pending[n-1].of == nil && r.pending[n-1].SandboxesGone == nil {
		r.pending[n-1].Names = append(r.pending[n-1].Names, names...)
		return
	}
	r.queue(&message{Update: resolverapi.Update{Networks: networks, NetworksGone: gone, Names: names}})
}

// queue must be called with mu held.
func (r *Resolver) queue(m *message) {
	switch {
	case !r.told: // it will hear everything
	case len(r.pending) == maxPending:
		r.told, r.pending = false, nil
	default:
		r.pending = append(r.pending, m)
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// answer may be called again, to no effect. It must be called with mu held.
func (s *sandbox) answer(err error) {
	select {
	case <-s.done:
	default:
		s.err = err
		close(s.done)
	}
}

// next takes what is to be said, nil if there is nothing.
func (r *Resolver) next() *message {
	r.mu.Lock()
	if r.told {
		defer r.mu.Unlock()
		if len(r.pending) == 0 {
			return nil
		}
		m := r.pending[0]
		r.pending = r.pending[1:]
		return m
	}
	m := &message{Update: resolverapi.Update{Full: true, Node: r.o.Node}}
	for _, s := range r.sandboxes {
		m.Sandboxes, m.of = append(m.Sandboxes, s.conf), append(m.of, s)
	}
	r.told = true
	r.mu.Unlock()
	m.Networks, m.Names = r.o.Names.All() // what changes from here on is pending
	return m
}

// said records that a message was acknowledged.
func (r *Resolver) said(m *message, errs map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range m.of {
		var err error
		if why := errs[s.conf.ID]; why != "" {
			err = errors.New(why)
		}
		s.answer(err)
	}
}

// needed reports whether there is a sandbox to serve.
func (r *Resolver) needed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sandboxes) > 0
}

// forget is called when a process is gone: the next one knows nothing.
func (r *Resolver) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told, r.pending = false, nil
}
