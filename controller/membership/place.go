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

// ErrRemoved reports that this controller was removed from its fleet.
var ErrRemoved = errors.New("this controller was removed from its fleet")

// Parting is how long a removed controller still answers, so that the caller that
// removed it gets a response.
const Parting = time.Second

// Timing of questions to other controllers.
const (
	placeEvery  = 3 * time.Second // between questions, without a leader
	placeWithin = 2 * time.Second // for all others to answer a question
)

// PlaceOptions configures NewPlace.
type PlaceOptions struct {
	Files      *pki.Files // this controller's
	DataDir    string
	Addr       string // host:port where others dial this controller
	Log        Log
	NotRevoked pki.Verify // refuses controllers that are known here as revoked
	Logger     *slog.Logger
}

// Place is this controller's place in the quorum according to the others: whether it
// is still a member, and at which address. It is safe for concurrent use.
type Place struct {
	o       PlaceOptions
	removed chan struct{} // closed when the log has removed this controller
	once    sync.Once
	every   time.Duration // placeEvery; shorter in tests
}

// NewPlace returns a Place. The caller must run its Run and Announce.
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

// Run returns ErrRemoved once this controller is removed, nil when ctx is done. A
// controller that was removed while it was down, or partitioned, asks the others:
// the entry that removed it is sent to members only, and so never reaches it.
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
		// Ask twice: during an election nobody has a leader for a moment.
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

// verdict is one controller's answer about this one. An answerer without a leader
// may know no more than this one, so its "known" doesn't count: otherwise
// controllers that were removed together, while partitioned together, would vouch
// for each other forever.
type verdict struct {
	by             string
	known, removed bool
}

// judge returns a controller that reports this one as removed, "" if there is none
// or another still knows it.
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

// removedBy asks every known controller whether this one is still a member.
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

// others returns the last known addresses of the other controllers: from this one's
// state, which may be outdated, and from what its host's agent was sent.
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
