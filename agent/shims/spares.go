package shims

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/pkg/failpoint"
)

// sparePrefix begins the names of what spares have in the place of an id, which is
// hexadecimal.
const sparePrefix = "spare-"

const (
	refillAfter = 20 * time.Millisecond // without a start: it is behind the answer to the last one
	endAfter    = 10 * time.Minute      // without a start: a spare takes memory
)

// spares are shims of the default runtime that wait for a container. There are none until
// a first container was started, and none after a while without starts. They end with the
// agent: each has the lifeline, and the next agent removes their bundles.
type spares struct {
	s       *Shims
	n       int
	runtime shimapi.Choice

	noted chan struct{} // has a token after a start began or ended

	mu       sync.Mutex // guards the fields below
	waiting  []*spare   // oldest first
	busy     int        // containers that are being created
	endAfter time.Duration
}

// spare is a shim whose bundle and socket have a name of their own.
type spare struct {
	*shim
	over  <-chan struct{} // closed when the process has ended
	taken chan struct{}   // closed when it is none any more
}

func newSpares(s *Shims, n int, runtime shimapi.Choice) *spares {
	return &spares{s: s, n: n, runtime: runtime, endAfter: endAfter, noted: make(chan struct{}, 1)}
}

// run keeps spares until the agent ends.
func (p *spares) run() {
	defer p.end()
	refill, end := stopped(), stopped()
	for {
		select {
		case <-p.noted:
			refill.Reset(refillAfter)
			p.mu.Lock()
			end.Reset(p.endAfter)
			p.mu.Unlock()
		case <-refill.C:
			p.fill()
		case <-end.C:
			p.end()
		case <-p.s.life.Done():
			return
		}
	}
}

func stopped() *time.Timer {
	t := time.NewTimer(0)
	t.Stop()
	return t
}

// note puts refilling off, since a container is about to be created, or was; busy is
// how many more are being created now.
func (p *spares) note(busy int) {
	p.mu.Lock()
	p.busy += busy
	p.mu.Unlock()
	select {
	case p.noted <- struct{}{}:
	default:
	}
}

// fill starts the spares that are missing, unless a start needs the processors: its end
// makes it due again.
func (p *spares) fill() {
	for p.s.life.Err() == nil {
		p.mu.Lock()
		enough := p.busy > 0 || len(p.waiting) >= p.n
		p.mu.Unlock()
		if enough {
			return
		}
		y := &spare{shim: &shim{s: p.s, id: sparePrefix + strings.ToLower(rand.Text()[:18])}, taken: make(chan struct{})}
		var err error
		if y.over, err = y.spawn(p.runtime); err != nil {
			p.s.o.Log.Warn("no shim can be started ahead of its container", "err", errors.Join(err, y.discard()))
			return
		}
		p.mu.Lock()
		p.waiting = append(p.waiting, y)
		p.mu.Unlock()
		p.s.wg.Go(func() { p.watch(y) })
	}
}

// watch removes a spare that ended by itself. It is not replaced until the next start:
// its successor might do the same.
func (p *spares) watch(y *spare) {
	select {
	case <-y.taken:
		return
	case <-y.over:
	}
	p.mu.Lock()
	i := slices.Index(p.waiting, y)
	if i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
	}
	p.mu.Unlock()
	if i >= 0 {
		p.s.o.Log.Warn("a shim that waited for a container ended", "err", y.discard())
	}
}

// end ends all spares.
func (p *spares) end() {
	for y := p.pop(); y != nil; y = p.pop() {
		if err := y.discard(); err != nil {
			p.s.o.Log.Warn("a shim that waited for a container can't be removed", "err", err)
		}
	}
}

func (p *spares) pop() *spare {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) == 0 {
		return nil
	}
	y := p.waiting[0]
	p.waiting = slices.Delete(p.waiting, 0, 1)
	close(y.taken)
	return y
}

// take makes a spare the shim of x, and reports whether there was one. x.mu must be held.
func (p *spares) take(x *shim, runtime shimapi.Choice) bool {
	if runtime != p.runtime {
		return false
	}
	for y := p.pop(); y != nil; y = p.pop() {
		err := x.become(y.shim)
		if err == nil {
			return true
		}
		p.s.o.Log.Warn("a shim that waited for a container can't be used", "task", short(x.id), "err", errors.Join(err, x.discard(), y.discard()))
	}
	return false
}

// become takes the bundle, the socket and the process of a spare. An agent that dies
// between the first two leaves a bundle that is known by its record to be a shim's.
func (x *shim) become(y *shim) error {
	if err := os.Rename(y.dir(), x.dir()); err != nil {
		return err
	}
	failpoint.Here("shims.spare.moved")
	if err := os.Rename(y.socket(), x.socket()); err != nil {
		return err
	}
	failpoint.Here("shims.spare.taken")
	return x.connect()
}

// discard ends a shim that was never asked for a container, and removes its bundle.
func (x *shim) discard() error {
	x.hangUp()
	x.kill(0)
	return x.clear()
}

// sweep removes the spares of an agent that died.
func (p *spares) sweep() error {
	left := map[string]bool{}
	for _, pattern := range []string{filepath.Join(p.s.o.Dir, sparePrefix+"*"), filepath.Join(p.s.o.SocketDir, sparePrefix+"*"+socketSuffix)} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, path := range paths {
			left[strings.TrimSuffix(filepath.Base(path), socketSuffix)] = true
		}
	}
	var errs []error
	for id := range left {
		if err := (&shim{s: p.s, id: id}).discard(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
