package shims

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/drover/drover/pkg/testenv"
)

func TestWhereAProcessesCgroupsAre(t *testing.T) {
	for text, want := range map[string][]string{
		"":                              nil,
		"nonsense\n1:half\n":            nil,
		"0::/system.slice/d.service\n":  {"/cg/system.slice/d.service/cgroup.procs"},
		"0::/\n":                        {"/cg/cgroup.procs"},
		"9:name=systemd:/a\n":           nil,
		"4:cpu,cpuacct:/a:b\n0::/c\n":   {"/cg/cpu,cpuacct/a:b/cgroup.procs", "/cg/c/cgroup.procs"},
		"8:pids:/\n9:name=x:/\n0::/":    {"/cg/pids/cgroup.procs", "/cg/cgroup.procs"},
		"0::/../outside of a namespace": {"/cg/outside of a namespace/cgroup.procs"},
	} {
		if got := ownProcs("/cg", text); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %q, not %q", text, got, want)
		}
	}
}

// Who was moved is left there.
func TestARehearsalBringsNobodyBack(t *testing.T) {
	testenv.Root(t)
	m := newMigration()
	if m.own == nil {
		t.Fatal("no cgroup of this process is found")
	}
	defer func() { _ = m.Close() }()
	back := m.own.Name()
	other := filepath.Join(filepath.Dir(back), fmt.Sprintf("drovertest%d", os.Getpid()))
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(os.WriteFile(back, []byte("0"), 0), os.Remove(other)); err != nil {
			t.Error(err)
		}
	}()
	if err := os.WriteFile(filepath.Join(other, "cgroup.procs"), []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	m.rehearse()
	if at := ownCgroups(); !strings.Contains(at, filepath.Base(other)) {
		t.Errorf("it is in %s", at)
	}
}

// A rehearsal moves nothing, and what stands in its way is nobody's error.
func TestARehearsalMovesNothing(t *testing.T) {
	testenv.Root(t)
	before := ownCgroups()
	m := newMigration()
	if m.own == nil {
		t.Fatal("no cgroup of this process is found")
	}
	if _, err := m.own.WriteString("0"); err != nil {
		t.Errorf("moving this process to where it is: %v", err)
	}
	m.rehearse()
	m.mu.Lock() // as while another one waits
	m.rehearse()
	m.mu.Unlock()
	if got := ownCgroups(); got != before {
		t.Errorf("it moved to %s", got)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	m.rehearse()
	none := &migration{}
	none.rehearse()
	if err := none.Close(); err != nil {
		t.Error(err)
	}
}
