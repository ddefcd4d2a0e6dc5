package relay

import (
	"context"
	"crypto/rand"
	"encoding/hex"
)

func newKey() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// contextUntil ends when over says so after a change of the log.
func contextUntil(ctx context.Context, log Log, over func() bool) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		for {
			changed := log.Changed()
			if over() {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, cancel
}
