package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"

	hostapparmor "github.com/containerd/containerd/v2/pkg/apparmor"
	"github.com/moby/profiles/apparmor"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/pkg/securityopt"
)

// facts are what a spec depends on of its node.
type facts struct {
	recursiveReadOnly bool // read-only binds that hold for the mounts below them
	appArmor, seLinux bool
}

func readFacts() facts {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return facts{recursiveReadOnly: kernelHasSetattr() && runcHas("rro"), appArmor: hostapparmor.HostSupports(), seLinux: err == nil}
}

// kernelHasSetattr reports whether mount_setattr is there, as it is from Linux 5.12.
func kernelHasSetattr() bool {
	err := unix.MountSetattr(-1, "/proc/self/missing", unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	return !errors.Is(err, unix.ENOSYS)
}

// runcHas reports whether the node's runc knows a mount option.
func runcHas(option string) bool {
	var features struct {
		MountOptions []string `json:"mountOptions"`
	}
	b, err := exec.Command("runc", "features").Output()
	return err == nil && json.Unmarshal(b, &features) == nil && slices.Contains(features.MountOptions, option)
}

// loadProfile sees to it that AppArmor's default profile is loaded: it does not
// outlast a boot, and what updates the host may unload it.
func loadProfile(f facts) error {
	if !f.appArmor {
		return nil
	}
	loaded, err := apparmor.IsLoaded(securityopt.DefaultAppArmor)
	if err == nil && !loaded {
		err = apparmor.InstallDefault(securityopt.DefaultAppArmor)
	}
	if err != nil {
		return fmt.Errorf("loading the AppArmor profile %s: %w", securityopt.DefaultAppArmor, err)
	}
	return nil
}
