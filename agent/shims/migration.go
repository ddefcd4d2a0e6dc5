package shims

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// migration takes the kernel's wait for a first migration between cgroups off the way of
// a container: after a rest, who moves a process waits for an RCU grace period (8 to 11
// ms), and who does it within some 15 ms after another one does not
// (cgroup_threadgroup_rwsem, a percpu_rw_semaphore).
type migration struct {
	own   *os.File // cgroup.procs of a cgroup that this process is in; nil if none is found
	where string   // the process's cgroups by then

	mu sync.Mutex // held by the one that waits
}

func newMigration() *migration {
	where := ownCgroups()
	for _, path := range ownProcs("/sys/fs/cgroup", where) {
		// What is mounted there need not be what the process's cgroups are named by.
		if b, err := os.ReadFile(path); err != nil || !slices.Contains(strings.Fields(string(b)), strconv.Itoa(os.Getpid())) {
			continue
		}
		if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			return &migration{own: f, where: where}
		}
	}
	return &migration{}
}

// ownCgroups returns the cgroups of this process, "" if they can't be read.
func ownCgroups() string {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	return string(b)
}

// rehearse moves this process to where it is, unless somebody has moved it elsewhere.
func (m *migration) rehearse() {
	if m.own == nil || !m.mu.TryLock() { // another one waits for both
		return
	}
	defer m.mu.Unlock()
	if ownCgroups() != m.where {
		return
	}
	_, _ = m.own.WriteString("0") // what comes of it does not matter: the wait is before
}

func (m *migration) Close() error {
	if m.own == nil {
		return nil
	}
	return m.own.Close()
}

// ownProcs returns where the cgroup.procs of a process's cgroups may be, by its
// /proc/PID/cgroup.
func ownProcs(root, cgroups string) (paths []string) {
	for line := range strings.Lines(cgroups) {
		_, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, dir, found := strings.Cut(rest, ":")
		if ok && found && !strings.HasPrefix(controllers, "name=") {
			paths = append(paths, filepath.Join(root, controllers, filepath.Clean("/"+dir), "cgroup.procs"))
		}
	}
	return paths
}
