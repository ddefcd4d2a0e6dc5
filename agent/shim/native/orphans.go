//go:build cgo

package native

import (
	"os"
	"os/signal"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// orphans reaps the children that nobody else waits for: what a container without a pid
// namespace of its own leaves behind becomes a child of this process, its subreaper.
// runc's library waits for the children that it starts, and must not lose any of them.
type orphans struct {
	wake chan struct{}
	sigs chan os.Signal

	// starts is held shared while runc's library starts processes, so that none of them
	// is reaped before it is known.
	starts sync.RWMutex

	mu    sync.Mutex // guards known
	known map[int]bool
}

func newOrphans() *orphans {
	o := &orphans{wake: make(chan struct{}, 1), sigs: make(chan os.Signal, 1), known: map[int]bool{}}
	signal.Notify(o.sigs, unix.SIGCHLD)
	return o
}

// run reaps until done is closed.
func (o *orphans) run(done <-chan struct{}) {
	defer signal.Stop(o.sigs)
	for {
		select {
		case <-o.sigs:
		case <-o.wake:
		case <-done:
			return
		}
		// Without the lock, whoever has it wakes this again.
		if o.starts.TryLock() {
			o.reap()
			o.starts.Unlock()
		}
	}
}

// reap reaps dead children up to one that somebody else waits for, who then calls woken.
func (o *orphans) reap() {
	for {
		pid := deadChild()
		if pid == 0 || o.isKnown(pid) {
			return
		}
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil && err != unix.EINTR {
			return
		}
	}
}

// starting must be called before processes are started. The returned function ends that,
// with the pid of the process that its caller is going to wait for, or 0.
func (o *orphans) starting() func(pid int) {
	o.starts.RLock()
	return func(pid int) {
		if pid > 0 {
			o.mu.Lock()
			o.known[pid] = true
			o.mu.Unlock()
		}
		o.starts.RUnlock()
		o.woken()
	}
}

// waited must be called once a known process was waited for.
func (o *orphans) waited(pid int) {
	o.mu.Lock()
	delete(o.known, pid)
	o.mu.Unlock()
	o.woken()
}

func (o *orphans) isKnown(pid int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.known[pid]
}

func (o *orphans) woken() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// deadChild returns the pid of a child that can be reaped, 0 if there is none.
func deadChild() int {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0
		}
		// The kernel's siginfo_t for SIGCHLD; x/sys names only its head.
		const pidOffset = 16
		return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), pidOffset)))
	}
}
