// Package relay lets any controller answer: what only the leader can decide or
// knows goes to it, whole or in part, and frames of sessions pass through to it.
// It decides nothing itself. What leads is consensus' to say.
package relay

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/route"
)

// What a controller asks for itself (wire.ALPNPeer) and what it passes on for its
// callers (wire.ALPNRelay) never share a connection.

// prefix of paths of wire.ALPNPeer.
const prefix = "/peer/v1/"

// StatusPath answers any controller with how far this one is, in raft's index.
const StatusPath = prefix + "status"

// ProposePath has the leader decide a command.
const ProposePath = prefix + "propose"

// Times of a relay.
const (
	patience    = 5 * time.Second // for a leader
	sessionWait = time.Second     // for a leader, before a session is refused

	electionWait = time.Second // for a leader, before an answer that needs none is given without
	dialTimeout  = 2 * time.Second
	pause        = 20 * time.Millisecond // between tries at a leader that is no more
)

// Log is what a relay needs of consensus.
type Log interface {
	Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error)
	Snapshot() *state.Snapshot
	WaitIndex(ctx context.Context, index uint64) (*state.Snapshot, error)
	LeadershipChanged() <-chan struct{}
	Leader() (addr, id string)
	Ready() bool
	IsLeader() bool
	Verify() (uint64, error)
	Applied() uint64
	Term() uint64
}

// Options of New.
type Options struct {
	Self   pki.Principal // this controller
	Log    Log
	TLS    func(id, alpn string) *tls.Config // for dialing a controller by its id
	Match  func(*http.Request) route.Route   // of the API that callers are answered by
	Logger *slog.Logger
}

// Relay knows the way to the leader. Safe for concurrent use.
type Relay struct {
	o    Options
	seen atomic.Uint64             // highest index that was answered through here
	lost atomic.Pointer[time.Time] // when the leader was lost; nil: one is known

	mu    sync.Mutex // guards the fields below
	peers map[string]*peer
	turn  chan struct{} // closed when another controller leads
}

// A lane is what a connection to another controller is for. Requests of one lane
// share what HTTP/2 lets a connection have in flight, so that a caller's request
// which is not read, or is large, holds up neither what is decided nor sessions.
type lane int

const (
	laneLog     lane = iota // proposals, and questions that answers depend on
	laneTrace               // traces
	laneSession             // frames of nodes' sessions
	laneForward             // whole requests of callers
	lanes
)

// alpn is the protocol that a lane's connection speaks.
func (l lane) alpn() string {
	if l == laneSession || l == laneForward {
		return wire.ALPNRelay
	}
	return wire.ALPNPeer
}

// peer is another controller.
type peer struct {
	addr string
	http [lanes]*http.Client
}

// New makes a Relay.
func New(o Options) *Relay { return &Relay{o: o, peers: map[string]*peer{}, turn: make(chan struct{})} }

// Close ends the connections.
func (r *Relay) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.peers {
		p.close()
	}
}

// close ends the connections on which nothing goes on.
func (p *peer) close() {
	for _, c := range p.http {
		c.CloseIdleConnections()
	}
}

// Run follows who leads, until ctx ends.
func (r *Relay) Run(ctx context.Context) error {
	last, term := "", uint64(0)
	for {
		changed := r.o.Log.LeadershipChanged()
		_, id := r.o.Log.Leader()
		if id != "" {
			r.lost.Store(nil)
		} else if now := time.Now(); r.lost.Load() == nil {
			r.lost.Store(&now)
		}
		if t := r.o.Log.Term(); id != "" && (id != last || t != term) {
			last, term = id, t
			r.mu.Lock()
			close(r.turn)
			r.turn = make(chan struct{})
			r.mu.Unlock()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// underLeader ends once another controller than id leads. That none is known is no
// reason: a follower loses sight of its leader for a moment at each hiccup, and a
// leader that is gone breaks the connection, or is followed by another.
func (r *Relay) underLeader(ctx context.Context, id string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		for {
			r.mu.Lock()
			turn := r.turn
			r.mu.Unlock()
			if _, now := r.o.Log.Leader(); now != "" && now != id {
				return
			}
			select {
			case <-turn:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, cancel
}

// leaderless is how long no leader is known, 0 if one is.
func (r *Relay) leaderless() time.Duration {
	if at := r.lost.Load(); at != nil {
		return time.Since(*at)
	}
	return 0
}

// Leads says whether this controller decides.
func (r *Relay) Leads() bool { return r.o.Log.Ready() }

// Saw notes an index that a caller was told of.
func (r *Relay) Saw(index uint64) {
	for {
		old := r.seen.Load()
		if index <= old || r.seen.CompareAndSwap(old, index) {
			return
		}
	}
}

// leader is another controller that leads, nil while there is none known.
func (r *Relay) leader() (*peer, string) {
	addr, id := r.o.Log.Leader()
	if id == "" || id == r.o.Self.ID {
		return nil, ""
	}
	return r.peer(id, addr), id
}

func (r *Relay) peer(id, addr string) *peer {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.peers[id]; p != nil && p.addr == addr {
		return p
	}
	if p := r.peers[id]; p != nil { // the controller moved
		p.close()
	}
	p := &peer{addr: addr}
	for l := range p.http {
		p.http[l] = r.client(id, addr, lane(l).alpn())
	}
	r.peers[id] = p
	return p
}

func (r *Relay) client(id, addr, alpn string) *http.Client {
	conf := r.o.TLS(id, alpn)
	return &http.Client{Transport: &http2.Transport{
		ReadIdleTimeout: 2 * time.Second, PingTimeout: time.Second,
		DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			c, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", addr)
			if err != nil {
				return nil, fmt.Errorf("dialing controller %.12s at %s: %w", id, addr, err)
			}
			return c, nil
		},
	}}
}

// refusal is a peer's answer that is no success.
type refusal struct {
	code int
	msg  string
}

func (e *refusal) Error() string { return e.msg }

func (p *peer) do(ctx context.Context, l lane, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+p.addr+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := p.http[l].Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer func() { _ = resp.Body.Close() }()
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		return nil, &refusal{resp.StatusCode, string(b)}
	}
	return resp, nil
}

func (p *peer) message(ctx context.Context, method, path string, body []byte, m proto.Message) error {
	resp, err := p.do(ctx, laneLog, method, path, body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return err
	}
	return proto.Unmarshal(b, m)
}

// Propose has the leader decide, wherever it is, and returns once the entry is
// applied here. Without a key a command is repeated only while it surely was not
// decided. consensus.ErrRetry: it may have been.
func (r *Relay) Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	res, err := r.decided(ctx, c)
	if err != nil {
		return nil, err
	}
	r.Saw(res.GetIndex())
	soon, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if _, err := r.o.Log.WaitIndex(soon, res.GetIndex()); err != nil {
		return nil, fmt.Errorf("%w: it was decided, but has not reached this controller: %w", consensus.ErrRetry, err)
	}
	return res, nil
}

// Own is Propose in this controller's own name.
func (r *Relay) Own(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	c.Principal = r.o.Self.URI
	return r.Propose(ctx, c)
}

// decided asks whoever leads until one has decided.
func (r *Relay) decided(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	enough := time.NewTimer(patience)
	defer enough.Stop()
	maybe := false // it was decided
	for {
		changed := r.o.Log.LeadershipChanged()
		res, err := r.propose(ctx, c)
		maybe = maybe || errors.Is(err, consensus.ErrRetry)
		again := errors.Is(err, consensus.ErrNotLeader) || errors.Is(err, consensus.ErrRetry) && c.GetKey() != ""
		if !again || ctx.Err() != nil {
			return res, err
		}
		select {
		case <-changed:
		case <-time.After(pause):
		case <-enough.C:
			if maybe {
				return nil, fmt.Errorf("%w; %w (%w)", fleet.ErrNoLeader, fleet.ErrUndecided, consensus.ErrRetry)
			}
			return nil, fleet.ErrNoLeader
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (r *Relay) propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	if r.o.Log.IsLeader() {
		return r.o.Log.Propose(ctx, c)
	}
	p, id := r.leader()
	if p == nil {
		return nil, consensus.ErrNotLeader
	}
	ctx, cancel := r.underLeader(ctx, id)
	defer cancel()
	b, err := proto.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encoding a command: %w", err)
	}
	res := &dv1.CommandResult{}
	err = p.message(ctx, http.MethodPost, ProposePath, b, res)
	var no *refusal
	switch {
	case err == nil:
		return res, nil
	case errors.As(err, &no) && no.code == http.StatusMisdirectedRequest:
		return nil, fmt.Errorf("%w: %s", consensus.ErrNotLeader, no.msg)
	case errors.As(err, &no) && no.code == http.StatusConflict:
		return nil, consensus.ErrKeyReused
	case errors.As(err, &no) && no.code == http.StatusInternalServerError:
		return nil, errors.New(no.msg)
	}
	return nil, fmt.Errorf("%w: %w", consensus.ErrRetry, err) // it may have been decided
}
