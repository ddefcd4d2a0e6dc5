package inside

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/archive/archiveapi"
)

// raced bounds how often a path that is being changed is walked again.
const raced = 128

// enter makes a container's files all that this process sees, in its own mount namespace.
func enter(r archiveapi.Request) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	build := contents
	if r.Operation == archiveapi.Changes {
		build = layers
	}
	if err := build(r); err != nil {
		return err
	}
	// What the container made of its files is neither run nor opened as a device.
	err := unix.MountSetattr(unix.AT_FDCWD, r.At, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC})
	if err != nil && !errors.Is(err, unix.ENOSYS) { // before Linux 5.12
		return fmt.Errorf("restricting the mounts: %w", err)
	}
	return pivot(r.At)
}

// pivot makes a mount the root, and leaves nothing of what was there before.
func pivot(at string) error {
	if err := unix.Chdir(at); err != nil {
		return fmt.Errorf("entering the container's files: %w", err)
	}
	// The old root is mounted over the new one, from where it is unmounted: no directory is needed for it.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("entering the container's files: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leaving the host's files: %w", err)
	}
	return unix.Chdir("/")
}

// contents mounts a container's files with its binds.
func contents(r archiveapi.Request) error {
	all := r.Root
	// This mount namespace is a copy, which nobody changes any more: it is there or it is not.
	if is, err := mountinfo.Mounted(r.Mounted); err == nil && is {
		all = []mount.Mount{{Type: "bind", Source: r.Mounted, Options: []string{"bind"}}}
	}
	if err := mount.All(all, r.At); err != nil {
		return fmt.Errorf("mounting the container's files: %w", err)
	}
	root, err := unix.Open(r.At, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the container's files: %w", err)
	}
	defer func() { _ = unix.Close(root) }()
	for _, b := range r.Binds {
		if err := bind(root, b, r.Operation == archiveapi.Write); err != nil {
			return fmt.Errorf("mounting %s: %w", b.Target, err)
		}
	}
	return nil
}

// layers mounts what a container changed and what it began with, both read-only.
func layers(r archiveapi.Request) error {
	if err := unix.Mount("tmpfs", r.At, "tmpfs", 0, "size=64k"); err != nil {
		return fmt.Errorf("mounting a place for layers: %w", err)
	}
	up, low := filepath.Join(r.At, upper), filepath.Join(r.At, lower)
	if err := errors.Join(os.Mkdir(up, 0o700), os.Mkdir(low, 0o700)); err != nil {
		return err
	}
	all := []mount.Mount{{Type: "bind", Source: r.Upper, Target: upper, Options: []string{"rbind", "ro"}}}
	switch len(r.Lowers) {
	case 0:
	case 1:
		all = append(all, mount.Mount{Type: "bind", Source: r.Lowers[0], Target: lower, Options: []string{"rbind", "ro"}})
	default:
		all = append(all, mount.Mount{Type: "overlay", Source: "overlay", Target: lower, Options: []string{"lowerdir=" + strings.Join(r.Lowers, ":"), "ro"}})
	}
	if err := mount.All(all, r.At); err != nil {
		return fmt.Errorf("mounting the container's layers: %w", err)
	}
	return nil
}

// bind mounts a path of the host in a container. Whatever links the container has there,
// and however it changes them meanwhile, the place is in its own root.
func bind(root int, b archiveapi.Bind, writing bool) error {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if !b.Alone {
		flags |= unix.AT_RECURSIVE
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, b.Source, flags)
	if err != nil {
		return &os.PathError{Op: "open", Path: b.Source, Err: err}
	}
	defer func() { _ = unix.Close(tree) }()
	if b.ReadOnly {
		err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		if err != nil && (writing || !errors.Is(err, unix.ENOSYS)) {
			return fmt.Errorf("making it read-only: %w", err)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return err
	}
	to, err := place(root, b.Target, st.Mode&unix.S_IFMT == unix.S_IFDIR)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(to) }()
	return unix.MoveMount(tree, "", to, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// place opens where something is to be mounted, and creates what is missing of the path.
func place(root int, target string, dir bool) (int, error) {
	for range maxLinks {
		fd, err := openIn(root, target)
		if !errors.Is(err, unix.ENOENT) {
			return fd, err
		}
		target = path.Clean("/" + target)
		parent, err := place(root, path.Dir(target), true)
		if err != nil {
			return -1, err
		}
		to, err := create(parent, path.Base(target), dir)
		_ = unix.Close(parent)
		if err != nil {
			return -1, &os.PathError{Op: "create", Path: target, Err: err}
		}
		if to != "" && !path.IsAbs(to) {
			to = path.Join(path.Dir(target), to)
		}
		if to != "" {
			target = to
		}
	}
	return -1, &os.PathError{Op: "create", Path: target, Err: unix.ELOOP}
}

const maxLinks = 32

// create creates an empty file or directory, or returns where a link in its place leads.
func create(in int, name string, dir bool) (link string, err error) {
	if dir {
		err = unix.Mkdirat(in, name, 0o755)
	} else {
		err = unix.Mknodat(in, name, unix.S_IFREG|0o755, 0)
	}
	if !errors.Is(err, unix.EEXIST) {
		return "", err
	}
	to := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(in, name, to)
	if errors.Is(err, unix.EINVAL) { // somebody just made it
		return "", nil
	}
	return string(to[:max(n, 0)]), err
}

// openIn opens a path as a process with that root would.
func openIn(root int, target string) (fd int, err error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range raced {
		fd, err = unix.Openat2(root, target, how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: target, Err: err}
	}
	return fd, nil
}

// readUsers reads a file of the container that names users or groups; what is no regular
// file has none.
func readUsers(name string) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) // a FIFO does not block
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil, err
	}
	if st.Size() > largestUsers {
		return nil, invalid(name + " is larger than " + strconv.Itoa(largestUsers>>20) + " MiB")
	}
	b := make([]byte, st.Size())
	n, err := f.ReadAt(b, 0)
	if n < len(b) && err != nil && n == 0 {
		return nil, err
	}
	return b[:n], nil
}

const largestUsers = 16 << 20
