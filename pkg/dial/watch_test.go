package dial

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// Who reads nothing for long, as a pager does or a command that is suspended, is
// there all the same: what waits for it goes on once it reads.
func TestASlowReaderIsNotTakenForGone(t *testing.T) {
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
