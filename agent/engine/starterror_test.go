package engine

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/drover/drover/agent/task"
)

// Docker's codes are for what the runtime says of the user's command, not for
// whatever else on the node was not found.
func TestOnlyTheRuntimesRefusalsAreTheUsers(t *testing.T) {
	const create = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: "
	for _, c := range []struct {
		step, said string
		code       int // 0: no *task.StartError
	}{
		{"create", create + `exec: "/bin/app": stat /bin/app: no such file or directory`, 127},
		{"create", create + `exec: "/bin/app": executable file not found in $PATH`, 127},
		{"create", create + `exec: "/bin/app": permission denied`, 126},
		{"create", create + `exec: "/bin/app": is a directory`, 126},
		{"create", create + `error mounting "/srv/data" to rootfs at "/data": open /srv/data: no such file or directory`, 125},
		{"create", create + `error mounting "/srv/file" to rootfs at "/data": not a directory`, 127},
		{"create", create + "cannot set memory limit", 125},
		{"start", "OCI runtime start failed: cannot start a container that has stopped", 125},
		{"exec", `OCI runtime exec failed: exec failed: unable to start container process: exec: "/bin/app": executable file not found in $PATH`, 127},
		{"create", `failed to mount rootfs component: mount source: "overlay", target: "/run/x/rootfs", lowerdir=/data/snapshots/7/fs: no such file or directory`, 0},
		{"create", `connection error: desc = "transport: Error while dialing: dial unix /run/c.sock: connect: no such file or directory"`, 0},
		{"start", `connection error: desc = "transport: Error while dialing: dial unix /run/c.sock: connect: permission denied"`, 0},
		{"exec", `dial unix /run/c.sock: connect: no such file or directory`, 0},
	} {
		err := startError(c.step, "/bin/app", status.Error(codes.Unknown, c.said))
		var se *task.StartError
		if !errors.As(err, &se) {
			se = &task.StartError{}
		}
		if se.Code != c.code {
			t.Errorf("%s: %s: code %d, want %d", c.step, c.said, se.Code, c.code)
		}
		if c.code > 0 && strings.Contains(err.Error(), "rpc error") {
			t.Errorf("%s: %v", c.step, err)
		}
	}
}
