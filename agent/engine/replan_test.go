package engine_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/pkg/life"
)

// Each attempt is planned with what is there at its time: the container's current users,
// and the folders that -v names. It needs neither the image nor, for containers that an
// agent of an earlier build prepared, its recorded configuration.
func TestEachAttemptIsPlannedAnew(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	ref, digest := w.layered(e, "web:1", text("etc/passwd", "web:x:12:7::/:/bin/sh\n"), text("etc/group", "web:x:7:\n"))
	dir := filepath.Join(t.TempDir(), "data")
	id, err := w.made(t.Context(), e, ref, digest, func(c *container.CreateRequest) {
		c.User, c.HostConfig.Binds = "web", []string{dir + ":/mnt"}
	}, "sh", "-c", "id -u; ls -d /mnt; exec sleep 1000")
	if err != nil {
		t.Fatal(err)
	}
	run := func(n int32, change string) {
		t.Helper()
		change = "until pidof sleep > /dev/null; do :; done; " + change
		if _, err := e.Start(t.Context(), id, life.First(n), nil); err != nil {
			t.Fatal(err)
		}
		exec := strings.Repeat(string(rune('a'+n)), 64)
		if err := e.ExecCreate(t.Context(), id, exec, container.ExecCreateRequest{Cmd: []string{"sh", "-c", change}, User: "0", AttachStdout: true, AttachStderr: true}); err != nil {
			t.Fatal(err)
		}
		st, err := e.ExecStart(t.Context(), id, exec, true, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		if out, err := frames(st); err != nil || out != "" {
			t.Fatalf("%s: %q, %v", change, out, err)
		}
		if err := e.Signal(t.Context(), id, "SIGKILL"); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Wait(t.Context(), id, life.First(n)); err != nil {
			t.Fatal(err)
		}
		if err := e.Release(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	w.recorded(t, e, id)
	run(1, "sed -i s/:12:/:13:/ /etc/passwd")
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := e.images.Remove(t.Context(), digest); err != nil {
		t.Fatal(err)
	}
	run(2, "sed -i s/:13:/:14:/ /etc/passwd")
	forget(t, filepath.Join(w.dir, "tasks", id, "spec.json"), "imageConfig") // then it is as it was prepared
	run(3, "true")
	out, err := w.output(t.Context(), e, id)
	if want := "12\n/mnt\n13\n/mnt\n12\n/mnt\n"; err != nil || out != want {
		t.Errorf("as user, with mount: %q (%v), want %q", out, err, want)
	}
}

// forget removes a field from a file, as if an older agent had written it.
func forget(t *testing.T, file, field string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	if all[field] == nil {
		t.Fatalf("no %s in %s", field, b)
	}
	delete(all, field)
	if b, err = json.Marshal(all); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
