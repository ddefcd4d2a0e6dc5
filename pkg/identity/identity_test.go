package identity

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// The layout is on the disks of fleets that run: a path that changes loses them.
func TestTheLayoutStays(t *testing.T) {
	for want, have := range map[string]string{
		"/d/controller/pki":      ControllerPKI("/d"),
		"/d/controller/timing":   TimingFile("/d"),
		"/d/agent/pki":           AgentPKI("/d"),
		"/d/agent/identity.json": HostFile("/d"),
		"/d/admin":               AdminPKI("/d"),
		"/d/bootstrap":           BootstrapDir("/d"),
	} {
		if have != want {
			t.Errorf("%s, want %s", have, want)
		}
	}
}

func TestLoadRefusesWhatIsNoIdentity(t *testing.T) {
	for text, want := range map[string]string{
		`{`: "reading this host's identity in ",
		`{"version": 2, "cluster": "c", "node": "n"}`: "is not an identity of version 1",
		`{"version": 1, "node": "n"}`:                 "is not an identity of version 1",
		`{"version": 1, "cluster": "c"}`:              "is not an identity of version 1",
		``:                                            "reading this host's identity in ",
	} {
		dir := t.TempDir()
		write(t, HostFile(dir), text)
		if h, err := Load(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v %v, want %q", text, h, err, want)
		}
		if err := SaveControllers(dir, []string{"a:1"}); err == nil {
			t.Errorf("%q: controllers were saved over it", text)
		}
	}
	if _, err := Load(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no identity: %v", err)
	}
}

func TestSaveControllersChangesNothingElse(t *testing.T) {
	dir := t.TempDir()
	write(t, HostFile(dir), `{"version": 1, "cluster": "c", "node": "n", "name": "web-1", "controllers": ["a:1"]}`)
	if err := SaveControllers(dir, []string{"b:1", "c:1"}); err != nil {
		t.Fatal(err)
	}
	have, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := (&Host{Version: 1, Cluster: "c", Node: "n", Name: "web-1", Controllers: []string{"b:1", "c:1"}}); !reflect.DeepEqual(have, want) {
		t.Errorf("%+v, want %+v", have, want)
	}
}

// A host that is removed twice (it joined again in between) keeps the files of the
// last time, and its agent's identity each time.
func TestRemoveControllerLeavesTheAgent(t *testing.T) {
	dir := t.TempDir()
	for _, log := range []string{"first", "second"} {
		write(t, filepath.Join(ControllerPKI(dir), "cert.pem"), "controller")
		write(t, filepath.Join(ControllerDir(dir), "raft", "log"), log)
		write(t, filepath.Join(AgentPKI(dir), "cert.pem"), "agent")
		write(t, filepath.Join(AdminPKI(dir), "cert.pem"), "admin")
		if !HasController(dir) {
			t.Fatal("a host with a controller's certificate has no controller")
		}
		if err := RemoveController(dir); err != nil {
			t.Fatal(err)
		}
		if HasController(dir) || !IsMember(dir) {
			t.Errorf("%s removal: controller %v, member %v", log, HasController(dir), IsMember(dir))
		}
		if _, err := os.Stat(AdminPKI(dir)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s removal: the admin's identity is still there: %v", log, err)
		}
		if b, err := os.ReadFile(filepath.Join(ControllerDir(dir)+".removed", "raft", "log")); err != nil || string(b) != log {
			t.Errorf("%s removal: kept %q, %v", log, b, err)
		}
	}
}
