package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// minimum interval between checks of a ruleset that keeps changing
	lookEvery = 100 * time.Millisecond
	// after a failed check
	lookAgain = 2 * time.Second
)

// watcher calls mend whenever the kernel reports a change that concerns it.
type watcher struct {
	watched
	log    *slog.Logger
	events *netlink.Conn
	ns     netns.NsHandle
	look   chan struct{} // buffers one token: any number of changes is one check
	stop   context.CancelFunc
	done   sync.WaitGroup
	once   sync.Once
}

// watched is something in the kernel that others change too.
type watched struct {
	what     string // "this host's firewall"
	risk     string // what may happen if it is not mended
	protocol int
	groups   []uint32
	concerns func(netlink.Message) bool
	// mend reports whether it changed anything. It is called on one thread, in the watched
	// namespace.
	mend func() (bool, error)
	// anyway is how often it is called without a report; 0 is never.
	anyway time.Duration
}

// watch starts watching the calling thread's namespace, until Close.
func watch(x watched, log *slog.Logger) (*watcher, error) {
	c, err := netlink.Dial(x.protocol, nil)
	if err != nil {
		return nil, fmt.Errorf("watching %s: %w", x.what, err)
	}
	for _, g := range x.groups {
		if err := c.JoinGroup(g); err != nil {
			_ = c.Close()
			return nil, fmt.Errorf("watching %s: %w", x.what, err)
		}
	}
	ns, err := netns.Get()
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("watching %s: %w", x.what, err)
	}
	ctx, stop := context.WithCancel(context.Background()) //nolint:forbidigo // it ends with Close
	w := &watcher{watched: x, log: log, events: c, ns: ns, look: make(chan struct{}, 1), stop: stop}
	w.done.Go(func() { w.listen(ctx) })
	w.done.Go(func() { w.reconcile(ctx) })
	return w, nil
}

func (w *watcher) Close() (err error) {
	w.once.Do(func() {
		w.stop()
		err = w.events.Close()
		w.done.Wait()
		err = errors.Join(err, w.ns.Close())
	})
	return err
}

// again triggers a check.
func (w *watcher) again() {
	select {
	case w.look <- struct{}{}:
	default:
	}
}

// listen triggers a check for each change.
func (w *watcher) listen(ctx context.Context) {
	for ctx.Err() == nil {
		msgs, err := w.events.Receive()
		if err != nil && !errors.Is(err, unix.ENOBUFS) { // ENOBUFS: messages were lost
			if ctx.Err() == nil {
				w.log.Error(w.what+" is no longer watched: "+w.risk+" when it changes", "err", err)
			}
			return
		}
		if err == nil && !slices.ContainsFunc(msgs, w.concerns) {
			continue
		}
		w.again()
	}
}

// firewall is the ruleset. Its tables, chains and rules matter; elements come and go with
// each container, and are only ours.
func (t *table) firewall() watched {
	return watched{
		what: "this host's firewall", risk: "published ports may stop working", protocol: unix.NETLINK_NETFILTER, groups: []uint32{unix.NFNLGRP_NFTABLES},
		mend: func() (bool, error) { return t.reconcile(false) },
		concerns: func(m netlink.Message) bool {
			if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES {
				return false
			}
			switch m.Header.Type & 0xff {
			case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
				return true
			}
			return false
		},
	}
}

// reconcile runs on a thread of its own, in the watched namespace.
func (w *watcher) reconcile(ctx context.Context) {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	if err := netns.Set(w.ns); err != nil {
		w.log.Error("entering the watched network namespace", "err", err)
		return
	}
	retry := time.NewTimer(0)
	retry.Stop()
	defer retry.Stop()
	var anyway <-chan time.Time
	if w.anyway > 0 {
		t := time.NewTicker(w.anyway)
		defer t.Stop()
		anyway = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.look:
		case <-retry.C:
		case <-anyway:
		}
		changed, err := w.mend()
		switch {
		case err != nil:
			w.log.Error(w.what+" changed: "+w.risk, "err", err)
			retry.Reset(lookAgain)
		case changed:
			w.log.Info(w.what + " changed: mended what is drover's")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookEvery):
		}
	}
}
