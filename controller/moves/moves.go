// Package moves copies the data of volumes from node to node, for as long as whoever asked for
// it waits. That nobody uses a volume meanwhile, and what it is afterwards, is decided by
// command; how files travel is the agents'.
package moves

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
)

// Fleet is what a Mover needs of the fleet.
type Fleet interface {
	fleet.Nodes
	// State returns a state at least as new as an index.
	State(ctx context.Context, least uint64) (*state.Snapshot, error)
	Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error)
}

// Options of New. All are required.
type Options struct {
	Fleet Fleet
	Self  string // URI of this controller
	// Snapshot is of this controller's own log.
	Snapshot func() *state.Snapshot
	Grant    func(node, what string) ([]byte, error)
	Logger   *slog.Logger
}

// Mover moves volumes. Safe for concurrent use.
type Mover struct {
	o   Options
	due chan struct{} // signalled when a move may have nobody who drives it

	mu     sync.Mutex      // guards driven
	driven map[string]bool // ids of the copies that this controller drives
}

// New returns a Mover whose Run is the leader's.
func New(o Options) *Mover {
	return &Mover{o: o, due: make(chan struct{}, 1), driven: map[string]bool{}}
}

const (
	retryAfter = time.Second      // before a move is given up again, if that failed
	endWithin  = 10 * time.Second // to end a move
)

// Move begins a move with begin, whose entry names the id of the copy, copies the data, and
// ends the move: the volume is on the other node then, or as it was. progress is called with
// how many bytes of about how many are written. When ctx ends before, the move is given up.
func (m *Mover) Move(ctx context.Context, volume, copied []byte, begin func() (*dv1.CommandResult, error), progress func(written, total int64)) error {
	m.drive(copied, true)
	defer func() {
		m.drive(copied, false)
		m.wake() // the end of the move may have failed
	}()
	res, err := begin()
	if err != nil {
		return err
	}
	err = m.copy(ctx, volume, copied, res.GetIndex(), progress)
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWithin)
	defer cancel()
	if err != nil {
		return errors.Join(err, m.end(end, volume, copied, false))
	}
	if err = m.end(end, volume, copied, true); err == nil {
		return nil
	}
	err = errors.Join(err, m.end(end, volume, copied, false))
	if snap, unread := m.o.Fleet.State(end, 0); unread == nil && snap.Volume(copied) != nil {
		return nil // only its answer was lost
	}
	return err
}

func (m *Mover) drive(copied []byte, on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if on {
		m.driven[string(copied)] = true
	} else {
		delete(m.driven, string(copied))
	}
}

func (m *Mover) wake() {
	select {
	case m.due <- struct{}{}:
	default:
	}
}

func (m *Mover) end(ctx context.Context, volume, copied []byte, done bool) error {
	res, err := m.o.Fleet.Propose(ctx, &dv1.Command{Principal: m.o.Self, Of: &dv1.Command_EndMove{EndMove: &dv1.EndMove{VolumeId: volume, CopyId: copied, Copied: done}}})
	if err == nil && res.GetError() != nil {
		err = errors.New(res.Error.Message)
	}
	if err != nil {
		return fmt.Errorf("ending the move of a volume: %w", err)
	}
	return nil
}

// copy has the other node fetch the data.
func (m *Mover) copy(ctx context.Context, volume, copied []byte, index uint64, progress func(written, total int64)) error {
	snap, err := m.o.Fleet.State(ctx, index)
	if err != nil {
		return err
	}
	v := snap.Volume(volume)
	if string(v.GetMoving().GetCopyId()) != string(copied) {
		return errors.New("the move was given up")
	}
	from, to := snap.Node(v.Home), v.Moving.To
	if from == nil {
		return fmt.Errorf("the node with volume %s was removed", v.Name)
	}
	what := bulk.GrantOfVolume(hex.EncodeToString(volume))
	g, err := m.o.Grant(to, what)
	if err != nil {
		return err
	}
	body, err := json.Marshal(bulk.VolumeFetch{ID: hex.EncodeToString(volume), Addr: from.Addr, Grant: g})
	if err != nil {
		return fmt.Errorf("asking for a copy of volume %s: %w", v.Name, err)
	}
	resp, err := fleet.Ask(ctx, m.o.Fleet, to, http.MethodPost, "/v1/volumes/"+hex.EncodeToString(copied)+"/fetch", body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode >= 300 {
		return fmt.Errorf("copying volume %s to node %s: %s", v.Name, to, fleet.Refusal(resp))
	}
	if err := follow(resp.Body, progress); err != nil {
		return fmt.Errorf("copying volume %s from node %s to node %s: %w", v.Name, from.Name, nameOf(snap, to), err)
	}
	return nil
}

func nameOf(snap *state.Snapshot, node string) string {
	if n := snap.Node(node); n != nil {
		return n.Name
	}
	return node
}

// maxLine bounds a line of a node's answer.
const maxLine = 64 << 10

// follow reads a node's lines up to the one that says that it has all.
func follow(r io.Reader, progress func(written, total int64)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var l bulk.VolumeLine
		switch err := json.Unmarshal(lines.Bytes(), &l); {
		case err != nil:
			return fmt.Errorf("its answer: %w", err)
		case l.Error != "":
			return errors.New(l.Error)
		case l.Done:
			return nil
		}
		progress(l.Written, l.Total)
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}

// Committed is called with each entry's effects, once they are in the state. It never
// blocks.
func (m *Mover) Committed(effects []*dv1.Effect) {
	for _, e := range effects {
		if e.GetVolume().GetMoving() != nil {
			m.wake()
			return
		}
	}
}

// Run serves one term of this controller's leadership, until ctx is done: moves that it
// does not drive are given up. Who drove them was a leader before, or is gone.
func (m *Mover) Run(ctx context.Context) error {
	wake := time.NewTimer(0)
	defer wake.Stop()
	for {
		select {
		case <-m.due:
		case <-wake.C:
		case <-ctx.Done():
			return nil
		}
		if err := m.giveUp(ctx); err != nil && ctx.Err() == nil {
			m.o.Logger.Warn("giving up a move failed, retrying", "after", retryAfter, "err", err)
			wake.Reset(retryAfter)
		}
	}
}

func (m *Mover) giveUp(ctx context.Context) error {
	var failed error
	for v := range m.o.Snapshot().Volumes() {
		if v.Moving == nil {
			continue
		}
		m.mu.Lock()
		driven := m.driven[string(v.Moving.CopyId)]
		m.mu.Unlock()
		if !driven {
			m.o.Logger.Info("a move is given up: nobody drives it", "volume", v.Name, "to", v.Moving.To)
			failed = errors.Join(failed, m.end(ctx, v.Id, v.Moving.CopyId, false))
		}
	}
	return failed
}
