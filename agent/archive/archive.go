// Package archive reads and writes the files of a container, in a process for each request
// (drover-archive) that sees nothing but them. Which files a container has, and who may
// read them, is up to others.
package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/archive/archiveapi"
)

// Options of New.
type Options struct {
	// Binary returns the path of drover-archive. It is called until it succeeds.
	Binary func() (string, error)
	// At is a directory that New creates. Nothing is ever mounted there in the host's mount
	// namespace.
	At string
}

// Archive runs requests. Safe for concurrent use.
type Archive struct {
	o Options

	mu     sync.Mutex // guards the field below, and is held while Binary is called: that happens once
	binary string
}

// New returns an Archive that has no processes.
func New(o Options) (*Archive, error) {
	if err := os.MkdirAll(o.At, 0o700); err != nil {
		return nil, fmt.Errorf("making the place where containers' files are mounted: %w", err)
	}
	return &Archive{o: o}, nil
}

// Stat describes a path of a container. Failures of the container's files are
// *archiveapi.Error, as for the other methods.
func (a *Archive) Stat(ctx context.Context, r archiveapi.Request) (*container.PathStat, error) {
	r.Operation = archiveapi.Stat
	p, err := a.start(ctx, r)
	if err != nil {
		return nil, err
	}
	defer p.end()
	x, err := p.reply()
	return x.Stat, err
}

// Read starts what r.Operation says: an archive of a path or of all files, or their changes.
// The stream's last Read reports whether it is whole. The process ends with the stream, or
// with ctx.
func (a *Archive) Read(ctx context.Context, r archiveapi.Request) (*Stream, error) {
	p, err := a.start(ctx, r)
	if err != nil {
		return nil, err
	}
	first, err := p.reply()
	if err != nil {
		p.end()
		return nil, err
	}
	return &Stream{Stat: first.Stat, p: p}, nil
}

// Stream is what a process writes.
type Stream struct {
	Stat *container.PathStat // of the path, nil without one
	p    *process
	end  error // what Read returns from now on
}

// Read implements io.Reader.
func (s *Stream) Read(b []byte) (int, error) {
	if s.end != nil {
		return 0, s.end
	}
	n, err := s.p.out.Read(b)
	if errors.Is(err, io.EOF) {
		if _, rerr := s.p.reply(); rerr != nil {
			err = rerr
		}
	}
	s.end = err
	return n, err
}

// Close ends the process, and what it had mounted, before it returns.
func (s *Stream) Close() error {
	s.p.end()
	return nil
}

// trailer is how much is read behind the end of an archive, so that its sender can end.
const trailer = 256 << 10

// Write extracts an archive, which may be compressed. It closes tar once it needs no more
// of it; that must make a Read return soon.
func (a *Archive) Write(ctx context.Context, r archiveapi.Request, tar io.ReadCloser) error {
	r.Operation = archiveapi.Write
	p, err := a.start(ctx, r)
	if err != nil {
		return errors.Join(err, tar.Close())
	}
	from := &source{Reader: tar}
	var feeding sync.WaitGroup
	feeding.Go(func() {
		_, _ = io.Copy(struct{ io.Writer }{p.in}, from)
		if from.err != nil { // half an archive is not extracted as if it were one
			p.cancel()
		}
		_ = p.in.Close()
		_, _ = io.CopyN(io.Discard, from, trailer) // the process has ended, or the archive has
	})
	_, err = p.reply()
	p.end()
	_ = tar.Close()
	feeding.Wait()
	if from.err != nil && err != nil {
		var f *archiveapi.Error
		if !errors.As(err, &f) {
			err = fmt.Errorf("reading the archive: %w", from.err)
		}
	}
	return err
}

// source records how a reader failed.
type source struct {
	io.Reader
	err error
}

func (s *source) Read(b []byte) (int, error) {
	n, err := s.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// process is a drover-archive.
type process struct {
	cmd     *exec.Cmd
	cancel  context.CancelFunc
	in, out *os.File
	replies *json.Decoder
	from    *os.File // of replies
	stderr  *os.File
	once    sync.Once
}

func (a *Archive) path() (_ string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.binary == "" {
		a.binary, err = a.o.Binary()
	}
	return a.binary, err
}

// start starts a process, and sends it the request. The caller must call end.
func (a *Archive) start(ctx context.Context, r archiveapi.Request) (_ *process, err error) {
	r.At = a.o.At
	binary, err := a.path()
	if err != nil {
		return nil, err
	}
	var theirs, ours []*os.File
	defer func() {
		for _, f := range theirs {
			_ = f.Close()
		}
		if err != nil {
			for _, f := range ours {
				_ = f.Close()
			}
		}
	}()
	// pipe returns a pipe's end of the process, which it writes to or else reads from.
	pipe := func(writes bool) (*os.File, *os.File) {
		from, to, perr := os.Pipe()
		if perr != nil {
			err = errors.Join(err, perr)
			return nil, nil
		}
		if !writes {
			from, to = to, from
		}
		ours, theirs = append(ours, from), append(theirs, to)
		return from, to
	}
	in, stdin := pipe(false)
	out, stdout := pipe(true)
	request, requested := pipe(false)
	replies, replied := pipe(true)
	said, stderr := pipe(true)
	if err != nil {
		return nil, fmt.Errorf("starting drover-archive: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &process{cmd: exec.CommandContext(ctx, binary), cancel: cancel, in: in, out: out, replies: json.NewDecoder(replies), from: replies, stderr: said}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = stdin, stdout, stderr
	p.cmd.ExtraFiles = []*os.File{requested, replied}
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GOMAXPROCS=2"}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if err := p.cmd.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("starting drover-archive: %w", err)
	}
	err = json.NewEncoder(request).Encode(r)
	_ = request.Close()
	if err != nil {
		p.end()
		return nil, fmt.Errorf("sending a request to drover-archive: %w", err)
	}
	return p, nil
}

// reply blocks until the process says something.
func (p *process) reply() (archiveapi.Reply, error) {
	var x archiveapi.Reply
	err := p.replies.Decode(&x)
	if err == nil && x.Failure != nil {
		return x, x.Failure
	}
	if err != nil {
		p.cancel() // it has ended, or makes no sense
		var said bytes.Buffer
		_, _ = io.Copy(&said, io.LimitReader(p.stderr, 4<<10))
		return x, fmt.Errorf("drover-archive ended without a word: %s", strings.TrimSpace(said.String()+" "+err.Error()))
	}
	return x, nil
}

// end kills the process, if it did not end, and waits for it: nothing is mounted then.
func (p *process) end() {
	p.once.Do(func() {
		p.cancel()
		_ = p.cmd.Wait()
		for _, f := range []*os.File{p.in, p.out, p.from, p.stderr} {
			_ = f.Close()
		}
	})
}
