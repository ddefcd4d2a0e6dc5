//go:build cgo && seccomp && seccompcache

package filters

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/shim/shimapi"
)

// format is the version of what is kept.
const format = 1

// Compiled returns c with its filter compiled, from dir if it was kept there, where it is
// kept otherwise. The result stands for c in this program only, which loads it. With an
// error, c is returned as it is, whose filter each process compiles for itself.
func Compiled(dir string, c *configs.Seccomp) (*configs.Seccomp, error) {
	if c == nil || dir == "" || c.ListenerPath != "" || c.ListenerMetadata != "" || notifies(c) {
		return c, nil
	}
	key, err := keyOf(c)
	if err != nil {
		return c, err
	}
	s := store{dir}
	text := s.get(key)
	if text == nil {
		compiled, err := seccomp.Compile(c)
		if err != nil {
			return c, fmt.Errorf("compiling a seccomp filter: %w", err)
		}
		text = []byte(compiled)
		if err := s.put(key, text); err != nil {
			return c, err
		}
	}
	return &configs.Seccomp{
		DefaultAction: c.DefaultAction, DefaultErrnoRet: c.DefaultErrnoRet, Architectures: c.Architectures, Flags: c.Flags,
		ListenerMetadata: seccomp.CompiledPrefix + string(text),
	}, nil
}

// notifies reports whether a supervisor takes part, which needs the rules themselves.
func notifies(c *configs.Seccomp) bool {
	if c.DefaultAction == configs.Notify {
		return true
	}
	for _, s := range c.Syscalls {
		if s != nil && s.Action == configs.Notify {
			return true
		}
	}
	return false
}

// keyOf is of all that a compiled filter depends on.
func keyOf(c *configs.Seccomp) ([sha256.Size]byte, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("uname: %w", err)
	}
	major, minor, micro := seccomp.Version()
	b, err := json.Marshal(struct {
		Format                   int
		Arch, Runc, Kernel, Seen string
		Library                  [3]uint
		Config                   *configs.Seccomp
	}{format, runtime.GOARCH, shimapi.RuncVersion, unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Version[:]), [3]uint{major, minor, micro}, c})
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("encoding a seccomp profile: %w", err)
	}
	return sha256.Sum256(b), nil
}
