package volume

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/testenv"
)

// imageDir is a directory with one of each thing that an image can have.
func imageDir(t *testing.T) string {
	t.Helper()
	testenv.Root(t)
	dir := filepath.Join(t.TempDir(), "image")
	write(t, dir+"/plain", "plain")
	write(t, dir+"/owned", "owned")
	write(t, dir+"/setuid", "x")
	write(t, dir+"/deep/er/file", "deep")
	write(t, dir+"/attributes", "x")
	sparse, err := os.Create(dir + "/sparse")
	ok(t, err)
	_, err = sparse.WriteAt([]byte("end"), 8<<20)
	ok(t, errors.Join(err, sparse.Close()))
	old := time.Unix(1_000_000_000, 123)
	ok(t, errors.Join(
		os.Lchown(dir+"/owned", 1234, 4321), os.Chmod(dir+"/owned", 0o640),
		os.Chmod(dir+"/setuid", 0o755|os.ModeSetuid|os.ModeSetgid),
		os.Mkdir(dir+"/empty", 0o700), os.Chmod(dir+"/empty", 0o777|os.ModeSticky), os.Lchown(dir+"/deep", 7, 8),
		os.Symlink("plain", dir+"/soft"), os.Symlink("/nowhere/at all", dir+"/dangling"), os.Lchown(dir+"/dangling", 5, 6),
		os.Link(dir+"/plain", dir+"/hard"), os.Link(dir+"/plain", dir+"/deep/hard"),
		unix.Mkfifo(dir+"/fifo", 0o620), unix.Mknod(dir+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		os.Chtimes(dir+"/plain", old, old), os.Chtimes(dir+"/empty", old, old),
		os.Lchown(dir, 999, 998), os.Chmod(dir, 0o750),
	))
	if err := unix.Setxattr(dir+"/attributes", "user.k", []byte("v"), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
		t.Fatal(err)
	}
	return dir
}

// listing describes all that is in a directory, and the directory itself.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	first := map[uint64]string{}
	ok(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		fi, err := os.Lstat(path)
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&b, "%s %v %d:%d", name, fi.Mode(), st.Uid, st.Gid)
		switch {
		case fi.Mode().IsRegular():
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if one, ok := first[st.Ino]; ok {
				fmt.Fprintf(&b, " is %s", one)
			}
			first[st.Ino] = name
			fmt.Fprintf(&b, " %d bytes %q blocks<%d", len(text), bytes.Trim(text, "\x00"), 64+st.Blocks/64*64)
		case fi.Mode()&os.ModeSymlink != 0:
			to, _ := os.Readlink(path)
			fmt.Fprintf(&b, " -> %s", to)
		case fi.Mode()&os.ModeDevice != 0:
			fmt.Fprintf(&b, " %x", st.Rdev)
		}
		if name == "plain" || name == "empty" {
			fmt.Fprintf(&b, " %d", fi.ModTime().UnixNano())
		}
		value := make([]byte, 64)
		if n, err := unix.Lgetxattr(path, "user.k", value); err == nil {
			fmt.Fprintf(&b, " user.k=%s", value[:n])
		}
		b.WriteByte('\n')
		return nil
	}))
	return b.String()
}

var blocks = regexp.MustCompile(` blocks<\d+| user\.k=v`)

// from has an image's directory copied.
func from(dir string) func(func(string) error) error {
	return func(copy func(string) error) error { return copy(dir) }
}

func TestAnEmptyVolumeIsSeeded(t *testing.T) {
	image := imageDir(t)
	want := listing(t, image)
	for what, v := range map[string]task.Volume{"a directory": volumeOf("data"), "a mounted one": volumeOf("memory", "type", "tmpfs", "device", "tmpfs", "o", "size=20m")} {
		s := open(t)
		ok(t, s.Use(t.Context(), "keeps it", v))
		ok(t, s.Seed(t.Context(), "one", v, "", from(image)))
		got, want := listing(t, s.Path(v.ID)), want
		if what != "a directory" { // other filesystems have no holes from this one, and may lack attributes
			got, want = blocks.ReplaceAllString(got, ""), blocks.ReplaceAllString(want, "")
		}
		if got != want {
			t.Errorf("%s has\n%s\nwant\n%s", what, got, want)
		}
		if all, _ := os.ReadDir(s.dir(v.ID)); len(all) != 1 {
			t.Errorf("%s: there are %v", what, all)
		}
		ok(t, os.Remove(s.Path(v.ID)+"/plain"))
		ok(t, s.Seed(t.Context(), "two", v, "", from(image)))
		if _, err := os.Stat(s.Path(v.ID) + "/plain"); err == nil {
			t.Errorf("%s: it was seeded although it has files", what)
		}
	}
}

func TestWhatIsNotSeeded(t *testing.T) {
	s := open(t)
	v := volumeOf("data")
	ok(t, s.Seed(t.Context(), "one", v, "", func(func(string) error) error { return nil }))
	if got := in(t, s.Path(v.ID)); got != "" {
		t.Errorf("an image that has nothing there: %s", got)
	}
	broken := errors.New("no image")
	if err := s.Seed(t.Context(), "one", v, "", func(func(string) error) error { return broken }); !errors.Is(err, broken) || !strings.Contains(err.Error(), "failed to populate volume data") {
		t.Errorf("%v", err)
	}
	if err := s.Seed(t.Context(), "one", v, "", from("/nowhere")); err == nil {
		t.Error("an image that went is copied")
	}
	if all, _ := os.ReadDir(s.dir(v.ID)); len(all) != 1 {
		t.Errorf("it left %v", all)
	}
}

// Wherever an agent dies, the next one has a whole copy, and what a container wrote
// meanwhile.
func TestASeedingThatWasCutShort(t *testing.T) {
	image := imageDir(t)
	want := listing(t, image)
	for what, left := range map[string]func(s *Store, v task.Volume){
		"in the copy": func(s *Store, v task.Volume) { write(t, s.dir(v.ID)+"/seed.part/plain", "pl") },
		"before the move": func(s *Store, v task.Volume) {
			ok(t, exec.Command("cp", "-a", image, s.dir(v.ID)+"/seed").Run())
		},
		"in the move": func(s *Store, v task.Volume) {
			ok(t, exec.Command("cp", "-a", image, s.dir(v.ID)+"/seed").Run())
			for _, n := range []string{"plain", "deep", "null"} {
				ok(t, os.Rename(s.dir(v.ID)+"/seed/"+n, s.Path(v.ID)+"/"+n))
			}
		},
		"after the move": func(s *Store, v task.Volume) {
			ok(t, exec.Command("cp", "-a", image, s.dir(v.ID)+"/seed").Run())
			all, err := os.ReadDir(s.dir(v.ID) + "/seed")
			ok(t, err)
			for _, e := range all {
				ok(t, os.Rename(s.dir(v.ID)+"/seed/"+e.Name(), s.Path(v.ID)+"/"+e.Name()))
			}
		},
	} {
		s := open(t)
		v := volumeOf("data")
		ok(t, os.MkdirAll(s.Path(v.ID), 0o755))
		left(s, v)
		ok(t, s.Seed(t.Context(), "one", v, "", from(image)))
		if got := listing(t, s.Path(v.ID)); got != want {
			t.Errorf("%s: it has\n%s\nwant\n%s", what, got, want)
		}
		if all, _ := os.ReadDir(s.dir(v.ID)); len(all) != 1 {
			t.Errorf("%s: there are %v", what, all)
		}
	}
	s := open(t)
	v := volumeOf("data")
	write(t, s.Path(v.ID)+"/plain", "the container's")
	write(t, s.dir(v.ID)+"/seed/plain", "the image's")
	write(t, s.dir(v.ID)+"/seed/more", "the image's")
	ok(t, s.Use(t.Context(), "one", v))
	if b, _ := os.ReadFile(s.Path(v.ID) + "/plain"); string(b) != "the container's" {
		t.Errorf("what a container wrote is %q now", b)
	}
	if b, _ := os.ReadFile(s.Path(v.ID) + "/more"); string(b) != "the image's" {
		t.Errorf("the rest is %q", b)
	}
}

// A part is seeded as a volume is, and nothing else of the volume.
func TestAnEmptyPartIsSeeded(t *testing.T) {
	image := imageDir(t)
	want := blocks.ReplaceAllString(listing(t, image), "")
	for what, v := range map[string]task.Volume{"a directory": volumeOf("data"), "a mounted one": volumeOf("memory", "type", "tmpfs", "device", "tmpfs", "o", "size=20m")} {
		s := open(t)
		ok(t, s.Use(t.Context(), "keeps it", v))
		base, outside := s.Path(v.ID), t.TempDir()
		write(t, base+"/file", "file")
		write(t, base+"/full/file", "file")
		ok(t, errors.Join(os.MkdirAll(base+"/deep/empty", 0o755), os.Mkdir(base+"/other", 0o700), os.Symlink("deep/../other", base+"/soft"), os.Symlink(outside, base+"/out"), os.Symlink("loop", base+"/loop"),
			os.Mkdir(base+"/mount", 0o755), unix.Mount("tmpfs", base+"/mount", "tmpfs", 0, "")))
		for _, subpath := range []string{"deep/empty", "soft", "full", "file", "missing", "file/x", "out", "../" + v.ID, "loop", "mount"} {
			if err := s.Seed(t.Context(), "one", v, subpath, from(image)); err != nil {
				t.Errorf("%s, %s: %v", what, subpath, err)
			}
		}
		for _, dir := range []string{"deep/empty", "other"} {
			if got := blocks.ReplaceAllString(listing(t, filepath.Join(base, dir)), ""); got != want {
				t.Errorf("%s: %s has\n%s\nwant\n%s", what, dir, got, want)
			}
		}
		for dir, want := range map[string]string{base: "deep file full loop mount other out soft", base + "/full": "file", base + "/deep": "empty", base + "/mount": "", outside: "", s.dir(v.ID): "_data"} {
			if got := in(t, dir); got != want {
				t.Errorf("%s: in %s are %q, want %q", what, dir, got, want)
			}
		}
		ok(t, os.RemoveAll(base+"/other/deep"))
		ok(t, s.Seed(t.Context(), "two", v, "other", from(image)))
		if _, err := os.Stat(base + "/other/deep"); err == nil {
			t.Errorf("%s: a part was seeded although it has files", what)
		}
	}
}

// in returns the names in a directory.
func in(t *testing.T, dir string) string {
	t.Helper()
	all, err := os.ReadDir(dir)
	ok(t, err)
	var names []string
	for _, e := range all {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// What a dead agent left for a part comes there, or nowhere.
func TestASeedingOfAPartThatWasCutShort(t *testing.T) {
	outside := t.TempDir()
	for what, c := range map[string]struct {
		left func(base, dir string) error // besides a copy of two files for the empty part p
		p    string                       // its files in the end; "-": it is gone
		root string
	}{
		"before the move":  {nil, "more plain", "p"},
		"in the move":      {func(base, dir string) error { return os.Rename(dir+"/seed/plain", base+"/p/plain") }, "more plain", "p"},
		"the part is gone": {func(base, _ string) error { return os.Remove(base + "/p") }, "-", ""},
		"the part is a file now": {func(base, _ string) error {
			return errors.Join(os.Remove(base+"/p"), os.WriteFile(base+"/p", nil, 0o600))
		}, "-", "p"},
		"the part leads out now": {func(base, _ string) error { return errors.Join(os.Remove(base+"/p"), os.Symlink(outside, base+"/p")) }, "-", "p"},
		"the part is elsewhere":  {func(base, _ string) error { return os.Rename(base+"/p", base+"/q") }, "-", "q"},
		"before there was a copy": {func(_, dir string) error {
			return errors.Join(os.RemoveAll(dir+"/seed.part"), os.Rename(dir+"/seed", dir+"/seed.part"))
		}, "", "p"},
	} {
		s := open(t)
		v := volumeOf("data")
		base, dir := s.Path(v.ID), s.dir(v.ID)
		ok(t, os.MkdirAll(base+"/p", 0o755))
		write(t, dir+"/seed/plain", "plain")
		write(t, dir+"/seed/more", "more")
		write(t, dir+"/seed.part/half", "half")
		write(t, dir+"/seed.of", "p")
		if c.left != nil {
			ok(t, c.left(base, dir))
		}
		ok(t, s.Use(t.Context(), "one", v))
		if got := in(t, base); got != c.root {
			t.Errorf("%s: the volume has %q, want %q", what, got, c.root)
		}
		if c.p != "-" {
			if got := in(t, base+"/p"); got != c.p {
				t.Errorf("%s: the part has %q, want %q", what, got, c.p)
			}
		}
		if got := in(t, dir); got != "_data" {
			t.Errorf("%s: there are %q", what, got)
		}
	}
	if got := in(t, outside); got != "" {
		t.Errorf("%q came out of the volume", got)
	}
}

// A container that swaps a part and a symbolic link to the host has nothing put there.
func TestAPartThatIsSwappedWhileItIsSeeded(t *testing.T) {
	s := open(t)
	v := volumeOf("data")
	ok(t, s.Use(t.Context(), "keeps it", v))
	base, outside, image := s.Path(v.ID), t.TempDir(), t.TempDir()
	write(t, image+"/file", "file")
	ok(t, errors.Join(os.Mkdir(base+"/p", 0o755), os.Symlink(outside, base+"/link")))
	over, swapped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(swapped)
		for {
			select {
			case <-over:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, base+"/p", unix.AT_FDCWD, base+"/link", unix.RENAME_EXCHANGE)
			}
		}
	}()
	const seeds = 200
	inside := 0
	for range seeds {
		ok(t, s.Seed(t.Context(), "one", v, "p", from(image)))
		if got := in(t, outside); got != "" {
			t.Fatalf("%q came out of the volume", got)
		}
		for _, p := range []string{base + "/p/file", base + "/link/file"} { // wherever it is now
			if os.Remove(p) == nil {
				inside++
			}
		}
	}
	close(over)
	<-swapped
	if not := seeds - inside; inside == 0 || not == 0 {
		t.Errorf("%d times inside, %d times not: there was no race", inside, not)
	}
}

const (
	envSeedDir = "DROVER_TEST_SEED"
	files      = 400
)

// TestSeedThatIsKilled is run in a process of its own by the next test.
func TestSeedThatIsKilled(t *testing.T) {
	dir := os.Getenv(envSeedDir)
	if dir == "" {
		t.Skip("it is for the next test")
	}
	s, err := Open(Options{Dir: dir + "/volumes", RunDir: dir + "/run", Node: "n1"})
	ok(t, err)
	fmt.Println("begun")
	ok(t, s.Seed(t.Context(), "one", volumeOf("data"), "", from(dir+"/image")))
}

func TestAnAgentIsKilledWhileItSeeds(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	for i := range files {
		write(t, fmt.Sprintf("%s/image/d%d/f%d", dir, i%20, i), strings.Repeat("x", 1000))
	}
	v := volumeOf("data")
	count := func() (n int) {
		_ = filepath.WalkDir(dir+"/volumes/"+v.ID+"/_data", func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				n++
			}
			return nil
		})
		return n
	}
	partial := false
	for i := range 8 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestSeedThatIsKilled$")
		cmd.Env = append(os.Environ(), envSeedDir+"="+dir)
		out, err := cmd.StdoutPipe()
		ok(t, errors.Join(err, cmd.Start()))
		for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "begun"; {
		}
		time.Sleep(time.Duration(i*i) * 2 * time.Millisecond) // anywhere in the copy
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		left, _ := os.ReadDir(dir + "/volumes/" + v.ID)
		partial = partial || len(left) > 1
		if n := count(); n != 0 && n != files && len(left) == 1 {
			t.Fatalf("%d of %d files count as all", n, files)
		}
	}
	if !partial {
		t.Log("it was never killed in the middle")
	}
	s, err := Open(Options{Dir: dir + "/volumes", RunDir: dir + "/run", Node: "n1"})
	ok(t, err)
	ok(t, s.Seed(t.Context(), "one", v, "", from(dir+"/image")))
	if n := count(); n != files {
		t.Errorf("%d of %d files are there", n, files)
	}
}
