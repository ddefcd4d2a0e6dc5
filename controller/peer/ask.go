package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/fleet"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// askWithin bounds a question to the leader that has an answer without it.
const askWithin = time.Second

// Query asks the leader for what agents reported to it. It fails at once without one.
func (ps *Peers) Query(ctx context.Context, q *dv1.Query) (*dv1.Digest, error) {
	p, _ := ps.leader()
	if p == nil {
		return nil, fleet.ErrNoLeader
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	b, err := proto.Marshal(q)
	if err != nil {
		return nil, fmt.Errorf("encoding a query: %w", err)
	}
	d := &dv1.Digest{}
	if err := p.message(ctx, http.MethodPost, prefix+"observe", b, d); err != nil {
		return nil, err
	}
	return d, nil
}

// Watch follows a task at the leader until done says so, with nil, or ctx ends.
func (ps *Peers) Watch(ctx context.Context, taskID string, done func(*dv1.TaskView) bool) error {
	for ctx.Err() == nil {
		changed := ps.o.Log.LeadershipChanged()
		if p, id := ps.leader(); p != nil {
			if err := ps.watch(ctx, p, id, taskID, done); err == nil {
				return nil
			}
		}
		select {
		case <-changed:
		case <-ps.retry():
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// watch follows a task at one controller, until another one leads.
func (ps *Peers) watch(ctx context.Context, p *peer, id, taskID string, done func(*dv1.TaskView) bool) error {
	ctx, cancel := ps.underLeader(ctx, id)
	defer cancel()
	resp, err := p.do(ctx, laneLog, http.MethodGet, prefix+"tasks/"+taskID, nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	return views(resp.Body, done)
}

func views(r io.Reader, done func(*dv1.TaskView) bool) error {
	for {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > 1<<20 {
			return errors.New("a view of a task is too long")
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		v := &dv1.TaskView{}
		if err := proto.Unmarshal(b, v); err != nil {
			return err
		}
		if done(v) {
			return nil
		}
	}
}

// gatherWithin bounds what other controllers are waited for.
const gatherWithin = time.Second

// Gather asks every other controller for path, and gives what answers.
func (ps *Peers) Gather(ctx context.Context, path string) (out [][]byte) {
	ctx, cancel := context.WithTimeout(ctx, gatherWithin)
	defer cancel()
	var mu sync.Mutex
	var all sync.WaitGroup
	for c := range ps.o.Log.Snapshot().Controllers() {
		if c.Id == ps.o.Self.ID {
			continue
		}
		all.Go(func() {
			resp, err := ps.peer(c.Id, c.Addr).do(ctx, laneTrace, http.MethodGet, prefix+path, nil)
			if err != nil {
				return
			}
			defer func() { _ = resp.Body.Close() }()
			if b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20)); err == nil {
				mu.Lock()
				defer mu.Unlock()
				out = append(out, b)
			}
		})
	}
	all.Wait()
	return out
}

// Status asks a controller how far it is, in raft's index.
func (ps *Peers) Status(ctx context.Context, id, addr string) (uint64, error) {
	resp, err := ps.peer(id, addr).do(ctx, laneLog, http.MethodGet, StatusPath, nil)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 32))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(string(b), 10, 64)
}

// Clock asks a controller for its time, to the second.
func (ps *Peers) Clock(ctx context.Context, id, addr string) (time.Time, error) {
	resp, err := ps.peer(id, addr).do(ctx, laneLog, http.MethodGet, StatusPath, nil)
	if err != nil {
		return time.Time{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	t, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the time of controller %.12s: %w", id, err)
	}
	return t, nil
}
