package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/state"
	"github.com/drover/drover/controller/vault"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/durable"
	"github.com/drover/drover/pkg/pki"
)

// RecoveryKeyFile returns where the recovery key is kept until it is shown. Whoever
// shows it deletes the file.
func RecoveryKeyFile(runDir string) string { return filepath.Join(runDir, "recovery-key") }

// UnsealOptions configures Unseal.
type UnsealOptions struct {
	DataDir, RunDir string
	Files           *pki.Files // the controller's
	Snapshot        func() *state.Snapshot
	Propose         func(context.Context, *dv1.Command) (*dv1.CommandResult, error) // relays to the leader
	Stdout          io.Writer                                                       // the recovery key is printed here, once
	Logger          *slog.Logger
}

// Unseal commits what Up created, if it isn't committed yet, verifies that this
// controller can open sealed values, and creates the recovery key if there is none.
// Each step can be interrupted and repeated. The log must be readable.
func Unseal(ctx context.Context, o UnsealOptions) (*vault.Vault, error) {
	init, err := Pending(o.DataDir)
	if err != nil {
		return nil, err
	}
	if init != nil {
		if err := commit(ctx, init, o); err != nil {
			return nil, fmt.Errorf("committing the new cluster: %w", err)
		}
	}
	v, err := vault.Open(o.Files, o.Snapshot)
	if err != nil {
		return nil, fmt.Errorf("opening the controller in %s: %w", o.DataDir, err)
	}
	s, shown := o.Snapshot(), ""
	// While the bootstrap is pending, the data key may be wrapped for a recovery key
	// that nobody saw.
	if init != nil || s.Sealed(command.RecoveryName) == nil && alone(s) {
		if shown, err = recoveryKey(ctx, v, o); err != nil {
			return nil, err
		}
	}
	if init != nil {
		if err := done(o.DataDir); err != nil {
			return nil, err
		}
	}
	if shown != "" {
		if _, err := fmt.Fprintf(o.Stdout, "recovery key: %s\n", shown); err != nil {
			o.Logger.Warn("the recovery key could not be printed", "file", RecoveryKeyFile(o.RunDir), "err", err)
		}
	}
	return v, nil
}

func commit(ctx context.Context, init *dv1.Command, o UnsealOptions) error {
	if o.Snapshot().Cluster() == nil {
		// It is another cluster's: showing it as this cluster's would lose the real one.
		if err := os.Remove(RecoveryKeyFile(o.RunDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing an old recovery key: %w", err)
		}
	}
	r, err := o.Propose(ctx, init)
	if err == nil && r.GetError() != nil {
		err = errors.New(r.Error.Message)
	}
	return err
}

// alone reports whether there is only one controller: others leave the recovery key
// to it.
func alone(s *state.Snapshot) bool {
	n := 0
	for range s.Controllers() {
		n++
	}
	return n <= 1
}

// recoveryKey returns the key to be shown. The file is written after the commit, so
// if both exist, the file has the committed key.
func recoveryKey(ctx context.Context, v *vault.Vault, o UnsealOptions) (string, error) {
	s, file := o.Snapshot(), RecoveryKeyFile(o.RunDir)
	if b, err := os.ReadFile(file); err == nil && s.Sealed(command.RecoveryName) != nil {
		return strings.TrimSpace(string(b)), nil
	}
	key, err := v.Key(s)
	if err != nil {
		return "", err
	}
	text, err := vault.NewRecoveryKey(ctx, key, o.Propose)
	if err != nil {
		return "", err
	}
	if err := durable.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("storing the recovery key: %w", err)
	}
	return text, nil
}
