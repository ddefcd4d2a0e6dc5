// Package peer is how controllers reach each other: who leads, connections to the
// others by what they are for, and what passes over them: commands and questions,
// whole requests of callers, and frames of sessions. It decides nothing itself.
package peer

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
	"strings"
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
)

// What a controller asks for itself (wire.ALPNPeer) and what it passes on for its
// callers (wire.ALPNRelay) never share a connection.

// prefix of paths of wire.ALPNPeer.
const prefix = "/peer/v1/"

// StatusPath answers any controller with how far this one is, in raft's index.
const StatusPath = prefix + "status"

// ProposePath has the leader decide a command.
const ProposePath = prefix + "propose"

// How long is waited for a leader, and for a connection.
const (
	patience    = 5 * time.Second
	sessionWait = time.Second // before a session is refused
	dialTimeout = 2 * time.Second
	pause       = 20 * time.Millisecond // between tries at a leader that is known and doesn't answer
)

// Log is what Peers need of consensus.
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
	Logger *slog.Logger
	// Contact is the node on this controller's host, which callers mean who name none.
	Contact string
}

// Peers are the other controllers. Safe for concurrent use.
type Peers struct {
	o    Options
	seen atomic.Uint64             // highest index that was answered through here
	lost atomic.Pointer[time.Time] // when the leader was lost; nil: one is known

	mu    sync.Mutex // guards the fields below
	peers map[string]*peer
	turn  chan struct{} // closed when another controller leads
}

// A lane is what connections to another controller are for. Requests of one lane
// share what HTTP/2 lets a connection have in flight, so that a caller's request
// which is not read, or is large, holds up neither what is decided nor sessions.
type lane int

const (
	laneLog     lane = iota // proposals, and questions that answers depend on
	laneTrace               // traces
	laneForward             // whole requests of callers
	laneStream              // those whose bodies are streamed
	lanes
)

// alpn is the protocol that a lane's connection speaks.
func (l lane) alpn() string {
	if l == laneLog || l == laneTrace {
		return wire.ALPNPeer
	}
	return wire.ALPNRelay
}

// peer is another controller. Frames of nodes' sessions pass over connections of their
// own.
type peer struct {
	addr     string
	http     [lanes]*http.Client
	sessions *shared
}

// New makes Peers; Run them.
func New(o Options) *Peers { return &Peers{o: o, peers: map[string]*peer{}, turn: make(chan struct{})} }

// Close ends the connections.
func (ps *Peers) Close() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.peers {
		p.close()
	}
}

// close ends the connections on which nothing goes on.
func (p *peer) close() {
	for _, c := range p.http {
		c.CloseIdleConnections()
	}
	p.sessions.close()
}

// Run follows who leads, until ctx ends.
func (ps *Peers) Run(ctx context.Context) error {
	last, term := "", uint64(0)
	for {
		changed := ps.o.Log.LeadershipChanged()
		_, id := ps.o.Log.Leader()
		if id != "" {
			ps.lost.Store(nil)
		} else if now := time.Now(); ps.lost.Load() == nil {
			ps.lost.Store(&now)
		}
		if t := ps.o.Log.Term(); id != "" && (id != last || t != term) {
			last, term = id, t
			ps.mu.Lock()
			close(ps.turn)
			ps.turn = make(chan struct{})
			ps.mu.Unlock()
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
func (ps *Peers) underLeader(ctx context.Context, id string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		for {
			ps.mu.Lock()
			turn := ps.turn
			ps.mu.Unlock()
			if _, now := ps.o.Log.Leader(); now != "" && now != id {
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

// Leaderless is how long no leader is known, 0 if one is.
func (ps *Peers) Leaderless() time.Duration {
	if at := ps.lost.Load(); at != nil {
		return time.Since(*at)
	}
	return 0
}

// Leads says whether this controller decides.
func (ps *Peers) Leads() bool { return ps.o.Log.Ready() }

// Saw notes an index that a caller was told of.
func (ps *Peers) Saw(index uint64) {
	for {
		old := ps.seen.Load()
		if index <= old || ps.seen.CompareAndSwap(old, index) {
			return
		}
	}
}

// Seen is the highest index that was answered through here.
func (ps *Peers) Seen() uint64 { return ps.seen.Load() }

// Leader reports whether a leader is known. changed is closed once that may be
// different.
func (ps *Peers) Leader() (known bool, changed <-chan struct{}) {
	changed = ps.o.Log.LeadershipChanged()
	if ps.Leads() {
		return true, changed
	}
	p, _ := ps.leader()
	return p != nil, changed
}

// retry fires when a leader that is known and did not answer may be asked again. One
// that isn't known yet is worth nothing but the wait for it to be.
func (ps *Peers) retry() <-chan time.Time {
	if known, _ := ps.Leader(); known || ps.o.Log.IsLeader() {
		return time.After(pause)
	}
	return nil
}

// leader is another controller that leads, nil while there is none known.
func (ps *Peers) leader() (*peer, string) {
	addr, id := ps.o.Log.Leader()
	if id == "" || id == ps.o.Self.ID {
		return nil, ""
	}
	return ps.peer(id, addr), id
}

func (ps *Peers) peer(id, addr string) *peer {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.peers[id]; p != nil && p.addr == addr {
		return p
	}
	if p := ps.peers[id]; p != nil { // the controller moved
		p.close()
	}
	p := &peer{addr: addr, sessions: &shared{dial: func() *http.Client { return ps.client(id, addr, wire.ALPNRelay) }}}
	for l := range p.http {
		p.http[l] = ps.client(id, addr, lane(l).alpn())
	}
	ps.peers[id] = p
	return p
}

func (ps *Peers) client(id, addr, alpn string) *http.Client {
	conf := ps.o.TLS(id, alpn)
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
func (ps *Peers) Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	res, err := ps.decided(ctx, c)
	if err != nil {
		return nil, err
	}
	ps.Saw(res.GetIndex())
	soon, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if _, err := ps.o.Log.WaitIndex(soon, res.GetIndex()); err != nil {
		return nil, fmt.Errorf("%w: it was decided, but has not reached this controller: %w", consensus.ErrRetry, err)
	}
	return res, nil
}

// Own is Propose in this controller's own name.
func (ps *Peers) Own(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	c.Principal = ps.o.Self.URI
	return ps.Propose(ctx, c)
}

// decided asks whoever leads until one has decided.
func (ps *Peers) decided(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	enough := time.NewTimer(patience)
	defer enough.Stop()
	maybe := false // it was decided
	for {
		changed := ps.o.Log.LeadershipChanged()
		res, err := ps.propose(ctx, c)
		maybe = maybe || errors.Is(err, consensus.ErrRetry)
		again := errors.Is(err, consensus.ErrNotLeader) || errors.Is(err, consensus.ErrRetry) && c.GetKey() != ""
		if !again || ctx.Err() != nil {
			return res, err
		}
		select {
		case <-changed:
		case <-ps.retry():
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

func (ps *Peers) propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	if ps.o.Log.IsLeader() {
		return ps.o.Log.Propose(ctx, c)
	}
	p, id := ps.leader()
	if p == nil {
		return nil, consensus.ErrNotLeader
	}
	ctx, cancel := ps.underLeader(ctx, id)
	defer cancel()
	b, err := proto.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encoding a command: %w", err)
	}
	if len(b) > maxCommand {
		return &dv1.CommandResult{Error: &dv1.Error{
			Kind: dv1.Error_INVALID, Message: fmt.Sprintf("the request has %d bytes, more than the %d that a command may have", len(b), maxCommand),
		}}, nil
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
	case errors.As(err, &no) && (no.code/100 == 4 || no.code == http.StatusInternalServerError):
		return nil, errors.New(strings.TrimSpace(no.msg)) // refused, not lost
	}
	return nil, fmt.Errorf("%w: %w", consensus.ErrRetry, err) // it may have been decided
}
