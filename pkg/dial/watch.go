package dial

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Silence is how long the host at a watched connection's other end may
// acknowledge nothing.
const Silence = 3 * time.Second

// Watch has the kernel end c once the other end's host has acknowledged nothing
// for Silence: neither what was sent nor, on an idle connection, its probes. A
// process that is only slow is not taken for gone, whatever waits for it here: its
// kernel acknowledges. What is no TCP connection is left as it is.
func Watch(c net.Conn) {
	for {
		w, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = w.NetConn()
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		for _, o := range []struct{ level, name, value int }{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1},
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, int(Silence / time.Second)},
			{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(Silence / time.Millisecond)},
			{unix.IPPROTO_TCP, unix.TCP_RTO_MAX_MS, int(tryWithin / time.Millisecond)},
		} {
			_ = unix.SetsockoptInt(int(fd), o.level, o.name, o.value) // a Unix socket has none of TCP's, and needs none
		}
	})
	spare(raw, false)
}

// tryWithin bounds the pause between two tries, of probes of a full receiver too: it
// doubles otherwise, up to minutes. Kernels before 6.15 can't be told.
const tryWithin = time.Second

// unanswered is how many probes of a full receiver may have no answer.
const unanswered = 3

// spare has the kernel wait for a receiver that is full, until the connection is
// closed: it counts the time without room as silence, though its probes are answered.
func spare(raw syscall.RawConn, was bool) {
	time.AfterFunc(Silence/6, func() {
		var full bool
		var err error
		closed := raw.Control(func(fd uintptr) {
			var i *unix.TCPInfo
			if i, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err != nil {
				return
			}
			full = i.Unacked == 0 && i.Notsent_bytes > 0 && i.Probes < unanswered
			if full != was {
				timeout := int(Silence / time.Millisecond)
				if full {
					timeout = 0
				}
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, timeout)
			}
		})
		if closed == nil && err == nil {
			spare(raw, full)
		}
	})
}
