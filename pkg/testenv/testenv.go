// Package testenv marks tests that need more than a Go toolchain, and builds the daemons
// that they run. `make unit` runs with -short and skips such tests; `make test` runs
// all, and fails if something is missing.
package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Root marks a test that creates namespaces, mounts or interfaces, or runs containers:
// it is skipped with -short, and fails otherwise unless run as root.
func Root(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs root: left out by -short")
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root: make unit runs what doesn't")
	}
}

var built struct {
	mu  sync.Mutex // guards the fields below
	dir string
	all map[string]string // paths of what was built, by build arguments
}

// Build builds the main package in dir to out, with the flags of the payload's daemons:
// with the race detector's environment, cgo would make it a separate build of all of
// containerd. Each build happens once per process; Main removes its result.
func Build(t testing.TB, out, dir string, flags ...string) {
	t.Helper()
	built.mu.Lock()
	defer built.mu.Unlock()
	if built.dir == "" {
		d, err := os.MkdirTemp("", "built")
		if err != nil {
			t.Fatal(err)
		}
		built.dir, built.all = d, map[string]string{}
	}
	key := strings.Join(append([]string{dir}, flags...), " ")
	bin := built.all[key]
	if bin == "" {
		bin = filepath.Join(built.dir, filepath.Base(dir))
		c := exec.CommandContext(t.Context(), "go", slices.Concat([]string{"build", "-trimpath", "-ldflags", "-s -w"}, flags, []string{"-o", bin, dir})...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if said, err := c.CombinedOutput(); err != nil {
			t.Fatalf("building %s: %v\n%s", dir, err, said)
		}
		built.all[key] = bin
	}
	if err := os.Link(bin, out); err != nil {
		t.Fatal(err)
	}
}

// Main is for the TestMain of a package whose tests use Build.
func Main(m *testing.M) {
	code := m.Run()
	_ = os.RemoveAll(built.dir)
	os.Exit(code)
}
