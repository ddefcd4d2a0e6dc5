//go:build cgo

package native

import (
	"context"

	"github.com/opencontainers/runc/libcontainer/configs"
)

func (s *Service) compiled(_ context.Context, c *configs.Seccomp) *configs.Seccomp { return c }
