// Command drover-shim stands between the agent and one container, and is the container's
// init too. So it is built small (-tags no_grpc), for it starts with every container, and
// with cgo: `make payload` has the flags.
package main

import (
	"context"
	"runtime"

	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	cshim "github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"github.com/drover/drover/agent/shim"
	"github.com/drover/drover/agent/shim/native"
)

// The first thread runs nothing but main. runc's library has a goroutine join a container's
// mount namespace on a thread that ends with it, and the first thread can't: it would stay
// there, and /proc would show the container's root as the shim's.
func init() { runtime.LockOSThread() }

func main() {
	native.Init()
	registry.Register(&plugin.Registration{
		Type: plugins.TTRPCPlugin, ID: "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			p, err := ic.GetByID(plugins.EventPlugin, "publisher")
			if err != nil {
				return nil, err
			}
			sd, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
			if err != nil {
				return nil, err
			}
			return shim.New(ic.Context, p.(cshim.Publisher), sd.(shutdown.Service))
		},
	})
	cshim.RunShim(context.Background(), shim.Manager{Shim: manager.NewShimManager("io.drover.runc.v1")}, shim.Configure)
}
