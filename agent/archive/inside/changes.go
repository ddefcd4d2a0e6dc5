package inside

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/archive/archiveapi"
)

// Where the layers are mounted in this process's root.
const (
	upper = "/upper"
	lower = "/lower"
)

// initial is what docker puts into a layer of its own below the container's, and what
// runtimes here create in the container's, to mount something there: no change.
var initial = map[string]bool{
	"/dev": true, "/dev/pts": true, "/dev/shm": true, "/dev/mqueue": true, "/dev/console": true, "/proc": true, "/sys": true, "/etc": true,
	"/etc/resolv.conf": true, "/etc/hosts": true, "/etc/hostname": true, "/etc/mtab": true, "/.dockerenv": true,
}

// comparison finds how an overlay's upper directory changes what is below it. A changed
// directory is reported before what changed in it, also one in which only others did.
type comparison struct {
	report func(path string, kind container.ChangeType) error
	above  []string // directories that are reported once something in them is
}

// changes writes the changes as a JSON array, each as it is found: there may be any number.
func changes(out io.Writer, reply func(any) error) error {
	if err := reply(archiveapi.Reply{}); err != nil {
		return err
	}
	w := bufio.NewWriter(out)
	separator := "["
	c := comparison{report: func(path string, kind container.ChangeType) error {
		b, err := json.Marshal(archiveapi.Change{Path: path, Kind: kind})
		if err == nil {
			_, err = w.WriteString(separator + string(b))
		}
		separator = ",\n"
		return err
	}}
	if err := c.dir("/", true); err != nil {
		return err
	}
	if separator == "[" {
		_, _ = w.WriteString(separator) // Flush returns its error
	}
	_, _ = w.WriteString("]\n")
	return w.Flush()
}

func (c *comparison) emit(path string, kind container.ChangeType) error {
	above := c.above
	c.above = c.above[:0]
	for _, d := range above {
		if err := c.report(d, container.ChangeModify); err != nil {
			return err
		}
	}
	return c.report(path, kind)
}

// dir compares what is in a directory of the upper layer with what is below it, if that is
// a directory too.
func (c *comparison) dir(dir string, below bool) error {
	names, err := namesIn(upper + dir)
	if err != nil {
		return err
	}
	if below && opaque(upper+dir) { // what is below is there no more
		gone, err := namesIn(lower + dir)
		if err != nil {
			return err
		}
		names = append(names, gone...)
		slices.Sort(names)
		names = slices.Compact(names)
	}
	for _, n := range names {
		if err := c.entry(path.Join(dir, n), below); err != nil {
			return err
		}
	}
	return nil
}

func (c *comparison) entry(name string, below bool) error {
	is, err := look(upper + name)
	if err != nil {
		return err
	}
	var was os.FileInfo
	if below {
		if was, err = look(lower + name); err != nil {
			return err
		}
	}
	switch {
	case is == nil || whiteout(is):
		if was == nil {
			return nil
		}
		return c.emit(name, container.ChangeDelete)
	case was == nil && initial[name] && is.IsDir():
		return c.inside(name, false)
	case was == nil && initial[name] && is.Size() == 0 || was == nil && name == "/etc/mtab":
		return nil
	case was == nil:
		err = c.emit(name, container.ChangeAdd)
	case different(was, is) || !bytes.Equal(capability(lower+name), capability(upper+name)):
		err = c.emit(name, container.ChangeModify)
	case is.IsDir():
		return c.inside(name, true)
	}
	if err == nil && is.IsDir() {
		err = c.dir(name, was != nil && was.IsDir())
	}
	return err
}

// inside compares a directory that did not change itself.
func (c *comparison) inside(name string, below bool) error {
	c.above = append(c.above, name)
	err := c.dir(name, below)
	if n := len(c.above); n > 0 { // else it was reported
		c.above = c.above[:n-1]
	}
	return err
}

// look is what is at a path, nil if nothing: it may just have been removed.
func look(name string) (os.FileInfo, error) {
	st, err := os.Lstat(name)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	return st, err
}

// namesIn lists a directory, in order. One that was just removed, or replaced, has nothing.
func namesIn(dir string) ([]string, error) {
	f, err := os.OpenFile(filepath.Clean(dir), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// whiteout reports whether an entry of an overlay says that there is nothing.
func whiteout(st os.FileInfo) bool {
	return st.Mode()&os.ModeCharDevice != 0 && st.Sys().(*syscall.Stat_t).Rdev == 0
}

func opaque(dir string) bool {
	v := make([]byte, 1)
	n, err := unix.Lgetxattr(dir, "trusted.overlay.opaque", v)
	return err == nil && n == 1 && v[0] == 'y'
}

func capability(name string) []byte {
	v := make([]byte, 64)
	n, err := unix.Lgetxattr(name, "security.capability", v)
	if err != nil {
		return nil
	}
	return v[:n]
}

// different compares as docker does: a directory's size and time say nothing.
func different(was, is os.FileInfo) bool {
	a, b := was.Sys().(*syscall.Stat_t), is.Sys().(*syscall.Stat_t)
	return was.Mode() != is.Mode() || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev ||
		!was.IsDir() && (was.Size() != is.Size() || !sameTime(was.ModTime(), is.ModTime()))
}

// sameTime takes a time without a fraction, as archives have, for any in its second.
func sameTime(a, b time.Time) bool {
	return a.Equal(b) || a.Unix() == b.Unix() && (a.Nanosecond() == 0 || b.Nanosecond() == 0)
}
