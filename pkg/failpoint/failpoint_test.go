package failpoint_test

import (
	"bytes"
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drover/drover/pkg/failpoint"
)

// names returns those of names.txt, in its order.
func names(t *testing.T) (out []string) {
	t.Helper()
	b, err := os.ReadFile("names.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		name, what, _ := strings.Cut(line, " ")
		if strings.TrimSpace(what) == "" {
			t.Errorf("%q does not say what has happened there", line)
		}
		out = append(out, name)
	}
	return out
}

// A name stands for one place: else a round that was to kill at one would kill at another.
func TestEachNameIsOnceInTheCode(t *testing.T) {
	in := map[string][]string{}
	err := filepath.WalkDir("../..", func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || d.Name() == "bin" || d.Name() == ".git"):
			return filepath.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		return collect(path, in)
	})
	if err != nil {
		t.Fatal(err)
	}
	listed := names(t)
	for i, n := range listed {
		if slices.Index(listed, n) != i {
			t.Errorf("%s is listed twice", n)
		}
		if len(in[n]) != 1 {
			t.Errorf("%s is in %v", n, in[n])
		}
		delete(in, n)
	}
	for n, where := range in {
		t.Errorf("%s (%v) is not in names.txt", n, where)
	}
}

func collect(path string, in map[string][]string) error {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) != 1 {
			return true
		}
		s, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || fmt.Sprint(s.X) != "failpoint" {
			return true
		}
		name := "no literal"
		if l, ok := call.Args[0].(*ast.BasicLit); ok {
			name, _ = strconv.Unquote(l.Value)
		}
		in[name] = append(in[name], fset.Position(call.Pos()).String())
		return true
	})
	return nil
}

// built is the program in testdata/pass, with the tag or without it.
func built(t *testing.T, tags string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "pass")
	c := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-tags", tags, "-o", bin, "./testdata/pass")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return bin
}

func run(t *testing.T, bin, env string) (out string, ended *os.ProcessState) {
	t.Helper()
	c := exec.CommandContext(t.Context(), bin)
	c.Env = append(os.Environ(), failpoint.Env+"="+env)
	b, _ := c.Output()
	return string(b), c.ProcessState
}

const all = "passed 1\npassed 2\npassed 3\nended\n"

func TestABuildWithoutTheTagHasNoFailpoints(t *testing.T) {
	without, with := built(t, ""), built(t, "failpoints")
	for bin, want := range map[string]bool{without: false, with: true} {
		b, err := os.ReadFile(bin)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"engine.attempt.before", "shims.exec.before", failpoint.Env} {
			if bytes.Contains(b, []byte(word)) != want {
				t.Errorf("%q is in the binary: %v", word, !want)
			}
		}
	}
	if out, _ := run(t, without, "engine.attempt.before=kill"); out != all {
		t.Errorf("it did %q", out)
	}
}

func TestActions(t *testing.T) {
	bin := built(t, "failpoints")
	for env, want := range map[string]string{
		"":                                                     all,
		"shim.start.after=kill":                                all,
		"engine.attempt.before=kill":                           "",
		"engine.attempt.before=kill@2":                         "passed 1\n",
		"engine.attempt.before=kill@4":                         all,
		"engine.attempt.before=error(ignored)":                 all,
		"shims.exec.before=error(it is full)":                  "passed 1\npassed 2\npassed 3\nerror: it is full\nended\n",
		"shims.exec.before=error(a)@2":                         all,
		"shims.exec.before=error(a@b)":                         "passed 1\npassed 2\npassed 3\nerror: a@b\nended\n",
		"shim.start.after=kill;\nengine.attempt.before=kill@3": "passed 1\npassed 2\n",
	} {
		if out, ended := run(t, bin, env); out != want {
			t.Errorf("%q: %q, %v", env, out, ended)
		}
	}
	for _, env := range []string{"nowhere=kill", "engine.attempt.before", "engine.attempt.before=fly", "engine.attempt.before=kill@x", "engine.attempt.before=kill@0", "engine.attempt.before=sleep(long)"} {
		if out, ended := run(t, bin, env); ended.ExitCode() != 2 || strings.Contains(out, "ended") {
			t.Errorf("%q was taken: %q, %v", env, out, ended)
		}
	}
	began := time.Now()
	if out, _ := run(t, bin, "engine.attempt.before=sleep(50ms)"); out != all || time.Since(began) < 150*time.Millisecond {
		t.Errorf("three times 50 ms took %v: %q", time.Since(began), out)
	}
}

// A process that is stopped goes no further, and continues as if nothing had happened.
func TestAStoppedProcessContinues(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, built(t, "failpoints"))
	c.Env = append(os.Environ(), failpoint.Env+"=engine.attempt.before=stop@2")
	var out bytes.Buffer
	c.Stdout = &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var st syscall.WaitStatus
	if _, err := syscall.Wait4(c.Process.Pid, &st, syscall.WUNTRACED, nil); err != nil || !st.Stopped() {
		t.Fatalf("it is not stopped: %v, %v", st, err)
	}
	if err := c.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil || out.String() != all {
		t.Errorf("it did %q, %v", out.String(), err)
	}
}

// What is armed in a directory happens once in all processes, which leave there what they
// have passed.
func TestWhatIsArmedInADirectoryHappensOnce(t *testing.T) {
	bin, dir := built(t, "failpoints"), t.TempDir()
	arm := func(spec string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, failpoint.Armed), []byte(spec), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, _ := run(t, bin, "@"+dir); out != all {
		t.Errorf("nothing is armed: %q", out)
	}
	arm("engine.attempt.before=kill@2")
	for _, want := range []string{"passed 1\n", all} {
		if out, _ := run(t, bin, "@"+dir); out != want {
			t.Errorf("it did %q, not %q", out, want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, failpoint.Fired)); err != nil {
		t.Error(err)
	}
	arm("shim.start.after=kill")
	if out, _ := run(t, bin, "@"+dir); out != all {
		t.Errorf("another one is armed: %q", out)
	}
	if _, err := os.Stat(filepath.Join(dir, failpoint.Armed)); err != nil {
		t.Errorf("what did not happen is no longer armed: %v", err)
	}
	got, err := os.ReadDir(filepath.Join(dir, failpoint.Passed))
	if err != nil || len(got) != 2 || got[0].Name() != "engine.attempt.before" || got[1].Name() != "shims.exec.before" {
		t.Errorf("passed were %v, %v", got, err)
	}
}
