package engineapi

import (
	"net/http"
	"testing"

	"github.com/drover/drover/controller/create"
)

// What a version had that the newest has not is read, and what it had not yet is
// nobody's wish.
func TestACreateOfAnOlderVersion(t *testing.T) {
	for _, c := range []struct {
		body     string
		version  int
		platform string
		mac      string
		code     int
	}{
		{`{"Image":"busybox","MacAddress":"02:42:ac:11:00:02"}`, 44, "linux/arm64", "02:42:ac:11:00:02", 0},
		{`{"Image":"busybox","MacAddress":"02:42:ac:11:00:02"}`, 52, "linux/arm64", "", 0},
		{`{"Image":"busybox","MacAddress":""}`, 44, "linux/arm64", "", 0},
		{`{"Image":"busybox","MacAddress":7}`, 44, "linux/arm64", "", http.StatusBadRequest},
		{`{"Image":"busybox"}`, 41, "linux/arm64", "", 0},
		{`{"Image":"busybox"}`, 40, "", "", 0},
		{``, 40, "", "", 0},
	} {
		r := create.Request{Body: []byte(c.body), Platform: "linux/arm64"}
		err := asOf(c.version, &r)
		if code := 0; err != nil {
			if code = status(err); code != c.code {
				t.Errorf("version %d, %s: %d %v", c.version, c.body, code, err)
			}
			continue
		}
		if c.code != 0 || r.Platform != c.platform || r.MAC != c.mac || string(r.Body) != c.body {
			t.Errorf("version %d, %s: %+v", c.version, c.body, r)
		}
	}
}
