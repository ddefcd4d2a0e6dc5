package images

import (
	"context"
	"sync"
)

// keyed is a set of locks by name.
type keyed struct {
	mu sync.Mutex // guards m
	m  map[string]chan struct{}
}

func (k *keyed) lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		k.mu.Lock()
		busy := k.m[name]
		if busy == nil {
			mine := make(chan struct{})
			if k.m == nil {
				k.m = map[string]chan struct{}{}
			}
			k.m[name] = mine
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.m, name)
				k.mu.Unlock()
				close(mine)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
