// Package testenv says which tests need more than a Go toolchain, and builds the
// daemons that they run. `make unit` runs with -short and leaves such tests out;
// `make test` runs all, and there what is missing is a failure.
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

// Root is for tests that make namespaces, mounts or interfaces, or run containers:
// -short skips them, and otherwise they fail for who is not root.
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
	all map[string]string // what was built, by its arguments
}

// Build puts the main package in dir at out, built as the payload's daemons are: with
// the race detector around it, cgo would make it another build of all of containerd.
// A process builds each once; Main removes them.
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

// Main is for a package's TestMain, where its tests use Build.
func Main(m *testing.M) {
	code := m.Run()
	_ = os.RemoveAll(built.dir)
	os.Exit(code)
}
