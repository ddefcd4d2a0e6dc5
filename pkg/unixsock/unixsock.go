// Package unixsock listens on the socket of a host's own clients, and identifies
// them by their peer credentials.
package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"

	"github.com/drover/drover/pkg/pki"
)

// File returns the path of the socket through which the host's own clients reach
// the fleet.
func File(runDir string) string { return filepath.Join(runDir, "drover.sock") }

// maxSocketPath is the length of sun_path, less the terminating NUL.
const maxSocketPath = 107

// Listen creates the socket and replaces a stale one. The caller must hold the lock
// of its process, which is what proves that an existing socket is stale.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("the socket's path %s has %d bytes, the kernel's limit is %d: choose a shorter run-dir", path, len(path), maxSocketPath)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("creating the socket's directory: %w", err)
	}
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("checking for a stale socket: %w", err)
	case st.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s exists and is not a socket", path)
	default:
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("removing the stale socket: %w", err)
		}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	// Until now the umask decided who may connect. That is harmless: Peer decides who is let in.
	if err := os.Chmod(path, 0o660); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("opening %s to its group: %w", path, err)
	}
	return l, nil
}

// Peer returns the principal on the other end of c: root and members of the socket's
// group are admins. The group is read each time, so that chgrp takes effect.
func Peer(path string, c net.Conn) (pki.Principal, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return pki.Principal{}, fmt.Errorf("a %T has no peer credentials", c)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return pki.Principal{}, fmt.Errorf("reading the peer's credentials: %w", err)
	}
	var cred *syscall.Ucred
	var groups []uint32
	var credErr error
	err = raw.Control(func(fd uintptr) {
		if cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); credErr == nil {
			groups = peerGroups(fd)
		}
	})
	if err = errors.Join(err, credErr); err != nil {
		return pki.Principal{}, fmt.Errorf("reading the peer's credentials: %w", err)
	}
	if cred.Uid == 0 {
		return pki.Local(0, pki.RoleAdmin), nil
	}
	st, err := os.Stat(path)
	if err != nil {
		return pki.Principal{}, fmt.Errorf("reading the socket's group: %w", err)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return pki.Principal{}, errors.New("the socket has no group")
	}
	for _, g := range append(groups, cred.Gid) {
		if g == sys.Gid {
			return pki.Local(int(cred.Uid), pki.RoleAdmin), nil
		}
	}
	return pki.Principal{}, fmt.Errorf("uid %d may not use %s: be root, or in its group (gid %d)", cred.Uid, path, sys.Gid)
}

// soPeerGroups is SO_PEERGROUPS (Linux 4.13), which package syscall lacks.
const soPeerGroups = 59

// peerGroups returns the peer's supplementary groups as of its connect, or none where
// the kernel doesn't support that.
func peerGroups(fd uintptr) []uint32 {
	groups := make([]uint32, 64)
	for range 2 {
		n := uint32(4 * len(groups))
		_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, syscall.SOL_SOCKET, soPeerGroups,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&n)), 0)
		if errno == 0 {
			return groups[:n/4]
		}
		if errno != syscall.ERANGE {
			return nil
		}
		groups = make([]uint32, n/4)
	}
	return nil
}
