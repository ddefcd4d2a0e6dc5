package socketproxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// One user's connections, each of which costs one to a controller, are limited;
// who is beyond the limit is told so.
func TestOneUsersConnectionsAreLimited(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir, err := os.MkdirTemp("", "dd") // short: socket paths are limited
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // a controller that never says a word
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	path := filepath.Join(dir, "drover.sock")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{Path: path, Controllers: func() []string { return []string{silent.Addr().String()} },
			TLS: &tls.Config{InsecureSkipVerify: true}, Log: slog.New(slog.DiscardHandler)})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	dial := func() net.Conn {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; {
			c, err := net.Dial("unix", path)
			if err == nil {
				return c
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	for range maxOfUID + 1 {
		open = append(open, dial())
	}
	refused := make(chan string, len(open))
	for _, c := range open {
		go func() {
			_, _ = io.WriteString(c, "GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
			_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				refused <- err.Error()
				return
			}
			b, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			refused <- resp.Status + " " + string(b)
		}()
	}
	limited := 0
	for range open {
		if strings.Contains(<-refused, fmt.Sprintf("uid %d has 1024 connections open through this host already", os.Getuid())) {
			limited++
		}
	}
	if limited == 0 || limited > 1 {
		t.Fatalf("%d of %d connections were refused for their number, want 1", limited, len(open))
	}
}

// full has no files left, for a moment.
type full struct {
	net.Listener
	failed atomic.Bool
}

func (l *full) Accept() (net.Conn, error) {
	if !l.failed.Swap(true) {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

// A process that is out of files for a moment goes on: its containers need it.
func TestTheDoorStaysOpenWithoutFiles(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir, err := os.MkdirTemp("", "dd") // short: socket paths are limited
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "drover.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Options{Path: path, Controllers: func() []string { return nil }, Log: slog.New(slog.DiscardHandler)}.serve(ctx, &full{Listener: l})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = io.WriteString(c, "GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
}
