package agent

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/durable"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/roster"
)

// fleet is who belongs to this node's fleet, as the control plane said last, and
// the connections that stand on it. It is on disk, so that who was revoked stays
// out while no controller answers.
type fleet struct {
	path    string
	log     *slog.Logger
	now     atomic.Pointer[roster.Roster]
	guests  pki.Conns // who came: members only
	visited pki.Conns // whom we called: all that are not revoked

	mu sync.Mutex // held while a roster is taken, so that they follow each other
}

func openFleet(dir string, log *slog.Logger) *fleet {
	f := &fleet{path: filepath.Join(dir, "roster"), log: log}
	f.guests.Verify, f.visited.Verify = f.known, f.notRevoked
	b, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return f
	}
	var r *roster.Roster
	if err == nil {
		r, err = roster.Unmarshal(b)
	}
	if err != nil { // nobody is let in before a controller says who may
		log.Warn("who belongs to the fleet is not known until a controller answers", "file", f.path, "err", err)
		return f
	}
	f.now.Store(r)
	return f
}

func (f *fleet) known(p pki.Principal) error      { return f.now.Load().Known(p) }
func (f *fleet) notRevoked(p pki.Principal) error { return f.now.Load().NotRevoked(p) }

// addr is where a member's own port is, "" if it isn't one.
func (f *fleet) addr(uri string) string { return f.now.Load().Addr(uri) }

// take has news count at once: connections of who may be here no longer are cut.
func (f *fleet) take(news *dv1.Roster) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, changed := f.now.Load().Apply(news)
	if !changed {
		return
	}
	f.now.Store(r)
	f.guests.Cut()
	f.visited.Cut()
	b, err := r.Marshal()
	if err == nil {
		err = durable.WriteFile(f.path, b, 0o600)
	}
	if err != nil { // it counts until this agent ends; the next one is told anew
		f.log.Warn("who belongs to the fleet could not be kept", "err", err)
	}
}
