package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/containerd/containerd/v2/core/mount"
)

// mountBelow has this process mount containers' files, which it reads before a start,
// below dir, which only root may enter: other accounts of the host may neither read nor
// execute them. It removes the mounts that a killed agent left there.
func mountBelow(dir string, log *slog.Logger) error {
	err := mount.SetTempMountLocation(dir)
	if err == nil {
		err = os.Chmod(dir, 0o700)
	}
	if err != nil {
		return fmt.Errorf("setting the directory for mounts: %w", err)
	}
	left, err := mount.CleanupTempMounts(0)
	if err := errors.Join(append(left, err)...); err != nil {
		log.Warn("mounts of an earlier agent were not removed", "err", err)
	}
	return nil
}
