//go:build failpoints

package failpoint

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed names.txt
var list string

var (
	known = names(list)

	mu     sync.Mutex // guards the fields below
	text   string     // what passes are counted for
	passes = map[string]int{}
)

// Here takes the action that name is armed with, if it is.
func Here(name string) { _ = Error(name) }

// Error is Here in a place that can fail: it returns the text of an error action.
func Error(name string) error {
	if !known[name] {
		panic("failpoint: " + name + " is not in names.txt")
	}
	spec := os.Getenv(Env)
	dir, dynamic := strings.CutPrefix(spec, "@")
	if dynamic {
		if err := create(filepath.Join(dir, Passed, name)); err != nil {
			panic("failpoint: " + err.Error())
		}
		b, err := os.ReadFile(filepath.Join(dir, Armed))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			panic("failpoint: " + err.Error())
		}
		spec = string(b)
	}
	action, at := armed(spec, name)
	if action == "" {
		return nil
	}
	if n := count(spec, name); at > 0 && n != at {
		return nil
	}
	if dynamic && os.Rename(filepath.Join(dir, Armed), filepath.Join(dir, Fired)) != nil {
		return nil // another process was faster
	}
	return act(name, action)
}

func create(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = os.WriteFile(path, nil, 0o600)
	}
	return err
}

func count(spec, name string) int {
	mu.Lock()
	defer mu.Unlock()
	if spec != text {
		text, passes = spec, map[string]int{}
	}
	passes[name]++
	return passes[name]
}

// armed returns the action of name in spec, "" if there is none, and at which pass it is
// taken, 0 for each.
func armed(spec, name string) (action string, at int) {
	for part := range strings.FieldsFuncSeq(spec, func(r rune) bool { return r == ';' || r == '\n' }) {
		n, a, ok := strings.Cut(strings.TrimSpace(part), "=")
		if n == "" || strings.HasPrefix(n, "#") {
			continue
		}
		if !ok || !known[n] {
			panic(fmt.Sprintf("failpoint: %q is no name of names.txt with an action", part))
		}
		if n != name {
			continue
		}
		if i := strings.LastIndexByte(a, '@'); i >= 0 && !strings.HasSuffix(a, ")") {
			nth, err := strconv.Atoi(a[i+1:])
			if err != nil || nth < 1 {
				panic(fmt.Sprintf("failpoint: %q is at no pass", part))
			}
			a, at = a[:i], nth
		}
		return a, at
	}
	return "", 0
}

func act(name, action string) error {
	_, _ = fmt.Fprintf(os.Stderr, "failpoint %s: %s (process %d)\n", name, action, os.Getpid())
	verb, arg, _ := strings.Cut(strings.TrimSuffix(action, ")"), "(")
	switch verb {
	case "kill":
		signal(unix.SIGKILL)
	case "stop":
		signal(unix.SIGSTOP)
	case "sleep":
		d, err := time.ParseDuration(arg)
		if err != nil {
			panic("failpoint: " + err.Error())
		}
		time.Sleep(d) //nolint:forbidigo // that is what was asked for
	case "error":
		return errors.New(arg)
	default:
		panic(fmt.Sprintf("failpoint: %q is no action", action))
	}
	return nil
}

// signal sends a signal to this thread, so that it does not return before the whole process
// is ended or stopped.
func signal(s unix.Signal) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), s); err != nil {
		panic("failpoint: " + err.Error())
	}
}

// names returns the first word of each line.
func names(list string) map[string]bool {
	out := map[string]bool{}
	for line := range strings.Lines(list) {
		if w := strings.Fields(line); len(w) > 0 {
			out[w[0]] = true
		}
	}
	return out
}
