package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/archive/archiveapi"
	"github.com/drover/drover/pkg/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// box is a container's files, as far as this package is concerned.
type box struct {
	*Archive
	t    *testing.T
	root string
	r    archiveapi.Request
}

func newBox(t *testing.T) *box {
	testenv.Root(t)
	binary, root, at := filepath.Join(t.TempDir(), "drover-archive"), t.TempDir(), filepath.Join(t.TempDir(), "at")
	testenv.Build(t, binary, "./drover-archive")
	a, err := New(Options{Binary: func() (string, error) { return binary, nil }, At: at})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // whatever a test did
		if pids, _ := filepath.Glob("/proc/[0-9]*/exe"); len(pids) > 0 {
			for _, p := range pids {
				if to, _ := os.Readlink(p); to == binary {
					t.Errorf("%s is left", p)
				}
			}
		}
		left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(at))
		if err != nil || len(left) > 0 {
			t.Errorf("mounts are left: %v, %v", left, err)
		}
	})
	return &box{Archive: a, t: t, root: root, r: archiveapi.Request{Root: []mount.Mount{{Type: "bind", Source: root, Options: []string{"rbind"}}}}}
}

func (b *box) at(path string) archiveapi.Request {
	r := b.r
	r.Operation, r.Path = archiveapi.Read, path
	return r
}

func (b *box) put(name, text string) {
	b.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(b.root, name)), 0o755), os.WriteFile(filepath.Join(b.root, name), []byte(text), 0o644)); err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) symlink(to, name string) {
	b.t.Helper()
	if err := os.Symlink(to, filepath.Join(b.root, name)); err != nil {
		b.t.Fatal(err)
	}
}

// text is a file of the host, whose root is given.
func text(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// read returns the names and texts of what is read at a path, or why that failed.
func (b *box) read(r archiveapi.Request) string {
	b.t.Helper()
	s, err := b.Read(b.t.Context(), r)
	if err != nil {
		return err.Error()
	}
	defer s.Close()
	var out strings.Builder
	for all := tar.NewReader(s); ; {
		h, err := all.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return out.String() + err.Error()
		}
		what := h.Linkname
		if h.Typeflag == tar.TypeReg {
			bytes, err := io.ReadAll(all)
			if what = string(bytes); err != nil {
				return err.Error()
			}
		}
		fmt.Fprintf(&out, "%s%c%s ", h.Name, h.Typeflag, what)
	}
	if _, err := io.Copy(io.Discard, s); err != nil {
		return err.Error()
	}
	return out.String()
}

// packed is an archive of files.
func packed(all ...tar.Header) io.ReadCloser {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range all {
		text := ""
		if h.Typeflag == 0 {
			h.Typeflag, text, h.Linkname = tar.TypeReg, h.Linkname, ""
			h.Size = int64(len(text))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			panic(err)
		}
		_, _ = w.Write([]byte(text))
	}
	_ = w.Close()
	return io.NopCloser(&out)
}

func (b *box) write(r archiveapi.Request, all ...tar.Header) string {
	b.t.Helper()
	if err := b.Write(b.t.Context(), r, packed(all...)); err != nil {
		return err.Error()
	}
	return ""
}

func TestPathsAreThoseOfTheContainer(t *testing.T) {
	b := newBox(t)
	outside := t.TempDir()
	b.put("dir/file", "inside")
	b.put("secret", "the container's own")
	b.symlink("/dir", "absolute")
	b.symlink("../../../../../../secret", "up")
	b.symlink(outside, "host")
	b.symlink("/dir/file", "last")
	if err := os.WriteFile(outside+"/secret", []byte("of the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/dir/file":               "file0inside ",
		"dir/file":                "file0inside ",
		"/dir":                    "dir/5 dir/file0inside ",
		"/dir/.":                  "./5 ./file0inside ",
		"/absolute/file":          "file0inside ",
		"/absolute":               "absolute2/dir ",
		"/absolute/":              "absolute/5 absolute/file0inside ",
		"/up":                     "up2../../../../../../secret ",
		"/dir/../../../../secret": "secret0the container's own ",
		"/host/secret":            "lstat /host/secret: no such file or directory",
		"/none":                   "lstat /none: no such file or directory",
		"/dir/file/":              "lstat /dir/file/: not a directory",
	} {
		if got := b.read(b.at(path)); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	for path, want := range map[string]string{
		"/last": "/dir/file", "/up": "/secret", "/host": outside, "/dir": "",
	} {
		st, err := b.Stat(t.Context(), b.at(path))
		if err != nil || st.LinkTarget != want || st.Name != filepath.Base(path) {
			t.Errorf("%s: %+v, %v", path, st, err)
		}
	}
	if _, err := b.Stat(t.Context(), b.at("/none")); err == nil || err.(*archiveapi.Error).Kind != archiveapi.NotFound {
		t.Errorf("a path that is not there: %v", err)
	}
}

// What is read and written again is what it was.
func TestAllKindsOfFilesSurvive(t *testing.T) {
	b := newBox(t)
	from := filepath.Join(b.root, "from")
	b.put("from/plain", "text")
	b.put("from/capable", "x")
	b.put("from/.hidden/deep", "deep")
	b.symlink("plain", "from/link")
	if err := errors.Join(os.Link(from+"/plain", from+"/same"), unix.Mknod(from+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.Mkfifo(from+"/pipe", 0o600),
		os.Chmod(from+"/plain", 0o640|os.ModeSetuid), os.Lchown(from+"/link", 7, 8), os.Chtimes(from+"/capable", time.Unix(1e9, 0), time.Unix(1e9, 0)),
		unix.Setxattr(from+"/capable", "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0)); err != nil {
		t.Fatal(err)
	}
	sparse, err := os.Create(from + "/sparse")
	if err == nil {
		_, err = sparse.WriteAt([]byte("end"), 8<<20)
	}
	if err = errors.Join(err, sparse.Close(), os.Mkdir(b.root+"/to", 0o755)); err != nil {
		t.Fatal(err)
	}
	s, err := b.Read(t.Context(), b.at("/from"))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Write(t.Context(), b.at("/to"), s); err != nil {
		t.Fatal(err)
	}
	show := func(dir string) (out []string) {
		_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			var st unix.Stat_t
			v := make([]byte, 64)
			n, _ := unix.Lgetxattr(path, "security.capability", v)
			to, _ := os.Readlink(path)
			if err = errors.Join(err, unix.Lstat(path, &st)); st.Mode&unix.S_IFMT == unix.S_IFDIR {
				st.Size, st.Nlink = 0, 0
			}
			name, _ := filepath.Rel(dir, path)
			out = append(out, fmt.Sprintf("%s %o %d:%d %d bytes %d links dev %d at %d %x -> %s, %v", name, st.Mode, st.Uid, st.Gid, st.Size, st.Nlink, st.Rdev, st.Mtim.Sec, v[:max(n, 0)], to, err))
			return nil
		})
		return out
	}
	was, is := strings.Join(show(from), "\n"), strings.Join(show(b.root+"/to/from"), "\n")
	if was != is || !strings.Contains(is, "null 20644 0:0 0 bytes 1 links dev 259") || !strings.Contains(is, "plain 104640 0:0 4 bytes 2 links") {
		t.Errorf("written:\n%s\nread:\n%s", is, was)
	}
}

// An archive is not trusted, and neither are the links that are there already.
func TestArchivesWriteNowhereElse(t *testing.T) {
	outside := t.TempDir()
	file := func(name string) tar.Header { return tar.Header{Name: name, Linkname: "evil"} }
	for name, c := range map[string]struct {
		all  []tar.Header
		fail string
		in   string // where the file is then
	}{
		"up":                            {all: []tar.Header{file("../evil")}, fail: "invalid entry name"},
		"far up":                        {all: []tar.Header{file("a/../../../../../../../.." + outside + "/evil")}, fail: "invalid entry name"},
		"absolute":                      {all: []tar.Header{file(outside + "/evil")}, in: "to" + outside + "/evil"},
		"through a link that it brings": {all: []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, file("l/evil")}, in: "to" + outside + "/evil"},
		"through a link that is there":  {all: []tar.Header{file("there/evil")}, in: "to" + outside + "/evil"},
		"a hard link to the host":       {all: []tar.Header{{Name: "h", Typeflag: tar.TypeLink, Linkname: outside + "/mine"}}, fail: "mine"},
		"a hard link up":                {all: []tar.Header{{Name: "h", Typeflag: tar.TypeLink, Linkname: "../../../../../.." + outside + "/mine"}}, fail: "mine"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			b.put("to/x", "")
			b.symlink(outside, "to/there")
			if err := os.WriteFile(outside+"/mine", []byte("mine"), 0o600); err != nil {
				t.Fatal(err)
			}
			got := b.write(b.at("/to"), c.all...)
			if c.fail == "" && got != "" || !strings.Contains(got, c.fail) {
				t.Errorf("%q, want %q", got, c.fail)
			}
			if c.in != "" && text(filepath.Join(b.root, c.in)) != "evil" {
				t.Errorf("%s: %s", c.in, text(filepath.Join(b.root, c.in)))
			}
			if left, err := os.ReadDir(outside); err != nil || len(left) != 1 || text(outside+"/mine") != "mine" {
				t.Errorf("it came out: %v, %v", left, err)
			}
		})
	}
}

// A container swaps a directory for a link to the host as fast as it can, a thousand times
// and more, while files are read and written there.
func TestLinksThatAreSwapped(t *testing.T) {
	b := newBox(t)
	outside := t.TempDir()
	b.put("d/secret", "inside")
	b.symlink(outside, "l")
	if err := os.WriteFile(outside+"/secret", []byte("outside"), 0o600); err != nil {
		t.Fatal(err)
	}
	enough, swapped := make(chan struct{}), make(chan int)
	go func() {
		for n := 0; ; n++ {
			_ = unix.Renameat2(unix.AT_FDCWD, b.root+"/d", unix.AT_FDCWD, b.root+"/l", unix.RENAME_EXCHANGE)
			select {
			case <-enough:
				if n > 1000 {
					swapped <- n
					return
				}
			default:
			}
		}
	}()
	r := b.at("/d")
	r.Binds = []archiveapi.Bind{{Source: t.TempDir(), Target: "/d/mounted"}}
	read := map[string]int{}
	for range 60 {
		read[b.read(b.at("/d/secret"))]++
		_ = b.write(b.at("/d"), tar.Header{Name: "evil", Linkname: "evil"})
		_ = b.read(r)
	}
	close(enough)
	if n := <-swapped; read["secret0inside "] == 0 {
		t.Errorf("%d swaps, and read was %v", n, read)
	}
	for got := range read {
		if strings.Contains(got, "outside") {
			t.Errorf("read: %q", got)
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 1 {
		t.Errorf("written outside: %v, %v", left, err)
	}
}

func TestWhatIsReadOnly(t *testing.T) {
	b := newBox(t)
	data, locked := t.TempDir(), t.TempDir()
	b.put("etc/passwd", "root:x:0:0::/:\nme:x:1000:1001::/:\n")
	b.symlink("/locked", "way")
	b.symlink("../run/none/resolv.conf", "etc/resolv.conf") // a link that leads nowhere yet
	b.symlink("round", "round")
	b.r.Binds = []archiveapi.Bind{{Source: data, Target: "/data"}, {Source: locked, Target: "/locked", ReadOnly: true}, {Source: b.root + "/etc/passwd", Target: "/etc/passwd", Own: true}, {Source: b.root + "/etc/passwd", Target: "/etc/resolv.conf", Own: true}}
	if got := b.read(b.at("/run/none/resolv.conf")); !strings.HasPrefix(got, "resolv.conf0root:") {
		t.Errorf("a mount behind a link: %q", got)
	}
	round := b.at("/")
	if round.Binds = []archiveapi.Bind{{Source: data, Target: "/round/x"}}; !strings.Contains(b.read(round), "too many levels of symbolic links") {
		t.Errorf("a mount behind a link to itself: %q", b.read(round))
	}
	file := tar.Header{Name: "f", Linkname: "text"}
	if got := b.write(b.at("/data"), file); got != "" || text(data+"/f") != "text" {
		t.Errorf("to a mount: %q, %s", got, text(data+"/f"))
	}
	for path, want := range map[string]string{
		"/locked": "mounted volume is marked read-only", "/way": "mounted volume is marked read-only", "/etc/passwd": "extraction point is not a directory",
		"/none": "lstat /none: no such file or directory",
	} {
		if got := b.write(b.at(path), file); got != want {
			t.Errorf("%s: %q", path, got)
		}
	}
	if got := b.write(b.at("/"), tar.Header{Name: "locked/f", Linkname: "x"}); !strings.Contains(got, "read-only file system") {
		t.Errorf("from above: %q", got)
	}
	b.r.ReadOnlyRoot = true
	if got := b.write(b.at("/"), file); got != "container rootfs is marked read-only" {
		t.Errorf("to a root that is read-only: %q", got)
	}
	if got := b.write(b.at("/data"), tar.Header{Name: "again", Linkname: "text"}); got != "" {
		t.Errorf("to a mount in a root that is read-only: %q", got)
	}
	r := b.at("/data")
	for user, want := range map[string]string{"me": "1000:1001", "me:12": "1000:12", "77": "77:0"} {
		r.Owner = user
		if got := b.write(r, file); got != "" {
			t.Errorf("as %s: %q", user, got)
		}
		var st unix.Stat_t
		if err := unix.Stat(data+"/f", &st); err != nil || fmt.Sprintf("%d:%d", st.Uid, st.Gid) != want {
			t.Errorf("as %s: %d:%d, %v", user, st.Uid, st.Gid, err)
		}
	}
	if r.Owner = "nobody-here"; !strings.Contains(b.write(r, file), "unable to find user nobody-here") {
		t.Error("an unknown user was found")
	}
	r = b.at("/data")
	if err := os.Mkdir(data+"/dir", 0o755); err != nil {
		t.Fatal(err)
	}
	r.NoOverwriteDir = true
	if got := b.write(r, tar.Header{Name: "dir", Linkname: "x"}); got != `cannot overwrite directory "dir" with non-directory "/data"` {
		t.Errorf("a file over a directory: %q", got)
	}
}

func TestAFullDiskIsSaid(t *testing.T) {
	b := newBox(t)
	b.r.Root = []mount.Mount{{Type: "tmpfs", Source: "tmpfs", Options: []string{"size=64k"}}}
	if got := b.write(b.at("/"), tar.Header{Name: "f", Linkname: strings.Repeat("x", 1<<20)}); !strings.Contains(got, "no space left on device") {
		t.Errorf("%q", got)
	}
}

// breaks is an archive whose sender vanishes.
type breaks struct {
	io.Reader
	closed bool
}

func (b *breaks) Close() error { b.closed = true; return nil }

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestWhoVanishesLeavesNothing(t *testing.T) {
	b := newBox(t)
	b.put("big", strings.Repeat("x", 8<<20))
	half, err := io.ReadAll(io.LimitReader(packed(tar.Header{Name: "a", Linkname: "a"}, tar.Header{Name: "f", Linkname: strings.Repeat("x", 1<<20)}), 1<<19))
	if err != nil {
		t.Fatal(err)
	}
	from := &breaks{Reader: io.MultiReader(bytes.NewReader(half), broken{})}
	if err := b.Write(t.Context(), b.at("/"), from); !errors.Is(err, io.ErrUnexpectedEOF) || !from.closed {
		t.Errorf("half an archive: %v, closed %v", err, from.closed)
	}
	s, err := b.Read(t.Context(), b.at("/big"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 1<<20)); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if s, err = b.Read(ctx, b.at("/big")); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.Copy(io.Discard, s); err == nil {
		t.Error("a process that was killed has written all")
	}
	_ = s.Close()
	pr, pw := io.Pipe() // a sender that sends nothing
	ctx, cancel = context.WithCancel(t.Context())
	over := make(chan error)
	go func() { over <- b.Write(ctx, b.at("/"), pr) }()
	cancel()
	if err := <-over; err == nil {
		t.Error("nothing was extracted")
	}
	_ = pw.Close()
}

func TestExportIsAll(t *testing.T) {
	b := newBox(t)
	b.put("bin/sh", "sh")
	b.put("etc/hosts", "")
	r := b.r
	r.Operation = archiveapi.Export
	if got := b.read(r); got != "bin/5 bin/sh0sh etc/5 etc/hosts0 " {
		t.Errorf("%q", got)
	}
}

func TestChangesAreDockers(t *testing.T) {
	b := newBox(t)
	low, lower, up := t.TempDir(), t.TempDir(), t.TempDir()
	mk := func(all ...error) {
		t.Helper()
		if err := errors.Join(all...); err != nil {
			t.Fatal(err)
		}
	}
	merged, work := t.TempDir(), t.TempDir()
	for _, f := range []string{low + "/a/one", low + "/a/two", lower + "/keep/x", lower + "/keep/deep/y", lower + "/gone/z", lower + "/again/old", lower + "/again/both", lower + "/file", low + "/touched/sub/f"} {
		mk(os.MkdirAll(filepath.Dir(f), 0o755), os.WriteFile(f, []byte("text"), 0o644))
	}
	mk(unix.Mount("overlay", merged, "overlay", 0, "lowerdir="+lower+":"+low+",upperdir="+up+",workdir="+work))
	defer func() { mk(unix.Unmount(merged, unix.MNT_DETACH)) }()
	mk(os.Remove(merged+"/a/one"), os.WriteFile(merged+"/a/three", nil, 0o644), os.WriteFile(merged+"/keep/deep/y", []byte("changed"), 0o644),
		os.RemoveAll(merged+"/gone"), os.RemoveAll(merged+"/again"), os.Mkdir(merged+"/again", 0o755), os.WriteFile(merged+"/again/both", []byte("text!"), 0o644), os.WriteFile(merged+"/again/new", nil, 0o644),
		os.Remove(merged+"/file"), os.Mkdir(merged+"/file", 0o755), os.WriteFile(merged+"/file/in", nil, 0o644),
		os.Chmod(merged+"/keep", 0o700), os.MkdirAll(merged+"/new/dir", 0o755),
		os.Chmod(merged+"/touched/sub/f", 0o644), // the same as it was
		os.MkdirAll(merged+"/proc", 0o755), os.MkdirAll(merged+"/etc", 0o755), os.WriteFile(merged+"/etc/hosts", nil, 0o644), os.MkdirAll(merged+"/dev/shm", 0o755))
	r := b.r
	r.Operation, r.Upper, r.Lowers = archiveapi.Changes, up, []string{lower, low}
	got := func() string {
		t.Helper()
		s, err := b.Read(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		var all []archiveapi.Change
		if err := json.NewDecoder(s).Decode(&all); err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, c := range all {
			out = append(out, c.Kind.String()+" "+c.Path)
		}
		return strings.Join(out, "\n")
	}
	want := strings.TrimSpace(`
C /a
D /a/one
A /a/three
C /again
C /again/both
A /again/new
D /again/old
C /file
A /file/in
D /gone
C /keep
C /keep/deep
C /keep/deep/y
A /new
A /new/dir`)
	if got := got(); got != want {
		t.Errorf("changes:\n%s\nwant:\n%s", got, want)
	}
	mk(os.WriteFile(merged+"/etc/own", nil, 0o644))
	if got := got(); !strings.Contains(got, "C /etc\nA /etc/own") {
		t.Errorf("in a directory that docker begins with:\n%s", got)
	}
	r.Upper, r.Lowers = low, nil
	if got := got(); got != "A /a\nA /a/one\nA /a/two\nA /touched\nA /touched/sub\nA /touched/sub/f" {
		t.Errorf("without an image:\n%s", got)
	}
	r.Upper = t.TempDir()
	if got := got(); got != "" {
		t.Errorf("of nothing: %s", got)
	}
}
