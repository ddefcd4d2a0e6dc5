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
	"github.com/drover/drover/pkg/durable"
)

// RecoveryKeyFile is where the recovery key waits to be shown. Who shows it
// deletes it.
func RecoveryKeyFile(runDir string) string { return filepath.Join(runDir, "recovery-key") }

// unseal commits what bootstrap made, if that is still to be done, proves that
// this controller can open what is sealed, and sees to a recovery key. Each step
// may be cut off and done again.
func (c *controller) unseal(ctx context.Context, log *patientLog) error {
	init, err := bootstrap.Pending(c.DataDir)
	if err != nil {
		return err
	}
	file := RecoveryKeyFile(c.RunDir)
	if init != nil {
		if log.Snapshot().Cluster() == nil {
			// Of another cluster: taking it for this one's would lose this one's.
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("removing an old recovery key: %w", err)
			}
		}
		r, err := log.Propose(ctx, init)
		if err != nil {
			return fmt.Errorf("committing the new cluster: %w", err)
		}
		if e := r.GetError(); e != nil {
			return fmt.Errorf("committing the new cluster: %s", e.GetMessage())
		}
	}
	snap := log.Snapshot()
	cluster := snap.Cluster()
	if cluster == nil {
		return fmt.Errorf("the log in %s holds no cluster, and there is no bootstrap to make one of", c.DataDir)
	}
	if cluster.GetId() != c.files.Principal.Cluster {
		return fmt.Errorf("the log in %s is of cluster %s, this host's identity of %s", c.DataDir, cluster.GetId(), c.files.Principal.Cluster)
	}
	name := "data-key/" + snap.Sealed("ca-key").GetDataKey() + "/" + c.files.Principal.ID
	wrap := snap.Sealed(name)
	if wrap == nil {
		return fmt.Errorf("unsealing: the log holds no %s", name)
	}
	key, err := bootstrap.Unwrap(wrap, c.files.Seal)
	if err != nil {
		return fmt.Errorf("unsealing with the key in %s: %w", c.files.Dir, err)
	}
	shown := ""
	// While the bootstrap is pending, a wrap may be there whose key nobody saw.
	if snap.Sealed(bootstrap.RecoveryName) == nil || init != nil {
		if shown, err = c.recoveryKey(ctx, file, key, snap.Sealed(bootstrap.RecoveryName) != nil, log); err != nil {
			return err
		}
	}
	if init != nil {
		if err := bootstrap.Done(c.DataDir); err != nil {
			return err
		}
	}
	if shown != "" {
		if _, err := fmt.Fprintf(c.Stdout, "recovery key: %s\n", shown); err != nil {
			c.Logger.Warn("the recovery key could not be printed", "file", file, "err", err)
		}
	}
	return nil
}

// recoveryKey gives the key to be shown. The file is written after the commit,
// so a file beside a committed wrap holds its key.
func (c *controller) recoveryKey(ctx context.Context, file string, key *bootstrap.DataKey, committed bool, log *patientLog) (string, error) {
	if b, err := os.ReadFile(file); err == nil && committed {
		return strings.TrimSpace(string(b)), nil
	}
	text, err := bootstrap.Recovery(ctx, key, log.Propose)
	if err != nil {
		return "", err
	}
	if err := durable.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("keeping the recovery key to be shown: %w", err)
	}
	return text, nil
}
