package dial

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover/drover/pkg/testenv"
)

// Who reads nothing for long, as a pager does or a command that is suspended, is
// there all the same: what waits for it goes on once it reads.
func TestASlowReaderIsNotTakenForGone(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	far, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = far.Close() }()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	Watch(c)
	const all = 64 << 20
	_ = c.SetWriteDeadline(time.Now().Add(2 * Silence)) // nothing tells that the kernel let it live
	n, err := c.Write(make([]byte, all))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n == all {
		t.Fatalf("%d bytes went to who reads nothing: %v", n, err)
	}
	_ = c.SetWriteDeadline(time.Time{})
	go func() {
		_, _ = c.Write(make([]byte, all-n))
		_ = c.Close()
	}()
	if got, err := io.Copy(io.Discard, far); got != all || err != nil {
		t.Fatalf("%d bytes came, then %v", got, err)
	}
}

// Who is cut off while he reads nothing is gone like others.
func TestASlowReaderThatIsCutOffIsGone(t *testing.T) {
	t.Parallel()
	testenv.Root(t)
	runtime.LockOSThread() // and never unlocked: the thread ends with the test, and the namespace with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	lo := func(way string) {
		if out, err := exec.Command("ip", "link", "set", "lo", way).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	lo("up")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	Watch(c)
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var old error
	if err := raw.Control(func(fd uintptr) { _, old = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_RTO_MAX_MS) }); err != nil {
		t.Fatal(err)
	}
	if errors.Is(old, unix.ENOPROTOOPT) {
		t.Skip("needs Linux 6.15")
	}
	_ = c.SetWriteDeadline(time.Now().Add(3 * Silence)) // long enough for the pause between probes to grow
	if _, err := c.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	lo("down")
	_ = c.SetReadDeadline(time.Now().Add(3 * Silence))
	if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("nobody missed who was cut off: %v", err)
	}
}
