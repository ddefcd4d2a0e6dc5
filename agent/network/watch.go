package network

import (
	"context"
	"errors"
	"fmt"
	"runtime"
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

// watcher reconciles a table whenever the ruleset of its network namespace changes.
type watcher struct {
	t      *table
	events *netlink.Conn
	ns     netns.NsHandle
	look   chan struct{} // buffers one token: any number of changes is one check
	stop   context.CancelFunc
	done   sync.WaitGroup
	once   sync.Once
}

// watch starts watching the calling thread's namespace, until Close.
func watch(t *table) (*watcher, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("watching nftables: %w", err)
	}
	if err := c.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("watching nftables: %w", err)
	}
	ns, err := netns.Get()
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("watching nftables: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background()) //nolint:forbidigo // it ends with Close
	w := &watcher{t: t, events: c, ns: ns, look: make(chan struct{}, 1), stop: stop}
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

// listen triggers a check for each change.
func (w *watcher) listen(ctx context.Context) {
	for ctx.Err() == nil {
		msgs, err := w.events.Receive()
		if err != nil && !errors.Is(err, unix.ENOBUFS) { // ENOBUFS: messages were lost
			if ctx.Err() == nil {
				w.t.log.Error("this host's firewall is no longer watched: published ports may stop working when it changes", "err", err)
			}
			return
		}
		if err == nil && !concerns(msgs) {
			continue
		}
		select {
		case w.look <- struct{}{}:
		default:
		}
	}
}

// concerns reports whether a message is about tables, chains or rules. Elements come and
// go with each container, and are only ours.
func concerns(msgs []netlink.Message) bool {
	for _, m := range msgs {
		if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES {
			continue
		}
		switch m.Header.Type & 0xff {
		case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
			return true
		}
	}
	return false
}

// reconcile runs on a thread of its own, in the watched namespace.
func (w *watcher) reconcile(ctx context.Context) {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	if err := netns.Set(w.ns); err != nil {
		w.t.log.Error("entering the watched network namespace", "err", err)
		return
	}
	retry := time.NewTimer(0)
	retry.Stop()
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.look:
		case <-retry.C:
		}
		changed, err := w.t.reconcile(false)
		switch {
		case err != nil:
			w.t.log.Error("this host's firewall changed, and published ports may be unreachable", "err", err)
			retry.Reset(lookAgain)
		case changed:
			w.t.log.Info("this host's firewall changed: restored drover's rules")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookEvery):
		}
	}
}
