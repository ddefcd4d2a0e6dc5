package faketask

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/bulk"
)

// process is the environment of a program.
type process struct {
	ctx    context.Context
	cancel context.CancelFunc
	stdin  *io.PipeReader
	in     *io.PipeWriter
	term   chan struct{}

	mu     sync.Mutex // guards the fields below
	killed int        // 0: not
	termed bool
}

func newProcess(stdin bool) *process {
	p := &process{term: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.stdin, p.in = io.Pipe()
	if !stdin {
		_ = p.in.Close()
	}
	return p
}

func (p *process) kill(code int) {
	p.mu.Lock()
	if p.killed == 0 {
		p.killed = code
	}
	p.mu.Unlock()
	p.cancel()
	_ = p.stdin.Close()
	_ = p.in.CloseWithError(io.EOF)
}

func (p *process) signal(s string) error {
	switch strings.TrimPrefix(strings.ToUpper(s), "SIG") {
	case "KILL", "9":
		p.kill(137)
	case "TERM", "15", "QUIT", "3":
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.termed {
			p.termed = true
			close(p.term)
		}
	case "0", "HUP", "1", "INT", "2", "USR1", "USR2", "WINCH":
	default:
		return fmt.Errorf("invalid signal: %s", s)
	}
	return nil
}

// ended returns the exit code of a program that returned code.
func (p *process) ended(code int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cancel()
	_ = p.stdin.Close()
	if p.killed != 0 {
		return p.killed
	}
	return code
}

type run func(p *process, out func(kind byte, b []byte)) int

func command(c container.CreateRequest) []string {
	if c.Config == nil {
		return nil
	}
	return append(append([]string(nil), c.Entrypoint...), c.Cmd...)
}

func program(args []string) (run, error) {
	if len(args) == 0 {
		return nil, &task.StartError{Code: 125, Message: "no command specified"}
	}
	switch args[0] {
	case "true":
		return exits(0), nil
	case "false":
		return exits(1), nil
	case "echo":
		return func(_ *process, out func(byte, []byte)) int {
			out(bulk.FrameStdout, []byte(strings.Join(args[1:], " ")+"\n"))
			return 0
		}, nil
	case "cat":
		return cat, nil
	case "seq":
		return seq(args[1:]), nil
	case "sleep":
		if len(args) == 2 {
			if s, err := strconv.ParseFloat(args[1], 64); err == nil {
				return sleep(time.Duration(s * float64(time.Second))), nil
			}
		}
		return exits(1), nil
	case "trap":
		code := 0
		if len(args) == 2 {
			code, _ = strconv.Atoi(args[1])
		}
		return func(p *process, _ func(byte, []byte)) int {
			select {
			case <-p.term:
			case <-p.ctx.Done():
			}
			return code
		}, nil
	case "sh":
		var n int
		if len(args) == 3 && args[1] == "-c" {
			if _, err := fmt.Sscanf(args[2], "exit %d", &n); err == nil {
				return exits(n), nil
			}
		}
		return exits(2), nil
	}
	return nil, &task.StartError{Code: 127, Message: fmt.Sprintf("exec: %q: executable file not found in $PATH", args[0])}
}

func exits(code int) run { return func(*process, func(byte, []byte)) int { return code } }

// seq counts from 1, in pieces that don't end with lines.
func seq(args []string) run {
	return func(_ *process, out func(byte, []byte)) int {
		if len(args) != 2 || args[0] != "1" {
			return 1
		}
		n, _ := strconv.Atoi(args[1])
		var b []byte
		for i := range n {
			if b = append(strconv.AppendInt(b, int64(i+1), 10), '\n'); len(b) > 5000 {
				out(bulk.FrameStdout, b[:5000])
				b = append([]byte(nil), b[5000:]...)
			}
		}
		out(bulk.FrameStdout, b)
		return 0
	}
}

func cat(p *process, out func(byte, []byte)) int {
	b := make([]byte, 32<<10)
	for {
		n, err := p.stdin.Read(b)
		if n > 0 {
			out(bulk.FrameStdout, append([]byte(nil), b[:n]...))
		}
		if err != nil {
			return 0
		}
	}
}

func sleep(d time.Duration) run {
	return func(p *process, _ func(byte, []byte)) int {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-p.ctx.Done():
		}
		return 0
	}
}
