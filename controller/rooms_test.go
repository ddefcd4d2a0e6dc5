package controller

import (
	"go/build"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// floors are the controller's rooms, from the ground up: each imports rooms of lower
// floors only, and none imports the wiring above it.
var floors = [][]string{
	{"state"},
	{"access", "agents", "dispatch", "fleet", "ipam", "runs", "scheduler"},
	{"command", "moves"},
	{"consensus", "images", "vault"},
	{"admission", "bootstrap", "create"},
	{"engineapi", "fleetapi"},
	{"gateway", "peer"},
	{"membership"},
	{"."},
}

func floor(room string) int {
	return slices.IndexFunc(floors, func(rooms []string) bool { return slices.Contains(rooms, room) })
}

func TestRoomsImportWhatIsBelow(t *testing.T) {
	const here = "github.com/drover/drover/controller"
	err := filepath.WalkDir(".", func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if d.Name() == "testdata" || strings.HasSuffix(d.Name(), "test") { // what tests are made of
			return fs.SkipDir
		}
		p, err := build.ImportDir(dir, 0)
		if err != nil {
			return err
		}
		if floor(dir) < 0 {
			t.Errorf("%s is on no floor: say what it may import", dir)
		}
		for _, i := range p.Imports {
			if room, ok := strings.CutPrefix(i, here); ok {
				if room = strings.TrimPrefix(room, "/"); room == "" {
					room = "."
				}
				if floor(room) >= floor(dir) {
					t.Errorf("%s imports %s, which is not below it", dir, room)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
