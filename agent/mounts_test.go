package agent

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"

	"github.com/drover/drover/pkg/testenv"
)

// A container's files hold what its image and its processes made, such as programs that
// run as root for whoever runs them: other accounts of the host don't come near them,
// neither while they are looked at, nor after an agent was killed while it did.
func TestNobodyElseSeesContainersFilesWhileTheyAreMounted(t *testing.T) {
	testenv.Root(t)
	dir, files := filepath.Join(t.TempDir(), "mounts"), t.TempDir()
	if err := os.WriteFile(filepath.Join(files, "passwd"), []byte("root"), 0o644); err != nil {
		t.Fatal(err)
	}
	for at := filepath.Dir(dir); at != os.TempDir(); at = filepath.Dir(at) { // others may enter what is above
		if err := os.Chmod(at, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := mount.SetTempMountLocation(os.TempDir()); err != nil {
			t.Error(err)
		}
	})
	bind := []mount.Mount{{Type: "bind", Source: files, Options: []string{"rbind"}}}
	left := filepath.Join(dir, "containerd-mount1")
	if err := os.MkdirAll(left, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := mount.All(bind, left); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mount.UnmountAll(left, syscall.MNT_DETACH) })

	var log bytes.Buffer
	if err := mountBelow(dir, slog.New(slog.NewTextHandler(&log, nil))); err != nil || log.Len() > 0 {
		t.Fatalf("%v, %s", err, &log)
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("of what a killed agent left: %v", err)
	}
	err := mount.WithReadonlyTempMount(t.Context(), bind, func(root string) error {
		if filepath.Dir(root) != dir {
			t.Errorf("mounted at %s", root)
		}
		c := exec.CommandContext(t.Context(), "cat", filepath.Join(root, "passwd"))
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if said, err := c.CombinedOutput(); err == nil || !strings.Contains(string(said), "Permission denied") {
			t.Errorf("another account read %q (%v)", said, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
