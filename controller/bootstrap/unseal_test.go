package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/consensus/consensustest"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
)

// unsealing is a first host whose log is open.
type unsealing struct {
	*consensustest.Log
	UnsealOptions
	shown *bytes.Buffer
}

func newUnsealing(t *testing.T) *unsealing {
	t.Helper()
	dir := t.TempDir()
	if _, err := Up(options(dir)); err != nil {
		t.Fatal(err)
	}
	files, err := pki.LoadFiles(identity.ControllerPKI(dir))
	if err != nil {
		t.Fatal(err)
	}
	u := &unsealing{Log: consensustest.NewLog(), shown: &bytes.Buffer{}}
	u.UnsealOptions = UnsealOptions{DataDir: dir, RunDir: t.TempDir(), Files: files, Snapshot: u.Log.Snapshot, Stdout: u.shown, Logger: slog.New(slog.DiscardHandler),
		Propose: func(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
			c.Principal = files.Principal.URI
			return u.Log.Propose(ctx, c)
		}}
	return u
}

func (u *unsealing) file() string {
	b, _ := os.ReadFile(RecoveryKeyFile(u.RunDir))
	return strings.TrimSpace(string(b))
}

// A new cluster is committed once, and its recovery key is shown, once; a restart
// shows none and changes nothing.
func TestUnsealMakesAClusterOnce(t *testing.T) {
	u := newUnsealing(t)
	v, err := Unseal(t.Context(), u.UnsealOptions)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Authority(); err != nil {
		t.Error(err)
	}
	key := u.file()
	if !strings.HasPrefix(key, "DROVER-RECOVERY-") || u.shown.String() != "recovery key: "+key+"\n" {
		t.Errorf("shown %q, kept %q", u.shown, key)
	}
	if c, err := Pending(u.DataDir); c != nil || err != nil {
		t.Errorf("the bootstrap is still pending: %v, %v", c, err)
	}
	index := u.Log.Snapshot().Index()
	u.shown.Reset()
	if _, err := Unseal(t.Context(), u.UnsealOptions); err != nil {
		t.Fatal(err)
	}
	if u.shown.Len() != 0 || u.Log.Snapshot().Index() != index {
		t.Errorf("a restart shows %q and goes from entry %d to %d", u.shown, index, u.Log.Snapshot().Index())
	}
}

// Wherever it is cut off, the next start ends it, with a recovery key that somebody
// sees and that opens the data key.
func TestUnsealGoesOnWhereACrashLeftIt(t *testing.T) {
	crash := errors.New("crash")
	for name, at := range map[string]func(u *unsealing, c *dv1.Command) error{
		"before the first entry": func(_ *unsealing, c *dv1.Command) error { return crash },
		"before the recovery key's wrap": func(_ *unsealing, c *dv1.Command) error {
			if c.GetPutSealed() != nil {
				return crash
			}
			return nil
		},
	} {
		u := newUnsealing(t)
		u.Before(func(c *dv1.Command) error { return at(u, c) })
		if _, err := Unseal(t.Context(), u.UnsealOptions); !errors.Is(err, crash) {
			t.Fatalf("%s: %v", name, err)
		}
		u.Before(nil)
		finish(t, name, u)
	}

	// The wrap is committed, and the file with its key was never written.
	u := newUnsealing(t)
	u.Before(func(c *dv1.Command) error {
		if c.GetPutSealed() != nil { // a folder where the file should be
			return os.Mkdir(RecoveryKeyFile(u.RunDir), 0o700)
		}
		return nil
	})
	if _, err := Unseal(t.Context(), u.UnsealOptions); err == nil || u.Log.Snapshot().Sealed(command.RecoveryName) == nil {
		t.Fatalf("a key that can't be kept: %v, wrap %v", err, u.Log.Snapshot().Sealed(command.RecoveryName))
	}
	u.Before(nil)
	if err := os.Remove(RecoveryKeyFile(u.RunDir)); err != nil {
		t.Fatal(err)
	}
	finish(t, "after the recovery key's wrap", u)
}

func finish(t *testing.T, name string, u *unsealing) {
	t.Helper()
	if _, err := Unseal(t.Context(), u.UnsealOptions); err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if key := u.file(); key == "" || !strings.Contains(u.shown.String(), key) {
		t.Errorf("%s: shown %q, kept %q", name, u.shown, key)
	}
	if u.Log.Snapshot().Sealed(command.RecoveryName) == nil {
		t.Errorf("%s: the recovery key opens nothing", name)
	}
}

// A key of another cluster that lies there is not taken for this one's.
func TestUnsealTakesNoOldRecoveryKey(t *testing.T) {
	u := newUnsealing(t)
	if err := os.WriteFile(RecoveryKeyFile(u.RunDir), []byte("DROVER-RECOVERY-OLD\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Unseal(t.Context(), u.UnsealOptions); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(u.shown.String(), "OLD") || strings.Contains(u.file(), "OLD") {
		t.Errorf("shown %q, kept %q", u.shown, u.file())
	}
}

func TestUnsealWithoutAClusterSaysSo(t *testing.T) {
	u := newUnsealing(t)
	if err := done(u.DataDir); err != nil {
		t.Fatal(err)
	}
	if _, err := Unseal(t.Context(), u.UnsealOptions); err == nil || !strings.Contains(err.Error(), "has no cluster") || !strings.Contains(err.Error(), u.DataDir) {
		t.Errorf("%v", err)
	}
}
