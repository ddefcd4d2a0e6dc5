package controller

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/drover/drover/controller/bootstrap"
	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/durable"
)

// RecoveryKeyFile is where the recovery key waits to be shown. Who shows it
// deletes it.
func RecoveryKeyFile(runDir string) string { return filepath.Join(runDir, "recovery-key") }

// unseal commits what bootstrap made, if that is still to be done, proves that
// this controller can open what is sealed, and sees to a recovery key. Each step
// may be cut off and done again.
func (c *controller) unseal(ctx context.Context, now func() *state.Snapshot, propose proposer) (*bootstrap.DataKey, error) {
	init, err := bootstrap.Pending(c.DataDir)
	if err != nil {
		return nil, err
	}
	file := RecoveryKeyFile(c.RunDir)
	if init != nil {
		if now().Cluster() == nil {
			// Of another cluster: taking it for this one's would lose this one's.
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("removing an old recovery key: %w", err)
			}
		}
		r, err := propose(ctx, init)
		if err != nil {
			return nil, fmt.Errorf("committing the new cluster: %w", err)
		}
		if e := r.GetError(); e != nil {
			return nil, fmt.Errorf("committing the new cluster: %s", e.GetMessage())
		}
	}
	snap := now()
	cluster := snap.Cluster()
	if cluster == nil {
		return nil, fmt.Errorf("the log in %s holds no cluster, and there is no bootstrap to make one of", c.DataDir)
	}
	if cluster.GetId() != c.files.Principal.Cluster {
		return nil, fmt.Errorf("the log in %s is of cluster %s, this host's identity of %s", c.DataDir, cluster.GetId(), c.files.Principal.Cluster)
	}
	wrap := c.wrap(snap)
	if wrap == nil {
		return nil, errors.New("unsealing: the log holds no data key for this controller")
	}
	key, err := bootstrap.Unwrap(wrap, c.files.Seal)
	if err != nil {
		return nil, fmt.Errorf("unsealing with the key in %s: %w", c.files.Dir, err)
	}
	shown := ""
	// While the bootstrap is pending, a wrap may be there whose key nobody saw.
	if init != nil || snap.Sealed(bootstrap.RecoveryName) == nil && only(snap) {
		if shown, err = c.recoveryKey(ctx, file, key, snap.Sealed(bootstrap.RecoveryName) != nil, propose); err != nil {
			return nil, err
		}
	}
	if init != nil {
		if err := bootstrap.Done(c.DataDir); err != nil {
			return nil, err
		}
	}
	if shown != "" {
		if _, err := fmt.Fprintf(c.Stdout, "recovery key: %s\n", shown); err != nil {
			c.Logger.Warn("the recovery key could not be printed", "file", file, "err", err)
		}
	}
	return key, nil
}

// only says whether there is one controller: the others leave the recovery key to it.
func only(s *state.Snapshot) bool {
	n := 0
	for range s.Controllers() {
		n++
	}
	return n <= 1
}

type proposer = func(context.Context, *dv1.Command) (*dv1.CommandResult, error)

// wrap is the data key as this controller can open it.
func (c *controller) wrap(s *state.Snapshot) *dv1.Sealed {
	return s.Sealed(command.WrapName(s.Sealed(command.AuthorityName).GetDataKey(), c.files.Principal.ID))
}

// recoveryKey gives the key to be shown. The file is written after the commit,
// so a file beside a committed wrap holds its key.
func (c *controller) recoveryKey(ctx context.Context, file string, key *bootstrap.DataKey, committed bool, propose proposer) (string, error) {
	if b, err := os.ReadFile(file); err == nil && committed {
		return strings.TrimSpace(string(b)), nil
	}
	text, err := bootstrap.Recovery(ctx, key, propose)
	if err != nil {
		return "", err
	}
	if err := durable.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("keeping the recovery key to be shown: %w", err)
	}
	return text, nil
}
