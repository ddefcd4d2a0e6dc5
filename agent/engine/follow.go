package engine

import (
	"fmt"
	"path/filepath"
	"sync"

	"github.com/fsnotify/fsnotify"
)

// follower notifies listeners that something in a directory changed. One inotify
// instance serves all followed logs; a directory is watched while somebody listens.
type follower struct {
	w    *fsnotify.Watcher
	done chan struct{}

	mu   sync.Mutex // guards dirs
	dirs map[string]map[chan struct{}]struct{}
}

func newFollower() (*follower, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watching for output: %w", err)
	}
	f := &follower{w: w, done: make(chan struct{}), dirs: map[string]map[chan struct{}]struct{}{}}
	go f.run()
	return f, nil
}

// Close stops watching and waits for the goroutine.
func (f *follower) Close() error {
	err := f.w.Close()
	<-f.done
	return err
}

// listen returns a channel that receives a token after changes in the directories, and a
// function to stop. One token may stand for many changes.
func (f *follower) listen(dirs ...string) (<-chan struct{}, func(), error) {
	ch := make(chan struct{}, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	stop := func() { f.forget(ch, dirs) }
	for _, d := range dirs {
		if f.dirs[d] == nil {
			if err := f.w.Add(d); err != nil {
				f.forgetLocked(ch, dirs)
				return nil, nil, fmt.Errorf("watching %s: %w", d, err)
			}
			f.dirs[d] = map[chan struct{}]struct{}{}
		}
		f.dirs[d][ch] = struct{}{}
	}
	return ch, stop, nil
}

func (f *follower) forget(ch chan struct{}, dirs []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgetLocked(ch, dirs)
}

func (f *follower) forgetLocked(ch chan struct{}, dirs []string) {
	for _, d := range dirs {
		if _, ok := f.dirs[d][ch]; !ok {
			continue
		}
		delete(f.dirs[d], ch)
		if len(f.dirs[d]) == 0 {
			delete(f.dirs, d)
			_ = f.w.Remove(d) // a directory that is gone is not watched anyway
		}
	}
}

func (f *follower) run() {
	defer close(f.done)
	for {
		select {
		case ev, ok := <-f.w.Events:
			if !ok {
				return
			}
			f.tell(filepath.Dir(ev.Name))
			f.tell(ev.Name)
		case _, ok := <-f.w.Errors:
			if !ok {
				return
			}
			f.tellAll() // the queue overflowed: anything may have changed
		}
	}
}

func (f *follower) tell(dir string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ch := range f.dirs[dir] {
		token(ch)
	}
}

func (f *follower) tellAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, chs := range f.dirs {
		for ch := range chs {
			token(ch)
		}
	}
}

func token(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
