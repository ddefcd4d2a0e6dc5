package shim

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/pkg/shim"
)

// deletedFile in a bundle records that Delete succeeded, and its result.
const deletedFile = "drover-deleted"

type deleted struct {
	Pid    uint32    `json:"pid"`
	Status uint32    `json:"status"`
	At     time.Time `json:"at"`
}

// Manager is containerd's shim manager, except that Stop runs no second `runc delete
// --force` if Delete succeeded.
type Manager struct{ shim.Shim }

// Stop is run by containerd as a separate process after a shim has ended.
func (m Manager) Stop(ctx context.Context, id string) (shim.StopStatus, error) {
	if cwd, err := os.Getwd(); err == nil {
		var d deleted
		b, err := os.ReadFile(filepath.Join(filepath.Dir(cwd), id, deletedFile))
		if err == nil && json.Unmarshal(b, &d) == nil {
			return shim.StopStatus{Pid: int(d.Pid), ExitStatus: int(d.Status), ExitedAt: d.At}, nil
		}
	}
	return m.Shim.Stop(ctx, id)
}
