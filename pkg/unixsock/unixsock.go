// Package unixsock makes the socket that a host's own clients use, and asks the
// kernel who they are.
package unixsock

import (
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

// File is where the host's own clients reach the fleet.
func File(runDir string) string { return filepath.Join(runDir, "drover.sock") }

// maxSocketPath is what the kernel takes, less the closing NUL.
const maxSocketPath = 107

// Listen makes the socket, in place of a dead one. Only who holds the lock of its
// process may call it: then whatever is there is dead.
func Listen(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("the socket's path %s has %d bytes, the kernel takes %d: choose a shorter run-dir", path, len(path), maxSocketPath)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("making the socket's folder: %w", err)
	}
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("looking for an old socket: %w", err)
	case st.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is in the socket's place and is not a socket", path)
	default:
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("removing the old socket: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	// Until here the umask decided who may connect; peer credentials decide anyway.
	if err := os.Chmod(path, 0o660); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("opening %s to its group: %w", path, err)
	}
	return l, nil
}

// Peer is who connected to the socket: root and the socket's group are admins,
// as its mode says. The group is read each time, so that chgrp works.
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

// soPeerGroups is SO_PEERGROUPS of Linux 4.13, which package syscall lacks.
const soPeerGroups = 59

// peerGroups gives the peer's supplementary groups as they were when it
// connected; none where the kernel can't say.
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
