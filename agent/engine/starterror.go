package engine

import (
	"fmt"
	"strings"

	"github.com/drover/drover/agent/task"
)

// startError translates a refusal of the runtime into docker's message and exit code.
// Other failures (containerd away, a layer lost) are not the user's fault, and are
// returned unchanged.
func startError(step, command string, err error) error {
	m := err.Error()
	_, why, ok := strings.Cut(m, "OCI runtime "+step+" failed: ")
	if !ok {
		return fmt.Errorf("%s of a task: %w", step, err)
	}
	has := func(s string) bool { return strings.Contains(m, s) }
	named := command != "" && has(command) // else it is about another file, such as a mount
	code := 125
	switch {
	case named && (has("executable file not found") || has("no such file or directory")):
		code = 127
	case has("permission denied"), named && (has("is a directory") || has("exec format error")):
		code = 126
	case has("not a directory"):
		code = 127
		why += ": Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type"
	}
	why = "OCI runtime " + step + " failed: " + why
	if step == "exec" {
		return &task.StartError{Code: code, Message: why}
	}
	return &task.StartError{Code: code, Message: "failed to create task for container: failed to create shim task: " + why}
}
