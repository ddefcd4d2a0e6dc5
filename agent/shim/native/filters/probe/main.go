//go:build cgo && seccomp

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"

	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/shim/native/filters"
)

func init() { runtime.LockOSThread() } // a filter is a thread's: here, the first one's

func main() {
	if err := load(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func load(args []string) error {
	var profile specs.LinuxSeccomp
	if err := json.NewDecoder(os.Stdin).Decode(&profile); err != nil {
		return fmt.Errorf("reading a profile: %w", err)
	}
	c, err := specconv.SetupSeccomp(&profile)
	if err != nil {
		return err
	}
	if len(args) > 0 {
		if c, err = filters.Compiled(args[0], c); err != nil {
			return err
		}
	}
	if _, err := seccomp.InitSeccomp(c); err != nil {
		return err
	}
	return unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP)
}
