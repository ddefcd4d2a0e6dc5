package create

import (
	"reflect"
	"strings"
	"testing"

	"github.com/drover/drover/pkg/recent"
)

// What is remembered of a request is what decoding it says.
func TestARequestThatWasDecodedBefore(t *testing.T) {
	for what, sent := range map[string]string{
		"plain":              `{"Image":"busybox","Cmd":["sh"],"Labels":{"a":"b"},"HostConfig":{"NetworkMode":"bridge"}}`,
		"with what we added": `{"Image":"busybox","labels":{"a":"b","io.drover.node":"web-1"},"FieldOfLaterDocker":{"x":1}}`,
		"without an image":   `{"Cmd":["sh"]}`,
		"no config":          `{"HostConfig":{}}`,
		"null":               `null`,
		"another type":       `{"Image":1}`,
		"two of them":        `{"Image":"busybox"}{}`,
		"no JSON":            `{`,
		"nothing":            ``,
		"large":              `{"Image":"busybox","Labels":{"a":"` + strings.Repeat("x", maxDecoded/4) + `"}}`,
	} {
		for range 3 {
			body, req, err := remembered([]byte(sent))
			wantBody, want, wantErr := decode([]byte(sent))
			if string(body) != string(wantBody) || !reflect.DeepEqual(req, want) || (err == nil) != (wantErr == nil) || err != nil && err.Error() != wantErr.Error() {
				t.Errorf("%s: %.200s, %+v, %v; want %.200s, %+v, %v", what, body, req, err, wantBody, want, wantErr)
			}
		}
	}
}

func TestARequestIsDecodedOnce(t *testing.T) {
	once := func(sent string) any {
		_, req, err := remembered([]byte(sent))
		if err != nil {
			t.Fatal(err)
		}
		return req
	}
	one := once(`{"Image":"busybox"}`)
	if once(`{"Image":"busybox"}`) != one {
		t.Error("it was decoded twice")
	}
	if once(`{"Image":"busybox" }`) == one {
		t.Error("another request is taken for it")
	}
}

// What is remembered is bounded by what it takes, which may be forty times what was
// sent.
func TestARequestThatTakesMuchIsNotRemembered(t *testing.T) {
	sent := []byte(`{"Image":"busybox","HostConfig":{"Mounts":[{}` + strings.Repeat(",{}", 40_000) + `]}}`)
	if len(sent) > MaxBody {
		t.Fatalf("%d bytes are refused anyway", len(sent))
	}
	var last any
	for range 2 {
		_, req, err := remembered(sent)
		if err != nil || req == last {
			t.Fatalf("%d bytes are kept for %d, %v", recent.Size(req), len(sent), err)
		}
		last = req
	}
}
