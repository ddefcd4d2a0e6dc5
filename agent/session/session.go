// Package session keeps an agent's stream to the control plane open: hello, beats, syncs
// down, observations and acknowledgements up. What a sync means for containers is up to
// the reconciler.
package session

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/failpoint"
	"github.com/drover/drover/pkg/pki"
)

// Times of the session. A controller that sends nothing for Silence is given up: that is
// three beats, so that the node is heard elsewhere before it counts as silent.
const (
	BeatEvery  = 500 * time.Millisecond
	Silence    = 1500 * time.Millisecond
	openWithin = time.Minute // to apply a welcome; the agent beats meanwhile
	dialWithin = 2 * time.Second
	maxWait    = time.Second // between attempts to connect
	maxRead    = 16 << 20    // enough for a full sync of a large node
)

// Agent is the host that a session speaks for.
type Agent interface {
	// Hello describes the agent; its session number only grows.
	Hello(ctx context.Context) (*dv1.Hello, error)
	// Welcome applies the answer: subnet, epoch, cluster. It may take time, since the
	// first one opens the node's network and engine.
	Welcome(ctx context.Context, w *dv1.Welcome) error
	// Changed applies updates of controllers and keys.
	Changed(w *dv1.Welcome)
	// Take stores a sync durably and acknowledges it through the outbox. For a sync older
	// than what the agent has it returns ErrStale and changes nothing.
	Take(ctx context.Context, s *dv1.Sync) error
}

// errSilent reports that nothing was received for too long. The connection is discarded.
var errSilent = fmt.Errorf("nothing was received for %v", Silence)

// ErrStale reports a sync older than the agent's highest (epoch, term, index).
var ErrStale = errors.New("the sync is older than what this agent has")

// Options of Run. Controllers returns the host:port of each, the preferred one first;
// TLS is pki.PeerClientTLS for ALPNSession.
type Options struct {
	Controllers func() []string
	TLS         *tls.Config
	Conns       *pki.Conns // cuts those to a removed controller; may be nil
	Agent       Agent
	Outbox      *Outbox
	Status      *Status // is updated; may be nil
	Log         *slog.Logger
}

// conns are the connections to controllers. They outlive sessions: when the leader
// changes, the agent says hello again on the open connection.
type conns struct {
	tls  *tls.Config
	open *pki.Conns
	addr string
	tr   *http2.Transport
}

func (c *conns) to(addr string) *http2.Transport {
	if c.tr != nil && c.addr == addr {
		return c.tr
	}
	c.close()
	c.addr = addr
	c.tr = &http2.Transport{ReadIdleTimeout: Silence, PingTimeout: time.Second,
		DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
			d := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialWithin}, Config: c.tls}
			conn, err := d.DialContext(ctx, "tcp", addr)
			if t, ok := conn.(*tls.Conn); ok && c.open != nil {
				return c.open.Wrap(t)
			}
			return conn, err
		}}
	return c.tr
}

func (c *conns) close() {
	if c.tr != nil {
		c.tr.CloseIdleConnections()
		c.tr = nil
	}
}

// Run keeps a session open, and returns only when ctx ends.
func Run(ctx context.Context, o Options) error {
	wait := time.Duration(0)
	failing := ""
	cs := &conns{tls: o.TLS, open: o.Conns}
	defer cs.close()
	for i, again := 0, 0; ctx.Err() == nil; {
		all := o.Controllers()
		addr := all[i%len(all)]
		welcomed, err := o.once(ctx, addr, cs.to(addr))
		if ctx.Err() != nil {
			break
		}
		o.Status.set(false, err)
		if welcomed {
			wait, failing = 0, ""
		}
		if err != nil && err.Error() != failing { // the same reason is logged once
			failing = err.Error()
			o.Log.Warn("session ended", "controller", addr, "err", err)
		}
		// A session that worked is reopened once at the same controller: the leader may have
		// changed. After that, the next controller is tried.
		if again++; !welcomed || again > 1 || errors.Is(err, errSilent) {
			i, again = i+1, 0
			cs.close()
			wait = min(maxWait, max(20*time.Millisecond, 2*wait))
		}
		t := time.NewTimer(rand.N(max(wait, 10*time.Millisecond))) // full jitter
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
	return ctx.Err()
}

// once runs one session until it ends; welcomed reports whether it was established.
func (o Options) once(ctx context.Context, addr string, tr *http2.Transport) (welcomed bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	hello, err := o.Agent.Hello(ctx)
	if err != nil {
		return false, fmt.Errorf("preparing the hello: %w", err)
	}
	alive := time.AfterFunc(2*Silence, func() { // longer at first: a controller may have to wait for its leader
		cancel(fmt.Errorf("controller %s: %w", addr, errSilent))
	})
	defer alive.Stop()
	inventory := chunks(hello.GetInventory())
	hello.Inventory = inventory[0]
	c := dv1connect.NewSessionClient(&http.Client{Transport: transport{tr, alive}}, "https://"+addr, connect.WithReadMaxBytes(maxRead),
		connect.WithAcceptCompression("gzip", nil, nil))
	s := c.Open(ctx)
	defer func() { _ = s.CloseResponse() }()
	defer func() { _ = s.CloseRequest() }()
	// While a request has a body to wait for, the HTTP/2 client ignores ctx: Receive would
	// block until the controller ends the stream.
	stop := context.AfterFunc(ctx, func() { _ = s.CloseRequest() })
	defer stop()
	if err := s.Send(&dv1.FromAgent{Of: &dv1.FromAgent_Hello{Hello: hello}}); err != nil {
		if _, rerr := s.Receive(); rerr != nil {
			err = rerr // the reason for the refusal is on the receiving side
		}
		return false, fmt.Errorf("opening a session with %s: %w", addr, cause(ctx, err))
	}
	first, err := s.Receive()
	if err != nil {
		return false, fmt.Errorf("opening a session with %s: %w", addr, cause(ctx, err))
	}
	if first.GetWelcome() == nil {
		return false, fmt.Errorf("opening a session with %s: it began with %T instead of a welcome", addr, first.GetOf())
	}
	alive.Stop()
	open := make(chan struct{})
	var both sync.WaitGroup
	both.Go(func() {
		if err := o.send(ctx, s, open, inventory[1:]); !errors.Is(err, io.EOF) { // on EOF the receiver gets the reason
			cancel(err)
		}
	})
	both.Go(func() {
		if err := o.welcome(ctx, first.GetWelcome(), cancel); err != nil {
			cancel(fmt.Errorf("taking the welcome of %s: %w", addr, err))
			return
		}
		welcomed = true
		close(open)
		o.Log.Info("session open", "controller", addr, "number", hello.GetNumber())
		cancel(o.receive(ctx, s, alive))
	})
	both.Wait()
	return welcomed, context.Cause(ctx)
}

// welcome has the agent apply a welcome. If that takes too long, the agent stops
// beating.
func (o Options) welcome(ctx context.Context, w *dv1.Welcome, cancel context.CancelCauseFunc) error {
	late := time.AfterFunc(openWithin, func() {
		err := fmt.Errorf("this node's network and engine did not open within %v", openWithin)
		o.Log.Error("this node is silent until it is ready", "err", err) // at once: the agent may never return
		o.Status.set(false, err)
		cancel(err)
	})
	defer late.Stop()
	return o.Agent.Welcome(ctx, w)
}

type stream = connect.BidiStreamForClient[dv1.FromAgent, dv1.ToAgent]

// sender is the agent's half of a stream.
type sender interface {
	Send(*dv1.FromAgent) error
}

// beating sends, and has beat fire when nothing was sent for BeatEvery.
type beating struct {
	sender
	beat *time.Timer
}

func (b beating) Send(m *dv1.FromAgent) error {
	if err := b.sender.Send(m); err != nil {
		return fmt.Errorf("sending to the controller: %w", err)
	}
	b.beat.Reset(BeatEvery)
	return nil
}

// send sends, once the session is open, the rest of the inventory and what the outbox
// holds, and a beat where there is nothing else.
func (o Options) send(ctx context.Context, to sender, open <-chan struct{}, rest []*dv1.Observation) error {
	s := beating{to, time.NewTimer(BeatEvery)}
	defer s.beat.Stop()
	for n := int64(1); ; {
		var msgs []*dv1.FromAgent
		more := open
		select {
		case <-open:
			for _, obs := range rest {
				if err := s.Send(&dv1.FromAgent{Of: &dv1.FromAgent_Observation{Observation: obs}}); err != nil {
					return err
				}
			}
			rest = nil
			msgs, more = o.Outbox.take()
			if shortened, dropped := o.Outbox.losses(); shortened+dropped > 0 {
				o.Log.Warn("events were too long, or too many", "shortened", shortened, "dropped", dropped)
			}
		default:
		}
		for i, m := range msgs {
			failpoint.Here("session.send.before")
			if err := s.Send(m); err != nil {
				o.Outbox.putBack(msgs[i:])
				return err
			}
		}
		if len(msgs) > 0 {
			failpoint.Here("session.send.after")
			continue
		}
		select {
		case <-more:
		case <-s.beat.C:
			m := o.Outbox.beat(n)
			if err := s.Send(m); err != nil {
				o.Outbox.putBack([]*dv1.FromAgent{m})
				return err
			}
			n++
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (o Options) receive(ctx context.Context, s *stream, alive *time.Timer) error {
	for {
		alive.Reset(Silence)
		m, err := s.Receive()
		alive.Stop() // storing a sync does not count as the controller's silence
		if err != nil {
			return fmt.Errorf("receiving from the controller: %w", err)
		}
		switch m := m.GetOf().(type) {
		case *dv1.ToAgent_Beat:
		case *dv1.ToAgent_Changed:
			o.Agent.Changed(m.Changed)
		case *dv1.ToAgent_Sync:
			failpoint.Here("session.sync.taken")
			err := o.Agent.Take(ctx, m.Sync)
			if errors.Is(err, ErrStale) {
				o.Log.Warn("refused a sync", "epoch", m.Sync.GetEpoch(), "term", m.Sync.GetTerm(), "index", m.Sync.GetIndex(), "err", err)
				continue
			}
			if err != nil {
				return fmt.Errorf("storing a sync: %w", err)
			}
			o.Status.set(true, nil)
		default:
			return fmt.Errorf("the controller sent %T, which this agent does not know", m)
		}
	}
}

// cause prefers the reason why ctx ended to errors that follow from it.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && !errors.Is(c, context.Canceled) {
		return c
	}
	return err
}
