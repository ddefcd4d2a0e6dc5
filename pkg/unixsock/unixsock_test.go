package unixsock

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/testenv"
)

func dir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "us") // short: socket paths are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(d) })
	return d
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// A socket that a killed process left is replaced; what is no socket is somebody's.
func TestListenReplacesOnlyAStaleSocket(t *testing.T) {
	d := dir(t)
	path := File(filepath.Join(d, "run"))
	stale := listen(t, path).(*net.UnixListener)
	stale.SetUnlinkOnClose(false) // as if killed
	_ = stale.Close()
	if _, err := net.Dial("unix", path); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("the socket is not stale: %v", err)
	}
	listen(t, path)
	if c, err := net.Dial("unix", path); err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}
	if st, err := os.Lstat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	file, link, folder := filepath.Join(d, "file"), filepath.Join(d, "link"), filepath.Join(d, "folder")
	if err := errors.Join(os.WriteFile(file, []byte("kept"), 0o600), os.Symlink(path, link), os.Mkdir(folder, 0o700)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file: "is not a socket", link: "is not a socket", folder: "is not a socket", filepath.Join(file, "x"): "creating the socket's directory",
		filepath.Join(d, strings.Repeat("x", 107-len(d))): "choose a shorter run-dir",
	} {
		if l, err := Listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v", path, l, err)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "kept" {
		t.Errorf("the file holds %q: %v", b, err)
	}
	listen(t, filepath.Join(d, strings.Repeat("x", 106-len(d)))) // the longest
}

// dialAs connects as a user, from a thread of its own that ends with that.
func dialAs(t *testing.T, path string, uid, gid int, groups []uint32) net.Conn {
	t.Helper()
	var conn net.Conn
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread is not used for anything else
		list := unsafe.Pointer(nil)
		if len(groups) > 0 {
			list = unsafe.Pointer(&groups[0])
		}
		for _, c := range [][4]uintptr{
			{syscall.SYS_SETGROUPS, uintptr(len(groups)), uintptr(list), 0},
			{syscall.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
			{syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
		} {
			if _, _, errno := syscall.RawSyscall(c[0], c[1], c[2], c[3]); errno != 0 {
				err = errno
				return
			}
		}
		conn, err = net.Dial("unix", path)
	}()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Root and the socket's group are admins, whoever let a connection be made: nobody else.
func TestPeersAreRootAndTheSocketsGroup(t *testing.T) {
	testenv.Root(t)
	const group = 4711
	d := dir(t)
	path := File(d)
	l := listen(t, path)
	if err := errors.Join(os.Chmod(d, 0o755), os.Chown(path, 0, group), os.Chmod(path, 0o666)); err != nil { // anybody connects
		t.Fatal(err)
	}
	many := make([]uint32, 300)
	for i := range many {
		many[i] = uint32(10000 + i)
	}
	many[299] = group
	for name, c := range map[string]struct {
		uid, gid int
		groups   []uint32
		refused  bool
	}{
		"root":                   {uid: 0},
		"root in other groups":   {uid: 0, gid: 5, groups: []uint32{6}},
		"of the group":           {uid: 1000, gid: group},
		"of the group, too":      {uid: 1000, gid: 1000, groups: []uint32{1, group, 2}},
		"of many groups":         {uid: 1000, gid: 1000, groups: many},
		"of no group of ours":    {uid: 1000, gid: 1000, refused: true},
		"of other groups":        {uid: 1000, gid: 1000, groups: many[:299], refused: true},
		"of root's group":        {uid: 1000, gid: 0, groups: []uint32{0}, refused: true},
		"whose uid is the group": {uid: group, gid: 1000, refused: true},
		"nobody":                 {uid: 65534, gid: 65534, refused: true},
	} {
		near := dialAs(t, path, c.uid, c.gid, c.groups)
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		p, err := Peer(path, far)
		_ = near.Close()
		_ = far.Close()
		switch {
		case !c.refused && (err != nil || !p.Has(pki.RoleAdmin) || p.Kind != pki.KindLocal || p.URI != pki.Local(c.uid).URI):
			t.Errorf("%s: %+v, %v", name, p, err)
		case c.refused && (err == nil || len(p.Roles) > 0 || !strings.Contains(err.Error(), "in its group (gid 4711)")):
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}

	// A change of the group counts at once, also for who is connected.
	near := dialAs(t, path, 1000, 1000, nil)
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = near.Close(), far.Close() }()
	for group, refused := range map[int]bool{4711: true, 1000: false} {
		if err := os.Chown(path, 0, group); err != nil {
			t.Fatal(err)
		}
		if _, err := Peer(path, far); (err != nil) != refused {
			t.Errorf("while the group is %d: %v", group, err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if p, err := Peer(path, far); err == nil || len(p.Roles) > 0 {
		t.Errorf("without its socket: %+v, %v", p, err)
	}
}

func TestWhatIsNoUnixSocketHasNoPeer(t *testing.T) {
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	if p, err := Peer("x", a); err == nil || len(p.Roles) > 0 {
		t.Errorf("%+v, %v", p, err)
	}
	l := listen(t, File(dir(t)))
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if p, err := Peer(l.Addr().String(), c); err == nil || len(p.Roles) > 0 {
		t.Errorf("a closed connection: %+v, %v", p, err)
	}
}
