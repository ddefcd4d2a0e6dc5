// Package server answers containers' questions for names: in each container's network
// namespace it listens on 127.0.0.11 and answers from a table that the node's agent
// keeps current, and asks other servers for the rest, as docker's resolver does. It
// outlives agents. What containers and names there are is up to the agent.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/resolver/resolverapi"
)

// Options of Run.
type Options struct {
	Listener net.Listener  // for the agent; Run closes it
	Root     string        // of the host's files; "" is /
	Idle     time.Duration // Run returns when there was no sandbox for so long
	Log      *slog.Logger
}

// resolvers is all that a node has.
type resolvers struct {
	o        Options
	table    *table
	visitor  *visitor
	upstream *upstream
	life     context.Context
	end      context.CancelFunc
	wg       sync.WaitGroup

	mu   sync.Mutex // orders updates; guards the fields below
	all  map[string]*served
	idle *time.Timer // runs while there is no sandbox
	conn net.Conn    // the agent's last
}

// served is a sandbox with its sockets.
type served struct {
	resolver
	ns    *os.File
	id    unix.Stat_t // of ns
	socks sockets
	all   [2]*dns.Server
	wg    sync.WaitGroup
}

// Run serves until ctx ends, the agent says so, or nothing has been served for
// o.Idle.
func Run(ctx context.Context, o Options) error {
	if o.Root == "" {
		o.Root = "/"
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	r := &resolvers{o: o, table: newTable(), visitor: newVisitor(), upstream: newUpstream(o.Root), all: map[string]*served{}, life: ctx, end: end}
	r.idle = time.AfterFunc(o.Idle, end)
	defer r.idle.Stop()
	r.wg.Go(func() { r.visitor.run(ctx) })
	stop := context.AfterFunc(ctx, func() { _ = o.Listener.Close() })
	defer stop()
	err := r.accept(ctx)
	end()
	r.mu.Lock()
	if r.conn != nil {
		_ = r.conn.Close()
	}
	for id := range r.all {
		r.drop(id)
	}
	r.mu.Unlock()
	r.wg.Wait()
	return err
}

// accept serves agents, of which the last one counts.
func (r *resolvers) accept(ctx context.Context) error {
	for {
		c, err := r.o.Listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("waiting for an agent: %w", err)
		}
		r.mu.Lock()
		if r.conn != nil {
			_ = r.conn.Close()
		}
		r.conn = c
		r.mu.Unlock()
		r.wg.Go(func() { r.agent(c) })
	}
}

// agent applies what one agent says until its connection ends.
func (r *resolvers) agent(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	c := resolverapi.NewConn(conn)
	for {
		u := new(resolverapi.Update)
		if c.Read(u) != nil {
			return
		}
		if u.Quit {
			r.end()
			return
		}
		r.mu.Lock()
		if r.conn != conn { // another agent has taken over
			r.mu.Unlock()
			return
		}
		errs := r.apply(u)
		r.mu.Unlock()
		if c.Write(&resolverapi.Ack{Number: u.Number, Errors: errs}) != nil {
			return
		}
	}
}

// apply must be called with mu held.
func (r *resolvers) apply(u *resolverapi.Update) map[string]string {
	idle := len(r.all) == 0
	r.table.change(u)
	named := map[string]bool{}
	errs := map[string]string{}
	for _, s := range u.Sandboxes {
		named[s.ID] = true
		if err := r.serve(s); err != nil {
			r.o.Log.Error("a container's names are not answered", "task", s.ID, "err", err)
			errs[s.ID] = err.Error()
		}
	}
	for _, id := range u.SandboxesGone {
		r.drop(id)
	}
	if u.Full {
		for id := range r.all {
			if !named[id] {
				r.drop(id)
			}
		}
	}
	switch now := len(r.all) == 0; { // an update that changes neither doesn't prolong it
	case now && !idle:
		r.idle.Reset(r.o.Idle)
	case idle && !now:
		r.idle.Stop()
	}
	return errs
}

// serve listens in a sandbox, unless it does so already, and configures how it is
// served. It must be called with mu held.
func (r *resolvers) serve(c resolverapi.Sandbox) error {
	ns, err := os.Open(c.Netns)
	if err != nil {
		return fmt.Errorf("opening the namespace: %w", err)
	}
	var id unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &id); err != nil {
		return errors.Join(fmt.Errorf("opening the namespace %s: %w", c.Netns, err), ns.Close())
	}
	if old := r.all[c.ID]; old != nil {
		if old.id.Dev == id.Dev && old.id.Ino == id.Ino {
			old.conf.Store(&c)
			return ns.Close()
		}
		r.drop(c.ID) // the container has a new one
	}
	s := &served{ns: ns, id: id}
	s.table, s.upstream, s.netns = r.table, r.upstream, r.visitor.dial(ns)
	s.forwards = make(chan struct{}, maxForwards)
	s.conf.Store(&c)
	if s.socks, err = r.visitor.open(ns); err != nil {
		return errors.Join(err, ns.Close())
	}
	s.life, s.end = context.WithCancel(r.life)
	s.all = [2]*dns.Server{udpServer(s.socks.udp, s), tcpServer(s.socks.tcp, s)}
	for _, d := range s.all {
		s.wg.Go(func() {
			if err := d.ActivateAndServe(); err != nil && s.life.Err() == nil {
				r.o.Log.Warn("a container's names are no longer answered", "task", c.ID, "err", err)
			}
		})
	}
	r.all[c.ID] = s
	r.table.present(c.ID, true)
	return nil
}

// drop ends serving a sandbox. It must be called with mu held.
func (r *resolvers) drop(id string) {
	s := r.all[id]
	if s == nil {
		return
	}
	delete(r.all, id)
	r.table.present(id, false)
	r.wg.Go(s.close)
}

// close ends what is being asked, and returns when every query was answered.
func (s *served) close() {
	s.end()
	for _, d := range s.all {
		_ = d.Shutdown() // of one that has not begun to serve it does nothing
	}
	s.socks.close()
	s.wg.Wait()
	_ = s.ns.Close()
}
