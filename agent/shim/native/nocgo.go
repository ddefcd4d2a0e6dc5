//go:build !cgo

package native

import (
	"context"
	"errors"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
)

// errNoCgo is what a program gets that can't be a container's init.
var errNoCgo = errors.New("this shim was built without cgo, so it can only run containers with another runtime")

// Service does not exist without cgo.
type Service struct{ taskAPI.TTRPCTaskService }

// New reports that this program was built without cgo.
func New(context.Context, Options) (*Service, error) { return nil, errNoCgo }

// Stop reports that this program was built without cgo.
func Stop(context.Context, string, string) (int, error) { return 0, errNoCgo }

// Init does nothing: this program is no container's init.
func Init() {}
