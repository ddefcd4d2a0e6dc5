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
	all map[string]string // paths of what was built, by package
}

// Build builds the main package in dir to out, with the flags of the payload's daemons:
// with the race detector's environment, cgo would make it a separate build of all of
// containerd. Each build happens once per process; Main removes its result.
func Build(t testing.TB, out, dir string) {
	t.Helper()
	build(t, out, dir, "CGO_ENABLED=0", "-ldflags", "-s -w")
}

// BuildShim builds the shim to out, as `make payload` does.
func BuildShim(t testing.TB, out string) {
	t.Helper()
	BuildInit(t, out, "github.com/drover/drover/agent/shim/drover-shim")
}

// BuildInit builds a package that uses runc's library to out, as the shim is built.
func BuildInit(t testing.TB, out, pkg string) {
	t.Helper()
	build(t, out, pkg, "CGO_ENABLED=1", "-modfile", modfile(t),
		"-tags", "seccomp,netgo,osusergo,no_grpc,seccompcache", "-ldflags", "-s -w -linkmode external -extldflags -static")
}

// modfile returns the go.mod with our changes to runc's library.
func modfile(t testing.TB) string {
	t.Helper()
	root, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/drover/drover").Output()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(strings.TrimSpace(string(root)), "agent/shim/native/filters/runc/modfile.sh")).Output()
	if err != nil {
		t.Fatalf("changing runc's library: %v", err)
	}
	return strings.TrimSpace(string(out))
}

func build(t testing.TB, out, pkg, env string, flags ...string) {
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
	bin := built.all[pkg]
	if bin == "" {
		bin = filepath.Join(built.dir, filepath.Base(pkg))
		c := exec.CommandContext(t.Context(), "go", slices.Concat([]string{"build", "-trimpath"}, flags, []string{"-o", bin, pkg})...)
		c.Env = append(os.Environ(), env)
		if said, err := c.CombinedOutput(); err != nil {
			t.Fatalf("building %s: %v\n%s", pkg, err, said)
		}
		built.all[pkg] = bin
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
