package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/task"
)

// userIn looks up a user in the root of a running process.
func userIn(pid int, name string) (specs.User, error) {
	return lookUser(filepath.Join("/proc", strconv.Itoa(pid), "root"), name, nil)
}

// lookUser finds "user", "uid", "user:group" and so on in the files below root, "" being
// root, with the groups that list it as a member and those requested in addition.
func lookUser(root, name string, groups []string) (specs.User, error) {
	passwd, err := readIn(root, "etc/passwd")
	if err != nil {
		return specs.User{}, err
	}
	group, err := readIn(root, "etc/group")
	if err != nil {
		return specs.User{}, err
	}
	u, err := user.GetExecUser(name, nil, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return specs.User{}, task.Refuse("unable to find user %s: %v", name, err)
	}
	more, err := user.GetAdditionalGroups(groups, bytes.NewReader(group))
	if err != nil {
		return specs.User{}, task.Refuse("%v", err)
	}
	out := specs.User{UID: uint32(u.Uid), GID: uint32(u.Gid), AdditionalGids: []uint32{uint32(u.Gid)}}
	for _, g := range append(u.Sgids, more...) {
		if g < 0 || g > math.MaxInt32 {
			return specs.User{}, task.Refuse("unable to find user %s: group %d is out of range", name, g)
		}
		out.AdditionalGids = append(out.AdditionalGids, uint32(g))
	}
	return out, nil
}

// openTries bounds how often opening a file is retried while others rename.
const openTries = 128

// largestFile bounds the size of passwd and group files.
const largestFile = 16 << 20

// readIn reads a file of a container, which is not trusted: links can't lead out of
// root, and only a regular file is opened, since opening a device may have effects.
// Anything else is treated as missing, and reads as empty; but a FIFO is refused: runc
// opens these files for each process, and would block for ever.
func readIn(root, path string) ([]byte, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a container's root: %w", err)
	}
	defer func() { _ = unix.Close(dir) }()
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(dir, path, &how)
	for range openTries { // behind a .., EAGAIN means that somebody renamed or mounted meanwhile, anywhere
		if !errors.Is(err, unix.EAGAIN) {
			break
		}
		fd, err = unix.Openat2(dir, path, &how)
	}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("opening /%s of a container: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("looking at /%s of a container: %w", path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFIFO:
		return nil, task.Refuse("no process can start in this container: its /%s is a FIFO", path)
	default:
		return nil, nil
	}
	f, err := os.Open("/proc/self/fd/" + strconv.Itoa(fd)) // the very file that was checked
	if err != nil {
		return nil, fmt.Errorf("opening /%s of a container: %w", path, err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, largestFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading /%s of a container: %w", path, err)
	}
	if len(b) > largestFile {
		return nil, task.Refuse("/%s is larger than %d MiB", path, largestFile>>20)
	}
	return b, nil
}
