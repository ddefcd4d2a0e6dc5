// Package inside reads and writes a container's files from within: its process first makes
// them its own root, so that no link, however it is swapped, leads anywhere else. Which
// files these are, and who may read them, is up to the agent.
package inside

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/go-archive"
	"github.com/moby/go-archive/compression"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/sys/symlink"
	"github.com/moby/sys/user"

	"github.com/drover/drover/agent/archive/archiveapi"
)

// Run does what a request asks for. reply is called before anything is written to out, and
// once at the end. A failure of the operation is a reply; the error is one that prevents it.
func Run(r archiveapi.Request, in io.Reader, out io.Writer, reply func(any) error) error {
	stat, err := run(r, in, out, reply)
	if err != nil {
		return reply(archiveapi.Reply{Failure: failure(err)})
	}
	return reply(archiveapi.Reply{Stat: stat})
}

func run(r archiveapi.Request, in io.Reader, out io.Writer, reply func(any) error) (*container.PathStat, error) {
	switch r.Operation {
	case archiveapi.Write:
		return nil, write(r, in)
	case archiveapi.Stat, archiveapi.Read, archiveapi.Export, archiveapi.Changes:
	default:
		return nil, fmt.Errorf("unknown operation %q", r.Operation)
	}
	if err := enter(r); err != nil {
		return nil, err
	}
	switch r.Operation {
	case archiveapi.Read:
		return nil, read(r.Path, out, reply)
	case archiveapi.Export:
		return nil, export(out, reply)
	case archiveapi.Changes:
		return nil, changes(out, reply)
	default:
		return stat(r.Path)
	}
}

func failure(err error) *archiveapi.Error {
	var f *archiveapi.Error
	switch {
	case errors.As(err, &f):
		return f
	case errors.Is(err, os.ErrNotExist):
		return &archiveapi.Error{Kind: archiveapi.NotFound, Message: err.Error()}
	}
	return &archiveapi.Error{Kind: archiveapi.Other, Message: err.Error()}
}

func invalid(msg string) error { return &archiveapi.Error{Kind: archiveapi.Invalid, Message: msg} }

// stat describes a path, whose last name is not followed.
func stat(path string) (*container.PathStat, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	out := &container.PathStat{Name: filepath.Base(path), Size: st.Size(), Mode: st.Mode(), Mtime: st.ModTime()}
	if st.Mode()&os.ModeSymlink != 0 {
		// To the last target, or as far as there are targets.
		if out.LinkTarget, err = symlink.FollowSymlinkInScope(path, "/"); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// absolute is a path from the root; what says that it is a directory stays at its end.
func absolute(path string) string {
	return archive.PreserveTrailingDotOrSeparator(filepath.Join("/", path), path)
}

func read(path string, out io.Writer, reply func(any) error) error {
	path = absolute(path)
	st, err := stat(path)
	if err != nil {
		return err
	}
	dir, base := path, "."
	if !st.Mode.IsDir() {
		dir, base = filepath.Split(path)
	}
	all, err := archive.TarWithOptions(dir, archive.TarResourceRebaseOpts(base, filepath.Base(path)))
	if err != nil {
		return err
	}
	return send(all, out, reply, archiveapi.Reply{Stat: st})
}

func export(out io.Writer, reply func(any) error) error {
	all, err := archive.TarWithOptions("/", &archive.TarOptions{})
	if err != nil {
		return err
	}
	return send(all, out, reply, archiveapi.Reply{})
}

func send(all io.ReadCloser, out io.Writer, reply func(any) error, first archiveapi.Reply) error {
	defer func() { _ = all.Close() }()
	if err := reply(first); err != nil {
		return err
	}
	_, err := io.Copy(out, all)
	return err
}

// write extracts an archive into a directory. What decompresses it is the host's program.
func write(r archiveapi.Request, in io.Reader) error {
	plain, err := compression.DecompressStream(in)
	if err != nil {
		return err
	}
	defer func() { _ = plain.Close() }()
	o, done, err := archive.WithProcSelfFD(&archive.TarOptions{NoOverwriteDirNonDir: r.NoOverwriteDir})
	if err != nil {
		return err
	}
	defer done()
	if err := enter(r); err != nil {
		return err
	}
	// A link to a directory is as good as that.
	path, err := filepath.EvalSymlinks(filepath.Join("/", r.Path))
	if err != nil {
		return err
	}
	path = archive.PreserveTrailingDotOrSeparator(path, r.Path)
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return invalid("extraction point is not a directory")
	}
	if err := writable(r, path); err != nil {
		return err
	}
	if r.Owner != "" {
		if o.ChownOpts, err = owner(r.Owner); err != nil {
			return err
		}
	}
	return archive.UntarUncompressed(plain, path, o)
}

// writable refuses what the container may not write to either.
func writable(r archiveapi.Request, path string) error {
	var in *archiveapi.Bind
	for i, b := range r.Binds {
		rel, err := filepath.Rel(filepath.Clean(b.Target), filepath.Clean(path))
		if b.Own || err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
			continue
		}
		if in == nil || len(b.Target) >= len(in.Target) {
			in = &r.Binds[i]
		}
	}
	switch {
	case in != nil && in.ReadOnly:
		return invalid("mounted volume is marked read-only")
	case in == nil && r.ReadOnlyRoot:
		return invalid("container rootfs is marked read-only")
	}
	return nil
}

// owner finds user[:group] among the container's users and groups.
func owner(name string) (*archive.ChownOpts, error) {
	users, err := readUsers("/etc/passwd")
	if err != nil {
		return nil, err
	}
	groups, err := readUsers("/etc/group")
	if err != nil {
		return nil, err
	}
	u, err := user.GetExecUser(name, nil, bytes.NewReader(users), bytes.NewReader(groups))
	if err != nil {
		return nil, invalid(err.Error())
	}
	return &archive.ChownOpts{UID: u.Uid, GID: u.Gid}, nil
}
