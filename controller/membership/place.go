package membership

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/drover/drover/controller/peer"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
)

// ErrRemoved reports that this controller was taken out of its fleet.
var ErrRemoved = errors.New("this controller was removed from its fleet")

// Parting is how long a removed controller still answers, so that who removed it is
// told.
const Parting = time.Second

// Times of asking others.
const (
	placeEvery  = 3 * time.Second // between questions, without a leader
	placeWithin = 2 * time.Second // for all the others to answer one
)

// PlaceOptions of NewPlace.
type PlaceOptions struct {
	Files      *pki.Files // this controller's
	DataDir    string
	Addr       string // host:port where others dial this controller
	Log        Log
	NotRevoked pki.Verify // refuses controllers that are known here to be revoked
	Logger     *slog.Logger
}

// Place is this controller's place in the quorum as the others have it: whether it is
// still one, and where it is reached. Safe for concurrent use.
type Place struct {
	o       PlaceOptions
	removed chan struct{} // closed when the log has removed this controller
	once    sync.Once
	every   time.Duration // placeEvery; tests have less
}

// NewPlace returns a Place whose Run and KeepAddress are to be run.
func NewPlace(o PlaceOptions) *Place {
	return &Place{o: o, removed: make(chan struct{}), every: placeEvery}
}

// Committed is called with each entry's effects. It never blocks.
func (p *Place) Committed(effects []*dv1.Effect) {
	for _, e := range effects {
		if e.GetDeleteController() == p.o.Files.Principal.ID {
			p.once.Do(func() { close(p.removed) })
		}
	}
}

// Run returns ErrRemoved once this controller was removed, nil when ctx ends. One that
// was removed while it was off, or cut off, asks the others: the entry that did it is
// sent to members only, and so never comes here.
func (p *Place) Run(ctx context.Context) error {
	t := time.NewTicker(p.every)
	defer t.Stop()
	by := ""
	for {
		select {
		case <-p.removed:
			select {
			case <-time.After(Parting):
				return ErrRemoved
			case <-ctx.Done():
				return nil
			}
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
		before := by
		if by = ""; p.leaderless() {
			by = p.removedBy(ctx)
		}
		// Twice: in an election nobody has a leader for a moment.
		if by != "" && before != "" {
			p.o.Logger.Warn("this controller was removed while it could not see it", "told by", by)
			return ErrRemoved
		}
	}
}

func (p *Place) leaderless() bool {
	_, leader := p.o.Log.Leader()
	return leader == ""
}

// verdict is what one controller says of this one. Without a leader it may know no more
// than this one, and is not known: those that were removed together, while they were
// cut off together, would vouch for each other for ever.
type verdict struct {
	by             string
	known, removed bool
}

// judge returns who says that this controller was removed, "" if nobody does or somebody
// still knows it.
func judge(all []verdict) (by string) {
	for _, v := range all {
		if v.known {
			return ""
		}
		if v.removed {
			by = v.by
		}
	}
	return by
}

// removedBy asks every controller that is known here whether this one still is one.
func (p *Place) removedBy(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, placeWithin)
	defer cancel()
	var mu sync.Mutex
	var all []verdict
	var asked sync.WaitGroup
	for addr := range p.others() {
		asked.Go(func() {
			v := p.askPlace(ctx, addr)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, v)
		})
	}
	asked.Wait()
	return judge(all)
}

func (p *Place) askPlace(ctx context.Context, addr string) verdict {
	a, err := p.ask(ctx, addr, http.MethodGet, peer.StatusPath, nil)
	if err != nil {
		return verdict{by: addr}
	}
	return verdict{by: addr, known: a.code == http.StatusOK && a.header.Get(wire.HeaderLeader) != "", removed: a.header.Get(wire.HeaderRemoved) == "true"}
}

// others are where controllers were when this one last heard: by its state, which
// may be old, and by what its host's agent was told.
func (p *Place) others() map[string]bool {
	addrs := map[string]bool{}
	for m := range p.o.Log.Snapshot().Controllers() {
		addrs[m.Addr] = true
	}
	if f := p.o.Log.Raft().GetConfiguration(); f.Error() == nil {
		for _, s := range f.Configuration().Servers {
			addrs[string(s.Address)] = true
		}
	}
	if h, err := identity.Load(p.o.DataDir); err == nil {
		for _, a := range h.Controllers {
			addrs[a] = true
		}
	}
	delete(addrs, p.o.Addr)
	delete(addrs, "")
	return addrs
}
