package images

import "sync"

// cache holds images that were read. An image that was read while any was removed is not
// kept, since it may be that one. The zero value is ready.
type cache struct {
	mu      sync.Mutex // guards the fields below
	m       map[string]*Image
	removed uint64 // counts removals
}

// get returns an image, nil if it isn't cached, and the count of removals, which put
// needs.
func (c *cache) get(dgst string) (*Image, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.m[dgst], c.removed
}

func (c *cache) put(dgst string, i *Image, at uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at != c.removed {
		return
	}
	if c.m == nil {
		c.m = map[string]*Image{}
	}
	c.m[dgst] = i
}

func (c *cache) drop(dgst string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removed++
	delete(c.m, dgst)
}
