//go:build cgo

package native

import (
	"context"

	"github.com/containerd/log"
	"github.com/opencontainers/runc/libcontainer/configs"

	"github.com/drover/drover/agent/shim/native/filters"
)

// compiled returns c with its filter compiled, or as it is where that can't be.
func (s *Service) compiled(ctx context.Context, c *configs.Seccomp) *configs.Seccomp {
	c, err := filters.Compiled(s.o.Filters, c)
	if err != nil {
		log.G(ctx).WithError(err).Warn("each process compiles its seccomp filter")
	}
	return c
}
