package main

import (
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Goroutines that change their thread for good get any but the first, which would not end.
func TestTheFirstThreadRunsNoGoroutineButMain(t *testing.T) {
	for range 200 {
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if unix.Gettid() == os.Getpid() {
					t.Error("a goroutine has the first thread")
				}
			})
		}
		all.Wait()
	}
}
