package engine

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/task"
)

const (
	passwdText = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/srv:/bin/false\n"
	groupText  = "root:x:0:root\nwheel:x:10:root,web\nweb:x:102:\nlogs:x:200:web\nother:x:300:nobody\n"
)

// rootOf makes a root with the files that are given by their path.
func rootOf(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestUsersAreFoundAsDockerFindsThem(t *testing.T) {
	root := rootOf(t, map[string]string{"etc/passwd": passwdText, "etc/group": groupText})
	for _, c := range []struct {
		name     string
		add      []string
		uid, gid uint32
		groups   []uint32
		refused  string
	}{
		{name: "", groups: []uint32{0, 0, 10}},
		{name: "root", groups: []uint32{0, 0, 10}},
		{name: "0:0", groups: []uint32{0}},
		{name: "web", uid: 101, gid: 102, groups: []uint32{102, 10, 200}},
		{name: "101", uid: 101, gid: 102, groups: []uint32{102, 10, 200}},
		{name: "web:logs", uid: 101, gid: 200, groups: []uint32{200}},
		{name: "5000", uid: 5000, groups: []uint32{0}},
		{name: "5000:6000", uid: 5000, gid: 6000, groups: []uint32{6000}},
		{name: "5000", add: []string{"logs", "77"}, uid: 5000, groups: []uint32{0, 200, 77}},
		{name: "missing", refused: "unable to find user missing: no matching entries in passwd file"},
		{name: "web:missing", refused: "no matching entries in group file"},
		{name: "4294967296", refused: "unable to find user"},
		{name: "web", add: []string{"missing"}, refused: "missing"},
	} {
		u, err := lookUser(root, c.name, c.add)
		if c.refused != "" {
			var se *task.StartError
			if !errors.As(err, &se) || se.Code != 125 || !strings.Contains(se.Message, c.refused) {
				t.Errorf("%q: %v, want 125: %q", c.name, err, c.refused)
			}
			continue
		}
		slices.Sort(u.AdditionalGids)
		slices.Sort(c.groups)
		if err != nil || u.UID != c.uid || u.GID != c.gid || !slices.Equal(u.AdditionalGids, c.groups) {
			t.Errorf("%q: %+v, %v; want %d:%d %v", c.name, u, err, c.uid, c.gid, c.groups)
		}
	}
}

// An image decides what its /etc/passwd is.
func TestNoFileOfAnImageHoldsTheAgentUp(t *testing.T) {
	outside := rootOf(t, map[string]string{"passwd": "evil:x:1:1::/:/bin/sh\n"})
	for what, put := range map[string]func(root, path string) error{
		"a FIFO": func(_, path string) error { return syscall.Mkfifo(path, 0o666) },
		"to a FIFO": func(root, path string) error {
			return errors.Join(syscall.Mkfifo(root+"/f", 0o666), os.Symlink("/f", path))
		},
		"a socket":     func(_, path string) error { return syscall.Mknod(path, syscall.S_IFSOCK|0o666, 0) },
		"a device":     func(_, path string) error { return syscall.Mknod(path, syscall.S_IFCHR|0o666, 1<<8|5) }, // zero
		"a folder":     func(_, path string) error { return os.Mkdir(path, 0o755) },
		"a loop":       func(_, path string) error { return os.Symlink("passwd", path) },
		"a way out":    func(_, path string) error { return os.Symlink("../../../../../.."+outside+"/passwd", path) },
		"the host's":   func(_, path string) error { return os.Symlink(outside+"/passwd", path) },
		"a magic link": func(_, path string) error { return os.Symlink("/proc/self/fd/0", path) },
	} {
		root := rootOf(t, map[string]string{"etc/group": groupText})
		err := put(root, filepath.Join(root, "etc/passwd"))
		if what == "a device" && os.Geteuid() != 0 {
			continue // only root makes one
		}
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 2)
		go func() {
			_, err := lookUser(root, "evil", nil)
			done <- err
			_, err = lookUser(root, "1000:web", nil)
			done <- err
		}()
		words := []string{"unable to find user evil", ""}
		if strings.HasSuffix(what, "FIFO") {
			words = []string{"its /etc/passwd is a FIFO", "its /etc/passwd is a FIFO"}
		}
		for _, want := range words {
			select {
			case err := <-done:
				if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %v, want %q", what, err, want)
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("%s holds the agent up", what)
			}
		}
	}
	large := rootOf(t, nil)
	if err := os.Mkdir(large+"/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(large+"/etc/passwd", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large+"/etc/passwd", 1<<40); err != nil {
		t.Fatal(err)
	}
	if _, err := lookUser(large, "root", nil); err == nil || !strings.Contains(err.Error(), "larger than 16 MiB") {
		t.Errorf("a file of 1 TiB: %v", err)
	}
	// Links inside are followed as the container would, absolute ones too.
	nix := rootOf(t, map[string]string{"nix/passwd": passwdText})
	if err := errors.Join(os.Mkdir(nix+"/etc", 0o755), os.Symlink("/nix/passwd", nix+"/etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if u, err := lookUser(nix, "web", nil); err != nil || u.UID != 101 {
		t.Errorf("by an absolute link: %+v, %v", u, err)
	}
}

// Where anybody on the host renames files or mounts, the kernel can't say at once
// that a link with .. stays inside.
func TestALinkIsFollowedWhileOthersRename(t *testing.T) {
	root, other := rootOf(t, map[string]string{"usr/lib/passwd": passwdText, "etc/group": groupText}), t.TempDir()
	if err := os.Symlink("../usr/lib/passwd", filepath.Join(root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	from, to := filepath.Join(other, "a"), filepath.Join(other, "b")
	for _, d := range []string{from, to} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	over := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
			}
		}
	})
	defer func() { close(over); all.Wait() }()
	for i := range 5000 {
		if u, err := lookUser(root, "web", nil); err != nil || u.UID != 101 {
			t.Fatalf("%d: %+v, %v", i, u, err)
		}
	}
}
