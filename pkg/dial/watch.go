package dial

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Silence is how long the peer's host may acknowledge nothing on a watched connection.
const Silence = 3 * time.Second

// Watch makes the kernel close c once the peer's host has acknowledged nothing for
// Silence: neither data nor, on an idle connection, keepalive probes. A slow process is
// not mistaken for a dead one, however much data waits for it: its kernel acknowledges.
// Connections other than TCP are left alone.
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
			_ = unix.SetsockoptInt(int(fd), o.level, o.name, o.value) // fails on a Unix socket, which needs no watching
		}
	})
	spare(raw, false)
}

// tryWithin bounds the interval between retransmissions and between probes of a full
// receiver, which otherwise doubles up to minutes. Kernels before 6.15 have no such
// option.
const tryWithin = time.Second

// unanswered is how many probes of a full receiver may go unanswered.
const unanswered = 3

// spare makes the kernel wait for a full receiver until the connection is closed:
// otherwise it counts a zero window as silence, although probes are answered.
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
