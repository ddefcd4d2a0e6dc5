package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/controller/bootstrap"
	"github.com/drover/drover/controller/state"
	"github.com/drover/drover/pkg/pki"
)

func TestMain(m *testing.M) {
	if runPart() { // this test's own children
		return
	}
	os.Exit(m.Run())
}

// The whole program, at a size too small for meaningful numbers: it must finish, with
// every row, and leave nothing behind.
func TestASmallFleetIsMeasured(t *testing.T) {
	dir, err := os.MkdirTemp("", "s") // short: paths of sockets are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var out, talk bytes.Buffer
	err = run(t.Context(), []string{"-controllers", "3", "-nodes", "4", "-tasks", "40", "-for", "400ms", "-callers", "4", "-dir", dir}, &out, &talk)
	if err != nil {
		t.Fatalf("%v\n%s%s", err, &out, &talk)
	}
	for _, want := range []string{"idle leader", "idle follower", "idle agent", "list, limit=200", "list, a label", "list, status=exited", "images", "info", "creates and removes", "commit with 4 sessions", "creates, 4 callers", "hellos of 4 nodes"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table has no row %q:\n%s", want, &out)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		t.Errorf("it left %v behind", left)
	}
}

func TestAPlantedStateIsWhole(t *testing.T) {
	dir := t.TempDir()
	if _, err := bootstrap.Up(bootstrap.Options{DataDir: dir, NodeName: "a", Hosts: []string{"127.0.0.1"}, Controller: "127.0.0.1:1", Pool: "10.0.0.0/8", Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	ca, err := authority(dir)
	if err != nil {
		t.Fatal(err)
	}
	token, err := pki.NewToken(pki.Pin(ca.Cert.Raw))
	if err != nil {
		t.Fatal(err)
	}
	if err := plant(dir, "127.0.0.1:1", 300, 1000, token); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "controller", "raft", "snapshots", "*", "state.bin"))
	if err != nil || len(files) != 1 {
		t.Fatalf("snapshots: %v %v", files, err)
	}
	f, err := os.Open(files[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	snap, err := state.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	if snap.Cluster() == nil || snap.Token(token.ID) == nil || snap.Tag(image) == nil {
		t.Error("the cluster, its token or its image is missing")
	}
	if n := len(slices.Collect(snap.Tasks())); n != 1000 {
		t.Errorf("%d tasks", n)
	}
	if n := snap.NodeByName("host-299"); n == nil || n.Subnet != "10.1.43.0/24" {
		t.Errorf("the last node is %v", n)
	}
	if n := len(slices.Collect(snap.TasksOfNode(nodeID(299)))); n != 3 {
		t.Errorf("%d tasks on the last node", n)
	}
}

func TestRowsOfOneSizeShareAFleet(t *testing.T) {
	for _, c := range []struct {
		only string
		over size
		want string
	}{
		{"idle", size{}, "3/3/0 idle"},
		{"list,hello", size{}, "1/1000/100000 list; 3/5000/100000 list hello"},
		{"list,place", size{1, 1000, 100_000}, "1/1000/100000 list place"},
		{"place", size{tasks: 7}, "1/1000/7 place; 3/1000/7 place"},
	} {
		steps, err := planned(c.only, c.over)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range steps {
			got = append(got, s.size.String()+" "+strings.Join(s.names(), " "))
		}
		if s := strings.Join(got, "; "); s != c.want {
			t.Errorf("%s at %v: %s, want %s", c.only, c.over, s, c.want)
		}
	}
	if _, err := planned("list,lost", size{}); err == nil {
		t.Error("a row that there is none of was taken")
	}
}

func TestQuantilesAreOfAllThatWasMeasured(t *testing.T) {
	var d []time.Duration
	for i := range 200 {
		d = append(d, time.Duration(200-i)*time.Millisecond)
	}
	if got, want := quantiles(d), "p50 101ms, p99 199ms, max 200ms"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := quantiles(d[:1]), "p50 1ms, p99 1ms, max 1ms"; got != want {
		t.Errorf("of one: %s, want %s", got, want)
	}
}

func TestDurationsAreShort(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0s", 12: "12ns", 1234567: "1.23ms", 12345678: "12.3ms", 123456789: "123ms", 2345678900: "2.35s", -1234567: "-1.23ms"} {
		if got := short(d); got != want {
			t.Errorf("%d: %s, want %s", d, got, want)
		}
	}
}
