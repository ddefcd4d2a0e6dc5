package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const chunk = 256 << 10 // bytes that are written or read at once

// serve listens on both ports until ctx ends.
func serve(ctx context.Context) error {
	failed := make(chan error, 2)
	for port, take := range map[string]func(net.Conn){sinkPort: sink, meetPort: func(net.Conn) {}} {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", ":"+port)
		if err != nil {
			return err
		}
		defer func() { _ = l.Close() }()
		go func() { failed <- accept(l, take) }()
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

func accept(l net.Listener, take func(net.Conn)) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = c.Close() }()
			take(c)
		}()
	}
}

// sink reads a stream to its end, and answers with how long it was.
func sink(c net.Conn) {
	b := make([]byte, chunk)
	for total := uint64(0); ; {
		n, err := c.Read(b)
		total += uint64(n)
		if err != nil {
			_, _ = c.Write(binary.BigEndian.AppendUint64(nil, total))
			return
		}
	}
}

// send sends to a sink for a time, and returns how many Gbit/s arrived.
func send(to string, d time.Duration) (float64, error) {
	c, err := net.Dial("tcp", to)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	b := make([]byte, chunk)
	begin := time.Now()
	for time.Since(begin) < d {
		if _, err := c.Write(b); err != nil {
			return 0, err
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return 0, err
	}
	var total [8]byte
	if _, err := io.ReadFull(c, total[:]); err != nil {
		return 0, fmt.Errorf("hearing how much arrived: %w", err)
	}
	return float64(binary.BigEndian.Uint64(total[:])) * 8 / 1e9 / time.Since(begin).Seconds(), nil
}

// meet connects again and again until end, and returns how often. A connection counts once
// the server has seen it. It is reset: one that is closed keeps its port for a minute.
func meet(to string, end time.Time) (n int, err error) {
	for ; time.Now().Before(end); n++ {
		c, err := net.Dial("tcp", to)
		if err != nil {
			return n, err
		}
		_, err = c.Read(make([]byte, 1))
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
		if !errors.Is(err, io.EOF) {
			return n, fmt.Errorf("waiting for the server: %w", err)
		}
	}
	return n, nil
}
