package shim

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/pkg/shim"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/shim/native"
	"github.com/drover/drover/agent/shim/shimapi"
)

// deletedFile in a bundle records that Delete succeeded, and its result.
const deletedFile = "drover-deleted"

// Reaps reports whether the shim whose bundle is the current directory must be started
// with containerd's reaper of all children: runc's library does its own waiting.
func Reaps() bool {
	c, err := shimapi.ReadChoice(".")
	return err != nil || !c.Native()
}

type deleted struct {
	Pid    uint32    `json:"pid"`
	Status uint32    `json:"status"`
	At     time.Time `json:"at"`
}

// Manager is containerd's shim manager, except that it also knows containers that this
// shim runs itself, and that Stop deletes nothing again that Delete has deleted.
type Manager struct{ shim.Shim }

// Start is run by containerd as a separate process, which starts the shim. The runtime
// options' binary name chooses what runs the container.
func (m Manager) Start(ctx context.Context, p *bootapi.BootstrapParams) (*bootapi.BootstrapResult, error) {
	var o options.Options
	if _, err := p.FindExtension(&o); err != nil {
		return nil, fmt.Errorf("reading the runtime options: %w", err)
	}
	if err := shimapi.WriteChoice(".", shimapi.ChoiceOf(&o)); err != nil {
		return nil, err
	}
	return m.Shim.Start(ctx, p)
}

// Stop is run by containerd as a separate process after a shim has ended.
func (m Manager) Stop(ctx context.Context, id string) (shim.StopStatus, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return shim.StopStatus{}, fmt.Errorf("looking for the bundle: %w", err)
	}
	bundle := filepath.Join(filepath.Dir(cwd), id)
	var d deleted
	if b, err := os.ReadFile(filepath.Join(bundle, deletedFile)); err == nil && json.Unmarshal(b, &d) == nil {
		return shim.StopStatus{Pid: int(d.Pid), ExitStatus: int(d.Status), ExitedAt: d.At}, nil
	}
	c, err := shimapi.ReadChoice(bundle)
	if err != nil {
		return shim.StopStatus{}, err
	}
	if !c.Native() {
		return m.Shim.Stop(ctx, id)
	}
	pid, err := native.Stop(ctx, bundle, id)
	if err != nil {
		return shim.StopStatus{}, err
	}
	return shim.StopStatus{Pid: pid, ExitStatus: 128 + int(unix.SIGKILL), ExitedAt: time.Now()}, nil
}
