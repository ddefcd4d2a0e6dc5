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

// fleet holds who belongs to this node's fleet, as the control plane last said, and the
// connections to and from its members. It is kept on disk, so that revoked identities
// stay out even while no controller answers.
type fleet struct {
	path     string
	log      *slog.Logger
	now      atomic.Pointer[roster.Roster]
	accepted pki.Conns // accepted connections: members only
	dialed   pki.Conns // dialed connections: any identity that is not revoked

	mu sync.Mutex // held while a roster is applied, which orders updates
}

func openFleet(dir string, log *slog.Logger) *fleet {
	f := &fleet{path: filepath.Join(dir, "roster"), log: log}
	f.accepted.Verify, f.dialed.Verify = f.known, f.notRevoked
	b, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return f
	}
	var r *roster.Roster
	if err == nil {
		r, err = roster.Unmarshal(b)
	}
	if err != nil { // nobody is accepted before a controller has sent the roster
		log.Warn("the roster can't be read: nobody is accepted until a controller sends one", "file", f.path, "err", err)
		return f
	}
	f.now.Store(r)
	return f
}

func (f *fleet) known(p pki.Principal) error      { return f.now.Load().Known(p) }
func (f *fleet) notRevoked(p pki.Principal) error { return f.now.Load().NotRevoked(p) }

// addr returns a member's own port, "" if the host is not a member.
func (f *fleet) addr(uri string) string { return f.now.Load().Addr(uri) }

// take applies an update at once: connections of identities that may no longer be here
// are cut.
func (f *fleet) take(news *dv1.Roster) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, changed := f.now.Load().Apply(news)
	if !changed {
		return
	}
	f.now.Store(r)
	f.accepted.Cut()
	f.dialed.Cut()
	b, err := r.Marshal()
	if err == nil {
		err = durable.WriteFile(f.path, b, 0o600)
	}
	if err != nil { // it is valid until this agent ends; the next one is sent it again
		f.log.Warn("the roster can't be stored", "err", err)
	}
}
