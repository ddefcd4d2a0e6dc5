// Package testenv marks tests that need more than a Go toolchain, and builds the daemons
// that they run. `make unit` runs with -short and skips such tests; `make test` runs
// all, and fails if something is missing.
package testenv

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
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
	all map[string]string // paths of what was built, by flags and package
}

// Build builds the main package in dir to out, with the flags of the payload's daemons:
// with the race detector's environment, cgo would make it a separate build of all of
// containerd. Each build happens once per process; Main removes its result.
func Build(t testing.TB, out, dir string) {
	t.Helper()
	build(t, out, dir, "CGO_ENABLED=0", "-ldflags", "-s -w")
}

// shimTags are those with which the shim is built.
const shimTags = "seccomp,netgo,osusergo,no_grpc,seccompcache"

// BuildShim builds the shim to out, as `make payload` does.
func BuildShim(t testing.TB, out string) {
	t.Helper()
	BuildInit(t, out, "github.com/drover/drover/agent/shim/drover-shim")
}

// BuildInit builds a package that uses runc's library to out, as the shim is built.
func BuildInit(t testing.TB, out, pkg string) {
	t.Helper()
	build(t, out, pkg, "CGO_ENABLED=1", "-modfile", modfile(t),
		"-tags", shimTags, "-ldflags", "-s -w -linkmode external -extldflags -static")
}

// BuildWithFailpoints builds drover to out with pkg/failpoint's failpoints in all of its
// processes. The payload of containerd must have been made.
func BuildWithFailpoints(t testing.TB, out string) {
	t.Helper()
	dir := t.TempDir()
	shim, packed, overlay := filepath.Join(dir, "shim"), filepath.Join(dir, "shim.gz"), filepath.Join(dir, "overlay.json")
	build(t, shim, "github.com/drover/drover/agent/shim/drover-shim", "CGO_ENABLED=1", "-modfile", modfile(t),
		"-tags", shimTags+",failpoints", "-ldflags", "-s -w -linkmode external -extldflags -static")
	pack(t, packed, shim)
	replaced, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(module(t), "agent/payload/bin/drover-shim.gz"): packed}})
	if err == nil {
		err = os.WriteFile(overlay, replaced, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	build(t, out, "github.com/drover/drover/cli/drover", "CGO_ENABLED=0", "-tags", "failpoints", "-overlay", overlay, "-ldflags", "-s -w")
}

// pack compresses the file at path to out.
func pack(t testing.TB, out, path string) {
	t.Helper()
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	b, err := os.ReadFile(path)
	if err == nil {
		_, err = z.Write(b)
	}
	if err := errors.Join(err, z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// module returns the directory of this module.
func module(t testing.TB) string {
	t.Helper()
	root, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/drover/drover").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(root))
}

// modfile returns the go.mod with our changes to runc's library.
func modfile(t testing.TB) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(module(t), "agent/shim/native/filters/runc/modfile.sh")).Output()
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
	key := strings.Join(append(flags, pkg), " ")
	bin := built.all[key]
	if bin == "" {
		bin = filepath.Join(built.dir, fmt.Sprint(len(built.all), "-", filepath.Base(pkg)))
		c := exec.CommandContext(t.Context(), "go", slices.Concat([]string{"build", "-trimpath"}, flags, []string{"-o", bin, pkg})...)
		c.Env = append(os.Environ(), env)
		if said, err := c.CombinedOutput(); err != nil {
			t.Fatalf("building %s: %v\n%s", pkg, err, said)
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
