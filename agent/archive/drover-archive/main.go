// Command drover-archive reads or writes one container's files for an agent, which starts
// it in a mount namespace of its own: what it mounts is gone with it.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/archive/archiveapi"
	"github.com/drover/drover/agent/archive/inside"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "drover-archive:", err)
		os.Exit(1)
	}
}

func run() error {
	for _, fd := range []int{archiveapi.RequestFD, archiveapi.ReplyFD} {
		unix.CloseOnExec(fd)
	}
	log.L.Logger.SetOutput(io.Discard) // nobody reads of each file that vanished meanwhile
	from, to := os.NewFile(archiveapi.RequestFD, "request"), os.NewFile(archiveapi.ReplyFD, "replies")
	var r archiveapi.Request
	err := json.NewDecoder(from).Decode(&r)
	_ = from.Close()
	if err != nil {
		return fmt.Errorf("reading the request: %w", err)
	}
	// Where memory is short, it goes before anything that is of use for longer.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
		return err
	}
	return inside.Run(r, os.Stdin, os.Stdout, json.NewEncoder(to).Encode)
}
