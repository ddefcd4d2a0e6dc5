package filters

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/pkg/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// upstream is the sum of runc's file that runc/seccomp_linux.go.txt was derived from. When
// runc is updated: derive it anew, and compiled_linux.go.txt from its enosys_linux.go.
const (
	upstream      = "c197e62b5e9c7eb91cc563f19e89d25f775889330412e7ae8233bf952df5ecd8"
	upstreamPatch = "c38bb4b8951cf6f03b08ce5917dd4f2d4f3b936818c3451e4cd5d56c658ce692"
)

func TestTheChangedFilesAreOfThePinnedRunc(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Version}} {{.Dir}}", "github.com/opencontainers/runc").Output()
	if err != nil {
		t.Fatal(err)
	}
	version, dir, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	if version != "v"+shimapi.RuncVersion {
		t.Errorf("runc is %s, and shimapi says %s", version, shimapi.RuncVersion)
	}
	for file, want := range map[string]string{"seccomp_linux.go": upstream, "patchbpf/enosys_linux.go": upstreamPatch} {
		b, err := os.ReadFile(filepath.Join(dir, "libcontainer/seccomp", file))
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != want {
			t.Errorf("%s has changed: its sum is %x", file, sum)
		}
	}
}

func profiles(t *testing.T) map[string]*specs.LinuxSeccomp {
	t.Helper()
	spec := func(caps ...string) *specs.Spec {
		return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}}}
	}
	all := map[string]*specs.LinuxSeccomp{}
	for name, caps := range map[string][]string{"docker's": {"CAP_CHOWN", "CAP_NET_RAW"}, "docker's for an admin": {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_BPF"}} {
		p, err := seccomp.GetDefaultProfile(spec(caps...))
		if err != nil {
			t.Fatal(err)
		}
		all[name] = p
	}
	if runtime.GOARCH == "amd64" {
		only := *all["docker's"]
		only.Architectures = []specs.Arch{specs.ArchX86_64}
		all["one architecture"] = &only
	}
	for name, text := range map[string]string{
		"a list of what is refused": `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}`,
		"arguments":                 `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["personality"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]},{"names":["clone"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"},{"index":0,"value":7,"op":"SCMP_CMP_GT"}]}]}`,
		"flags":                     `{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_SPEC_ALLOW"],"syscalls":[{"names":["reboot"],"action":"SCMP_ACT_KILL_PROCESS"},{"names":["syslog"],"action":"SCMP_ACT_LOG"},{"names":["acct"],"action":"SCMP_ACT_TRAP"}]}`,
		"a default errno":           `{"defaultAction":"SCMP_ACT_LOG","syscalls":[{"names":["swapon"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}`,
	} {
		p := &specs.LinuxSeccomp{}
		if err := json.Unmarshal([]byte(text), p); err != nil {
			t.Fatal(err)
		}
		all[name] = p
	}
	return all
}

// loaded runs a probe, and returns the instructions and the flags that the kernel has of
// it: what was loaded, not what it says.
func loaded(t *testing.T, probe string, p *specs.LinuxSeccomp, args ...string) string {
	t.Helper()
	in, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // a tracer is a thread
	defer runtime.UnlockOSThread()
	c := exec.Command(probe, args...)
	var said bytes.Buffer
	c.Stdin, c.Stderr = bytes.NewReader(in), &said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = c.Process.Kill(), c.Wait() }()
	pid := c.Process.Pid
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, unix.WUNTRACED, nil); err != nil || !ws.Stopped() {
		t.Fatalf("the probe %s did not stop: %v %v %s", probe, ws, err, said.String())
	}
	if err := unix.PtraceSeize(pid); err != nil {
		t.Fatal(err)
	}
	if err := unix.PtraceInterrupt(pid); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(pid, &ws, unix.WUNTRACED, nil); err != nil {
		t.Fatal(err)
	}
	const getFilter, getMetadata = 0x420c, 0x420d
	ask := func(request, addr uintptr, data unsafe.Pointer) int {
		n, _, errno := unix.Syscall6(unix.SYS_PTRACE, request, uintptr(pid), addr, uintptr(data), 0, 0)
		if errno != 0 {
			t.Fatalf("ptrace %#x: %v", request, errno)
		}
		return int(n)
	}
	program := make([]unix.SockFilter, ask(getFilter, 0, nil))
	ask(getFilter, 0, unsafe.Pointer(&program[0]))
	var metadata struct{ offset, flags uint64 }
	ask(getMetadata, unsafe.Sizeof(metadata), unsafe.Pointer(&metadata))
	var b bytes.Buffer
	if err := binary.Write(&b, binary.NativeEndian, program); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %x", metadata.flags, b.Bytes())
}

// What is loaded out of the store is, instruction by instruction, what runc's library
// compiles without any change of ours.
func TestAKeptFilterIsWhatRuncCompiles(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	original, ours := filepath.Join(dir, "original"), filepath.Join(dir, "ours")
	c := exec.Command("go", "build", "-trimpath", "-tags", "seccomp", "-o", original, "./probe")
	c.Env = append(os.Environ(), "CGO_ENABLED=1")
	if said, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	testenv.BuildInit(t, ours, "github.com/drover/drover/agent/shim/native/filters/probe")
	kept := filepath.Join(dir, "kept")
	for name, p := range profiles(t) {
		// runc puts the architectures' sections in the order of a map's iteration, where some
		// orders are rare.
		possible := map[string]bool{loaded(t, original, p): true}
		compiled := func(f string) bool {
			for n := 0; !possible[f] && n < 150; n++ {
				possible[loaded(t, original, p)] = true
			}
			return possible[f]
		}
		before, _ := os.ReadDir(kept)
		first := loaded(t, ours, p, kept)
		after, err := os.ReadDir(kept)
		if err != nil || len(after) != len(before)+1 {
			t.Errorf("%s: %d files, before %d (%v)", name, len(after), len(before), err)
		}
		second := loaded(t, ours, p, kept)
		if !compiled(first) || second != first {
			t.Errorf("%s: none of runc's %d filters is the kept one (%d bytes), again: %v", name, len(possible), len(first), second == first)
		}
		if uncached := loaded(t, ours, p); !compiled(uncached) {
			t.Errorf("%s: without a store, another filter is compiled", name)
		}
		if again, _ := os.ReadDir(kept); len(again) != len(after) {
			t.Errorf("%s: it was kept twice", name)
		}
		if len(possible) == 1 {
			for f := range possible {
				t.Logf("%s: %d instructions", name, (len(f)-2)/16)
			}
		}
	}
}
