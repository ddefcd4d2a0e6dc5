// Package clitest runs the fleet's commands against a fake fleet, and compares their
// output with golden files.
package clitest

import (
	"bytes"
	"flag"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
)

var update = flag.Bool("update", false, "write the goldens anew")

// Now is the time at which commands run.
var Now = time.Unix(1800000000, 0)

// At is a time before Now, in Unix ns.
func At(before time.Duration) int64 { return Now.Add(-before).UnixNano() }

// Serve serves a handler on a socket, and returns a session with it.
func Serve(t *testing.T, h http.Handler) *client.Session {
	t.Helper()
	dir, err := os.MkdirTemp("", "dc") // short: socket paths are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "drover.sock")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return &client.Session{Target: client.Target{Host: "unix://" + path}, Time: func() time.Time { return Now }}
}

// Run runs a command with args below a command drover, and returns its output and its
// error, in drover's words.
func Run(t *testing.T, s *client.Session, cmd *cobra.Command, args ...string) string {
	t.Helper()
	root := &cobra.Command{Use: "drover", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(cmd)
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append([]string{cmd.Name()}, args...))
	if err := root.ExecuteContext(t.Context()); err != nil {
		out.WriteString("error: " + s.Explain(err) + "\n")
	}
	return out.String()
}

// Golden compares output with testdata/name; -update writes it.
func Golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is printed as\n%s\nnot as\n%s\n(-update, if that is meant)", name, got, want)
	}
}
