// Package ps lists processes as `docker top` does: by the host's ps, to which users
// pass arguments, and on hosts without one from /proc. Which processes are a container's
// is up to its caller.
package ps

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
)

// Host is where processes are looked up. The zero value is this host.
type Host struct {
	PS   string // the program; "" is ps, as found in PATH
	Proc string // a mount of proc; "" is /proc
}

// defaultArgs are docker's, and those whose columns need no program.
const defaultArgs = "-ef"

// endWithin is how long a ps that was to end may keep its output open.
const endWithin = time.Second

// List returns those of pids that still run, with the columns that args make ps print:
// words that are separated by spaces, "" for docker's default. An error has docker's
// words.
func (h Host) List(ctx context.Context, args string, pids []int) (container.TopResponse, error) {
	if args == "" {
		args = defaultArgs
	}
	if err := checkArgs(args); err != nil {
		return container.TopResponse{}, err
	}
	program := h.PS
	if program == "" {
		program = "ps"
	}
	path, err := exec.LookPath(program)
	if err != nil && args == defaultArgs {
		return h.read(pids)
	}
	if err != nil {
		return container.TopResponse{}, fmt.Errorf("ps: %w", err)
	}
	words := strings.Split(args, " ")
	out, err := output(ctx, path, append(slices.Clone(words), only(pids)))
	if err != nil { // some options, such as f, can't be combined with -q
		out, err = output(ctx, path, words)
	}
	if err != nil {
		return container.TopResponse{}, fmt.Errorf("ps: %w", err)
	}
	return parse(out, pids)
}

// renamed matches columns that are called PID by the user.
var renamed = regexp.MustCompile(`\s+([^\s]*)=\s*(PID[^\s]*)`)

// checkArgs refuses arguments by which another column would be taken for process ids.
func checkArgs(args string) error {
	for _, m := range renamed.FindAllStringSubmatch(args, -1) {
		if m[1] != "pid" {
			return fmt.Errorf("specifying \"%s=%s\" is not allowed", m[1], m[2])
		}
	}
	return nil
}

func only(pids []int) string {
	text := make([]string, len(pids))
	for i, p := range pids {
		text[i] = strconv.Itoa(p)
	}
	return "-q" + strings.Join(text, ",")
}

func output(ctx context.Context, path string, args []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = endWithin
	out, err := cmd.Output()
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		if why, _, _ := bytes.Cut(ended.Stderr, []byte{'\n'}); len(why) > 0 {
			return nil, errors.New(string(why))
		}
	}
	return out, err
}

// parse picks the lines of pids from what ps printed. Lines without a process id are
// threads of the process before.
func parse(out []byte, pids []int) (container.TopResponse, error) {
	first, rest, _ := strings.Cut(string(out), "\n")
	list := container.TopResponse{Titles: words(first), Processes: [][]string{}}
	at := slices.Index(list.Titles, "PID")
	if at < 0 {
		return container.TopResponse{}, errors.New("Couldn't find PID field in ps output") //nolint:staticcheck // docker's words
	}
	ours := false
	for line := range strings.SplitSeq(rest, "\n") {
		fields := words(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) <= at {
			return container.TopResponse{}, fmt.Errorf("Unexpected pid '%s': the line is too short", line) //nolint:staticcheck // docker's words
		}
		if fields[at] != "-" {
			pid, err := strconv.Atoi(fields[at])
			if err != nil {
				return container.TopResponse{}, fmt.Errorf("Unexpected pid '%s': %w", fields[at], err) //nolint:staticcheck // docker's words
			}
			ours = slices.Contains(pids, pid)
		}
		if ours {
			list.Processes = append(list.Processes, columns(fields, len(list.Titles)))
		}
	}
	return list, nil
}

// columns makes the last of n columns of what follows; a line may also have fewer.
func columns(fields []string, n int) []string {
	if len(fields) <= n {
		return fields
	}
	return append(slices.Clone(fields[:n-1]), strings.Join(fields[n-1:], " "))
}

// words splits at ASCII spaces only: a command line may contain others.
func words(line string) []string {
	return strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune("\t\n\f\r ", r) })
}
