package host

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

func TestASnapshotIsShown(t *testing.T) {
	txn := state.NewTxn(state.NewStore().Snapshot())
	for _, name := range []string{"a", "b"} {
		if err := txn.Apply(&dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: "id-" + name, Name: name}}}); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := txn.View().Write(&b); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "state.bin")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	show := func(args ...string) (string, error) {
		cmd := snapshotCommand()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SetArgs(args)
		err := cmd.Execute()
		return out.String(), err
	}
	for _, tc := range []struct {
		args []string
		want []string
		fail string
	}{
		{[]string{file}, []string{"index 0, time 1970-01-01T00:00:00Z, hash ", "node 2, ", "task 0, "}, ""},
		{[]string{"--json", "--kind", "node", file}, []string{`"name":"a"`, `"name":"b"`}, ""},
		{[]string{"--kind", "nodes", file}, nil, `drover: no kind is called "nodes": there are cluster, `},
		{[]string{file + ".not"}, nil, "drover: opening the snapshot: open " + file + ".not: no such file"},
	} {
		out, err := show(tc.args...)
		out = strings.ReplaceAll(out, `": "`, `":"`) // protojson's spaces are not stable
		for _, w := range tc.want {
			if !strings.Contains(out, w) {
				t.Errorf("%v: %q is not in %q", tc.args, w, out)
			}
		}
		if (err != nil) != (tc.fail != "") || err != nil && !strings.Contains(err.Error(), tc.fail) {
			t.Errorf("%v: %v", tc.args, err)
		}
	}
	if err := os.WriteFile(file, b.Bytes()[:b.Len()-1], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := show(file); err == nil || !strings.Contains(err.Error(), "drover: reading "+file+": ") || !strings.Contains(err.Error(), "truncated") {
		t.Errorf("a file that is cut off: %v", err)
	}
}
