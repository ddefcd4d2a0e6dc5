// Package cgroup reads what a container uses from its cgroup, of version 1 or 2, in
// docker's shape: for `docker stats`, once per container and second. Which cgroup is a
// container's, and limits, are up to its caller.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"
)

// Host is where cgroups are read. Safe for concurrent use.
type Host struct {
	Root    string // where cgroups are mounted; version 1: with a directory per controller
	Unified bool   // version 2
	Memory  uint64 // of the machine, in bytes: what an unlimited cgroup may use
}

// online lists the host's CPUs in use, as in "0-3,5".
const online = "/sys/devices/system/cpu/online"

// Stats reads what the processes of a cgroup, such as /drover/NODE/ID, use and have used.
// The result has no names, networks or earlier sample. If there is no such cgroup, the
// error is fs.ErrNotExist. A controller that the host lacks leaves its part empty.
func (h Host) Stats(path string) (container.StatsResponse, error) {
	s := container.StatsResponse{Read: time.Now()}
	r := &reader{}
	if h.Unified {
		r.dir = filepath.Join(h.Root, path)
		r.unified(&s)
	} else {
		r.root, r.path = h.Root, path
		r.legacy(&s)
	}
	switch {
	case r.err != nil:
		return s, fmt.Errorf("reading cgroup %s: %w", path, r.err)
	case !r.any:
		return s, fmt.Errorf("reading cgroup %s: %w", path, fs.ErrNotExist)
	}
	if s.MemoryStats.Limit > h.Memory && h.Memory > 0 {
		s.MemoryStats.Limit = h.Memory
	}
	var err error
	s.CPUStats.SystemUsage, s.CPUStats.OnlineCPUs, err = system()
	return s, err
}

// system returns the time of all CPUs together since the boot, in nanoseconds, and how
// many there are. Docker adds up /proc/stat for that, whose unit of 10 ms is too coarse
// for samples that are not far apart; clients only use differences.
func system() (usage uint64, cpus uint32, err error) {
	text, err := os.ReadFile(online)
	if err != nil {
		return 0, 0, fmt.Errorf("reading the CPUs of this host: %w", err)
	}
	if cpus, err = count(string(text)); err != nil {
		return 0, 0, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, 0, fmt.Errorf("reading the clock: %w", err)
	}
	return uint64(now.Nano()) * uint64(cpus), cpus, nil
}

// count returns how many numbers a list such as "0-3,5" has.
func count(list string) (n uint32, err error) {
	for part := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("a list of CPUs: %w", err)
		}
		last, err := strconv.ParseUint(to, 10, 16)
		if err != nil || last < first {
			return 0, fmt.Errorf("a list of CPUs: %q", part)
		}
		n += uint32(last - first + 1)
	}
	return n, nil
}

// reader reads files of one cgroup. It keeps the first error; missing files are none.
type reader struct {
	dir        string // version 2
	root, path string // version 1
	any        bool   // there was a file
	err        error
}

// of is a file of a controller; version 2 has all in one directory.
func (r *reader) of(controller, name string) string {
	if r.dir != "" {
		return filepath.Join(r.dir, name)
	}
	return filepath.Join(r.root, controller, r.path, name)
}

func (r *reader) text(controller, name string) string {
	if r.err != nil {
		return ""
	}
	b, err := os.ReadFile(r.of(controller, name))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV): // the latter while it is being removed
		return ""
	case err != nil:
		r.err = err
		return ""
	}
	r.any = true
	return strings.TrimSpace(string(b))
}

// number reads a file with one number; "max" is most.
func (r *reader) number(controller, name string, most uint64) uint64 {
	text := r.text(controller, name)
	switch text {
	case "":
		return 0
	case "max":
		return most
	}
	return r.parse(text)
}

func (r *reader) parse(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil && r.err == nil {
		r.err = err
	}
	return n
}

// pairs reads lines of a name and a number.
func (r *reader) pairs(controller, name string) map[string]uint64 {
	out := map[string]uint64{}
	for line := range strings.Lines(r.text(controller, name)) {
		if key, n, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			out[key] = r.parse(n)
		}
	}
	return out
}

// device parses MAJOR:MINOR.
func (r *reader) device(text string) (e container.BlkioStatEntry) {
	major, minor, _ := strings.Cut(text, ":")
	e.Major, e.Minor = r.parse(major), r.parse(minor)
	return e
}
